"""Trajectory alignment against an independent implementation of eq. 11, in float64."""

import math

import pytest
import torch
from test_objectives import SHAPE, B, D, Net, assert_equal, column, draw, made

from swiftvideo_fast import path
from swiftvideo_fast.config import Times
from swiftvideo_fast.data.pairs import Pairs
from swiftvideo_fast.objectives.ta import Ta, TrajectoryAlignment
from swiftvideo_fast.seeds import generator


def pairs_of(point, condition, seed: int = 7) -> Pairs:
    rng = torch.Generator().manual_seed(seed)
    loser, noise = (torch.randn(B, *SHAPE, generator=rng, dtype=D) for _ in range(2))
    return Pairs(point.x0, condition, [""] * B, loser, noise)


def swapped(pairs: Pairs) -> Pairs:
    return Pairs(pairs.loser, pairs.condition, pairs.captions, pairs.x0, pairs.noise)


def error(net, x0, eps, t, condition):
    """|| v - v_net(x_t, t) ||^2, averaged over a clip's elements."""
    x_t = (1 - column(t)) * x0 + column(t) * eps
    v = net(x_t, t, condition.text, condition.frames, condition.image)
    return ((eps - x0) - v).square().flatten(1).mean(1)


def eq_11(student, reference, w, l, eps, t, condition, beta, reflow):
    win = error(student, w, eps, t, condition) - error(reference, w, eps, t, condition).detach()
    lose = error(student, l, eps, t, condition) - error(reference, l, eps, t, condition).detach()
    dpo = -torch.log(1 / (1 + torch.exp(beta / 2 * (win - lose)))).mean()
    return dpo + reflow * error(student, w, eps, t, condition).mean(), win, lose


def gradient(loss, net) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])


def loss_of(student, reference, pairs, **options) -> tuple[torch.Tensor, dict]:
    """Returns (loss, log) of pairs at the point that `drawn` returns."""
    ta = made(TrajectoryAlignment, Ta(**options))
    out = ta.loss("student", {"student": student, "reference": reference}, pairs, generator(0, "path"), 0)
    return out.value, out.log


def preference(student, reference, pairs, beta: float = 5.0) -> torch.Tensor:
    """Returns the gradient of the first term alone."""
    return gradient(loss_of(student, reference, pairs, beta=beta, reflow=0.0)[0], student)


@pytest.fixture
def drawn():
    point, condition = draw()
    return path.draw(point.x0, generator(0, "path"), Times()), pairs_of(point, condition)


@pytest.mark.parametrize("noise", ["fresh", "paired"])
@pytest.mark.parametrize("beta, reflow", [(5.0, 2.0), (5.0, 0.0), (0.0, 2.0), (200.0, 1.0)])
def test_loss_gradient_and_log_are_those_of_eq_11(beta, reflow, noise, drawn):
    point, pairs = drawn
    student, reference = Net(1), Net(3)
    eps = point.x1 if noise == "fresh" else pairs.noise
    want, win, lose = eq_11(student, reference, point.x0, pairs.loser, eps, point.t, pairs.condition,
                            beta, reflow)
    got, log = loss_of(student, reference, pairs, beta=beta, reflow=reflow, noise=noise)
    assert_equal(got, want)
    assert_equal(gradient(got, student), gradient(want, student))
    inside = -beta / 2 * (win - lose)
    assert log == pytest.approx({
        "win_diff": win.mean().item(), "lose_diff": lose.mean().item(),
        "accuracy": sum(w < l for w, l in zip(win.tolist(), lose.tolist(), strict=True)) / B,
        "saturation": sum(1 / (1 + math.exp(-x)) for x in inside.tolist()) / B,
        "reflow": error(student, point.x0, eps, point.t, pairs.condition).mean().item()}, rel=1e-12)


def test_at_the_start_the_loss_is_log_2_and_pulls_by_a_quarter_of_beta(drawn):
    point, pairs = drawn
    student, reference = Net(1), Net(1)
    loss, log = loss_of(student, reference, pairs, beta=5.0, reflow=0.0)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-14)
    assert (log["win_diff"], log["lose_diff"], log["saturation"]) == (0.0, 0.0, 0.5)
    won, lost = (error(student, x, point.x1, point.t, pairs.condition).mean()
                 for x in (point.x0, pairs.loser))
    assert_equal(gradient(loss, student), 5 / 4 * gradient(won - lost, student))


def test_a_pair_of_equals_teaches_reflow_alone(drawn):
    point, pairs = drawn
    student, same = Net(1), Pairs(pairs.x0, pairs.condition, pairs.captions, pairs.x0, pairs.noise)
    for reference in (Net(1), Net(3)):
        pull = preference(student, reference, same)
        assert_equal(pull, torch.zeros_like(pull))
    loss, _ = loss_of(student, Net(1), same, reflow=2.0)
    won = error(student, point.x0, point.x1, point.t, pairs.condition).mean()
    assert_equal(gradient(loss, student), gradient(2 * won, student))


def test_swapping_winner_and_loser_turns_the_pull_around(drawn):
    point, pairs = drawn
    student = Net(1)
    there, back = (preference(student, Net(1), p) for p in (pairs, swapped(pairs)))
    assert_equal(there, -back)
    one = pairs[:1]
    there, back = (preference(student, Net(3), p) for p in (one, swapped(one)))
    ratio = there.norm() / back.norm()                  # sigmoid(m) and sigmoid(-m), away from the start
    assert_equal(there, -ratio * back)
    assert abs(ratio - 1) > 0.1


def test_no_gradient_reaches_the_reference(drawn):
    point, pairs = drawn
    student, reference = Net(1), Net(3)
    loss_of(student, reference, pairs)[0].backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in reference.parameters())
