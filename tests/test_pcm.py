"""Phased consistency models and their latent critic, tested as in test_baselines.py."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch
from test_baselines import D, assert_same_loss, euler_factors, guided, told
from test_gaussian import NOTHING, Flow, Linear
from test_objectives import B, Net, column, config_of, draw, made
from torch import nn

from swiftvideo_fast import path, sampler
from swiftvideo_fast.adversary.latent import LatentCritic, initialise
from swiftvideo_fast.adversary.latent import hinge as latent_hinge
from swiftvideo_fast.config import Sample
from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.models.toy.family import ToyFamily
from swiftvideo_fast.objectives.base import Setup
from swiftvideo_fast.objectives.da import CRITIC
from swiftvideo_fast.objectives.pcm import Pcm, PhasedConsistency
from swiftvideo_fast.seeds import generator


@pytest.fixture
def nets():
    return {"student": Net(1), "teacher": Net(3).requires_grad_(False)}


class Features(ToyFamily):
    """A family whose networks have one block: the network."""

    def features(self, net, x_t, t, condition):
        return [self.call(net, x_t, t, condition).flatten(2).mT]


def pcm(shift: float = 1.0, **options) -> PhasedConsistency:
    objective = made(PhasedConsistency, Pcm(**options))
    objective.cfg = replace(objective.cfg, sample=Sample("euler", shift))
    objective.setup = replace(objective.setup, family=Features())
    return objective


@pytest.mark.parametrize("distance, weight", [("huber", 0.1), ("l2", 0.1), ("l2", 0.0)])
def test_pcm_is_its_equations(nets, distance, weight):
    student, teacher = nets.values()
    critic = LatentCritic([2]).to(D)
    initialise(critic, torch.Generator().manual_seed(0))
    point, condition = draw()
    t, s, e, E = torch.tensor([[1, 0.9, 0.6, 0.5, 0.1], [0.9, 0.8, 0.5, 0.4, 0], [0.5, 0.5, 0.5, 0, 0],
                               [1, 1, 1, 0.5, 0.5]], dtype=D)
    x_t = (1 - column(t)) * point.x0 + column(t) * point.x1
    x_s = x_t - column(t - s) * guided(teacher, x_t, t, condition, 3.0)
    with torch.no_grad():
        real = x_s - column(s - e) * student(x_s, s, *told(condition))
    fake = x_t - column(t - e) * student(x_t, t, *told(condition))
    d = fake - real
    want = d.square().mean() if distance == "l2" else ((d * d + 1e-6).sqrt() - 1e-3).mean()

    rng = generator(0, "path")
    noise = torch.randn(x_t.shape, generator=rng).double()
    q = e + torch.rand(B, generator=rng).double() * (E - e)

    def D_of(x):
        y = ((1 - column(q)) * x + (column(q) - column(e)) * noise) / (1 - column(e))
        tokens = teacher(y, q, *told(condition)).flatten(2).transpose(1, 2)
        [logits] = critic([tokens])
        return logits

    want = want + weight * (1 - D_of(fake)).relu().mean()
    objective = pcm(grid=10, phases=2, distance=distance, weight=weight)
    out = objective.loss_from(x_t, t, s, e, E, nets | {CRITIC: critic}, condition, generator(0, "path"))
    assert_same_loss(out.value, want, student)
    if weight:
        got = objective.loss(CRITIC, nets | {CRITIC: critic}, Batch(x_t, condition, []), None, 0, out.carry)
        want = (1 - D_of(real)).relu().mean() + (1 + D_of(fake.detach())).relu().mean()
        assert_same_loss(got.value, want, critic)
        assert all(p.grad is None for p in critic.parameters())


def test_a_latent_critic_reads_one_token_at_a_time_block_by_block():
    critic = LatentCritic([8, 64])
    initialise(critic, torch.Generator().manual_seed(0))
    again = LatentCritic([8, 64])
    initialise(again, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(critic.parameters(), again.parameters(), strict=True))
    features = [torch.randn(2, 5, 8), torch.randn(2, 5, 64)]
    order = torch.tensor([3, 1, 4, 0, 2])
    for logits, moved in zip(critic(features), critic([x[:, order] for x in features]), strict=True):
        assert logits.shape == (2, 1, 5) and torch.allclose(logits[..., order], moved, atol=1e-6)
    two, minus = torch.full((1, 1, 2), 2.0), torch.full((1, 1, 2), -1.0)
    assert latent_hinge([two, minus], 1) == (0 + 2) / 2 and latent_hinge([two, minus], -1) == (3 + 0) / 2


@torch.no_grad()
def test_features_are_the_outputs_of_the_blocks_and_the_velocity_and_leave_no_hook():
    net, family = tiny.network(sizes=replace(tiny.SIZES, layers=2)), ToyFamily()
    x, t = torch.randn(2, 16, 2, 4, 4), torch.rand(2)
    condition = Condition(torch.randn(2, 20, 2, 4, 4), torch.randn(2, 3, 8), torch.zeros(3, 8))
    seen = []
    hook = net.blocks[1].register_forward_hook(lambda block, inputs, out: seen.extend([inputs[0], out]))
    seen.append(family.call(net, x, t, condition).flatten(2).mT)
    hook.remove()
    found = family.features(net, x, t, condition)
    assert all(torch.equal(a, b) for a, b in zip(found, seen, strict=True))
    assert [x.shape[2] for x in found] == family.widths(net.config)
    assert not any(block._forward_hooks for block in net.blocks)


def test_features_have_the_same_gradient_when_blocks_run_again():
    found, x = [], torch.randn(2, 16, 2, 4, 4, generator=generator(0, "path")).requires_grad_()
    condition = Condition(torch.ones(2, 20, 2, 4, 4), torch.ones(2, 3, 8), torch.zeros(3, 8))
    for recompute in ("nothing", "blocks", "blocks but attention"):
        net = tiny.network(sizes=replace(tiny.SIZES, layers=2))
        net.recompute = recompute
        features = ToyFamily().features(net, x, torch.full((2,), 0.5), condition)
        found.append(torch.autograd.grad(sum(f.square().sum() for f in features), x)[0])
    assert all(torch.equal(found[0], again) for again in found[1:]) and found[0].abs().max() > 0


def test_pcms_phases_are_the_steps_of_its_sampler():
    objective = pcm(shift=3.0, grid=8, phases=2)
    t, s, e, E = objective.times(torch.arange(1, 9))
    ladder, middle = path.ladder(8, 3.0), path.ladder(2, 3.0)[1]
    assert t.tolist() == pytest.approx(ladder[-2::-1]) and s.tolist() == pytest.approx(ladder[:0:-1])
    assert e.tolist() == pytest.approx([0] * 4 + [middle] * 4)
    assert E.tolist() == pytest.approx([middle] * 4 + [1] * 4)
    with pytest.raises(ValueError, match="objective.grid is 9; want a multiple of objective.phases, 2"):
        pcm(grid=9, phases=2)
    bare = Setup(SimpleNamespace(name="bare"), *[None] * 7)
    with pytest.raises(ValueError, match="objective.weight is 0.1; want 0: the family bare has no features"):
        PhasedConsistency(config_of(Pcm()), bare)
    assert PhasedConsistency(config_of(Pcm(weight=0.0)), bare).turns(0) == ("student",)


class PhaseTable(Linear):
    """phi(x, T_k) = theta_k x."""

    def __init__(self, theta, t, e):
        super().__init__()
        self.theta, self.t, self.span = nn.Parameter(theta), t, t - e

    def w(self, t):
        k = (t[:, None] - self.t).abs().argmin(1)
        return (1 - self.theta[k]) / self.span[k].clamp_min(1e-9)


@pytest.mark.parametrize("phases", [1, 2, 4])
def test_pcm_rests_where_its_phases_are_the_teachers_euler_steps(phases):
    """Without its adversary.  Euler with one step per phase has the standard deviation of the teacher's N
    steps: to first order the data's; a consistency function's is 1.41 and 1.66 times that."""
    errors = []
    for grid in (32, 64):
        objective, edges = pcm(grid=grid, phases=phases, weight=0.0), range(0, grid, grid // phases)
        t, s, e, E = (x.to(D) for x in objective.times(torch.arange(1, grid + 1)))
        ends = torch.cat([torch.zeros(1, dtype=D), e])
        rest = PhaseTable(euler_factors(grid, 1.0, edges), torch.arange(grid + 1, dtype=D) / grid, ends)
        ones, nets = torch.ones(grid, 1, dtype=D), {"student": rest, "teacher": Flow(1.0)}
        found = objective.loss_from(ones, t, s, e, E, nets, NOTHING, None).value
        assert found < 1e-10 and torch.autograd.grad(found, rest.theta)[0].abs().max() < 1e-4
        one = torch.ones(1, 1, dtype=D)
        by_phases, by_teacher = (sampler.euler(net, one, path.ladder(n)).item() for net, n in (
            (rest, phases), (Flow(1.0), grid)))
        assert by_phases == pytest.approx(by_teacher, rel=1e-12)
        errors.append(abs(by_phases - 1))
    assert 1.8 < errors[0] / errors[1] < 2.2 and errors[1] < 0.03
