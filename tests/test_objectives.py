"""The objectives against independent implementations of the paper's lines, in float64.

The stub network is smooth and mixes every element with time and all conditions; student, average and teacher
have different weights.
"""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from swiftvideo_fast import path
from swiftvideo_fast.config import Config, Model, Optim, Run, Times
from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.data.crops import CropOptions
from swiftvideo_fast.models.condition import Condition, guided
from swiftvideo_fast.models.toy.family import ToyFamily
from swiftvideo_fast.objectives.base import Setup
from swiftvideo_fast.objectives.ccd import Ccd, ConsistencyDistillation, warmup
from swiftvideo_fast.objectives.dcd import Dcd, DiscreteDistillation
from swiftvideo_fast.objectives.flow import Flow, FlowMatching
from swiftvideo_fast.seeds import generator
from swiftvideo_fast.train.ema import Ema
from swiftvideo_fast.train.single import Trained

B, SHAPE = 5, (2, 2, 2, 2)
SIZE = 16                       # elements of a clip
D = torch.float64


class Net(nn.Module):
    """net(x, t, text, frames, image), for clips of SHAPE."""

    def __init__(self, seed: int):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.mix = nn.Parameter(torch.randn(SIZE, SIZE, generator=rng, dtype=D) / SIZE**0.5)
        self.text = nn.Parameter(torch.randn(3, SIZE, generator=rng, dtype=D))
        self.time = nn.Parameter(torch.randn(SIZE, generator=rng, dtype=D))

    def forward(self, x, t, text, frames, image):
        told = text.mean(1) @ self.text + frames.flatten(1) + image.mean(1)
        return torch.tanh(x.flatten(1) @ self.mix + told + t[:, None] * self.time).reshape(x.shape)


@pytest.fixture
def nets():
    """By role."""
    average, teacher = Net(2).requires_grad_(False), Net(3).requires_grad_(False)
    return {"student": Net(1), "average": average, "teacher": teacher}


def config_of(options, times: Times | None = None, da=None) -> Config:
    return Config(Run("run", 1), Model(weights="teacher"), options, Optim(1e-3), CropOptions(), da=da,
                  times=times or Times())


def made(cls, options, times: Times | None = None):
    """Returns an objective built from its config alone."""
    nothing = Setup(ToyFamily(), torch.device("cpu"), *[None] * 6)
    return cls(config_of(options, times), nothing)


def draw() -> tuple[path.Point, Condition]:
    rng = torch.Generator().manual_seed(4)
    x0, x1, frames = (torch.randn(B, *SHAPE, generator=rng, dtype=D) for _ in range(3))
    text = torch.randn(B, 3, 3, generator=rng, dtype=D)
    null_text = torch.randn(3, 3, generator=rng, dtype=D)
    t = torch.rand(B, generator=rng, dtype=D)
    image = torch.randn(B, 4, SIZE, generator=rng, dtype=D)
    return path.Point(x0, x1, t, path.interpolate(x0, x1, t)), Condition(frames, text, null_text, image)


def batch_of(point: path.Point, condition: Condition) -> Batch:
    return Batch(point.x0, condition, [""] * B)


def null_of(condition: Condition) -> torch.Tensor:
    """Returns the null text, one row per clip."""
    return condition.null_text.expand(B, -1, -1)


def column(t):
    return t.reshape(B, 1, 1, 1, 1)


def length(g):
    return g.flatten(1).norm(dim=1).reshape(B, 1, 1, 1, 1)


def assert_equal(got, want):
    """Checks equality up to some roundings of float64, relative to the largest value."""
    assert got.dtype == D
    assert (got - want).abs().max() <= 1e-13 * max(1, want.abs().max())


NORMALISED = {                                                          # line 8, and its two variants
    "l2": lambda g, c: g / (length(g) + c),
    "rms": lambda g, c: g / (length(g) / SIZE**0.5 + c),
    "clip": lambda g, c: g.clip(-1, 1),
}


def algorithm_1(student, average, teacher, point, condition, iters, H, w, norm, c):
    """Lines 5 to 9, for guidance w: (F-, g, loss)."""
    x_t, t = point.x_t, point.t
    frames, image = condition.frames, condition.image
    uncond = teacher(x_t, t, null_of(condition), frames, image)
    cond = teacher(x_t, t, condition.text, frames, image)
    dx_dt = uncond + w * (cond - uncond)                                # line 5, Ho & Salimans
    r = min(1, iters / H)                                               # line 6
    F, dF_dt = torch.autograd.functional.jvp(
        lambda x, t: average(x, t, condition.text, frames, image), (x_t, t), (dx_dt, torch.ones(B, dtype=D)))
    g = dx_dt - F - r * column(t) * dF_dt                               # line 7
    g = NORMALISED[norm](g, c)                                          # line 8
    F_theta = student(x_t, t, condition.text, frames, image)
    return F, g, (F_theta - F - g).square().flatten(1).sum(1).mean()    # line 9


@pytest.mark.parametrize("iters", [0, 7, 60, 900])
@pytest.mark.parametrize("norm", NORMALISED)
def test_target_loss_and_gradient_of_ccd_are_those_of_algorithm_1(nets, norm, iters):
    point, condition = draw()
    ccd = made(ConsistencyDistillation, Ccd(warmup=60, guidance=3.0, norm=norm, c=0.1))
    F, g, loss = algorithm_1(*nets.values(), point, condition, iters, 60, 3.0, norm, 0.1)
    got_F, got_g, log = ccd.target(point, nets, condition, iters)
    assert_equal(got_F, F)
    assert_equal(got_g, g)
    assert log["r"] == min(1, iters / 60)

    got = ccd.jump_from(point, nets, condition, iters).loss
    assert_equal(got, loss)
    parameters = list(nets["student"].parameters())
    wanted = torch.autograd.grad(loss, parameters)
    for a, b in zip(torch.autograd.grad(got, parameters), wanted, strict=True):
        assert_equal(a, b)


@pytest.mark.parametrize("norm", NORMALISED)
def test_the_constant_of_the_norm_is_the_configs(nets, norm):
    point, condition = draw()
    ccd = made(ConsistencyDistillation, Ccd(warmup=60, norm=norm, c=0.7))
    assert_equal(ccd.target(point, nets, condition, 60)[1],
                 algorithm_1(*nets.values(), point, condition, 60, 60, 3.0, norm, 0.7)[1])


def test_clipping_is_met_by_values_inside_and_outside(nets):
    point, condition = draw()
    g = made(ConsistencyDistillation, Ccd(warmup=0, norm="clip")).target(point, nets, condition, 0)[1]
    assert 0 < g.abs().eq(1).sum() < g.numel()


def test_no_gradient_reaches_average_or_teacher(nets):
    student, average, teacher = (net.requires_grad_() for net in nets.values())
    ccd = made(ConsistencyDistillation, Ccd(warmup=1))
    point, condition = draw()
    ccd.loss("student", nets, batch_of(point, condition), torch.Generator(), 1).value.backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for net in (average, teacher) for p in net.parameters())


def test_the_point_of_ccd_is_drawn_from_the_turns_generator(nets):
    _, condition = draw()
    batch = Batch(draw()[0].x0, condition, [""] * B)
    ccd = made(ConsistencyDistillation, Ccd(warmup=1), Times(mean=0.3, std=0.5))
    out = ccd.loss("student", nets, batch, generator(0, "path"), 1)
    point = path.draw(batch.x0, generator(0, "path"), Times(mean=0.3, std=0.5))
    assert out.value == ccd.jump_from(point, nets, condition, 1).loss


def test_the_tangent_logged_is_the_size_before_normalisation(nets):
    point, condition = draw()
    log = made(ConsistencyDistillation, Ccd(warmup=0)).target(point, nets, condition, 0)[2]
    _, g, _ = algorithm_1(*nets.values(), point, condition, 1, 1, 3.0, "l2", 0.1)
    size = 0.1 * length(g) / (1 - length(g))                            # ||g|| = size / (size + c)
    assert log["tangent"] == pytest.approx(size.mean().item(), rel=1e-11)


@pytest.mark.parametrize("step, H, r_max, r", [
    (0, 1000, 1.0, 0.0), (250, 1000, 1.0, 0.25), (1000, 1000, 1.0, 1.0), (5000, 1000, 1.0, 1.0),
    (250, 1000, 0.3, 0.25), (5000, 1000, 0.3, 0.3), (0, 0, 1.0, 1.0), (0, 0, 0.3, 0.3)])
def test_warm_up_rises_to_its_ceiling(step, H, r_max, r):
    assert warmup(step, H, r_max) == r


def test_the_average_moves_as_line_11():
    student = Net(1)
    ema = Ema(Trained(student, Optim(1e-3), 1), 0.95)
    before = copy.deepcopy(list(ema.net.parameters()))
    with torch.no_grad():
        for p in student.parameters():
            p += torch.randn_like(p)
    ema.update()
    assert not any(p.requires_grad for p in ema.net.parameters())
    for moved, was, theta in zip(ema.net.parameters(), before, student.parameters(), strict=True):
        assert_equal(moved, 0.95 * was + (1 - 0.95) * theta.detach())


# --- guidance --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("w", [0.0, 1.0, 3.0])
def test_guidance_is_of_ho_and_salimans(w):
    net, (point, condition) = Net(1), draw()
    cond = net(point.x_t, point.t, condition.text, condition.frames, condition.image)
    uncond = net(point.x_t, point.t, null_of(condition), condition.frames, condition.image)
    got = guided(partial(ToyFamily().call, net), point.x_t, point.t, condition, w)
    assert_equal(got, (1 - w) * uncond + w * cond)


# --- flow matching ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", [0.0, 0.5, 1.0])
def test_flow_matching_is_eq_2_with_text_dropped_from_some_clips(drop):
    net, (point, condition) = Net(1), draw()
    flow, rng = made(FlowMatching, Flow(drop_text=drop)), generator(0, "path")
    loss = flow.loss("student", {"student": net}, batch_of(point, condition), generator(0, "path"), 0).value
    point = path.draw(point.x0, rng, Times())
    dropped = torch.rand(B, generator=rng) < drop
    assert {0.0: dropped.sum() == 0, 0.5: 0 < dropped.sum() < B, 1.0: dropped.sum() == B}[drop]
    text = torch.stack([condition.null_text if dropped[i] else condition.text[i] for i in range(B)])
    v = point.x1 - point.x0
    x_t = (1 - column(point.t)) * point.x0 + column(point.t) * point.x1
    assert_equal(loss, (v - net(x_t, point.t, text, condition.frames, condition.image)).square().mean())


# --- discrete distillation -------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [1, 4, 50])
def test_dcd_is_eq_3_with_an_euler_step_of_the_teacher(nets, grid):
    student, average, teacher = nets.values()
    point, condition = draw()
    told = condition.text, condition.frames, condition.image
    t = torch.tensor([next(k for k in range(1, grid + 1) if k / grid >= t) / grid for t in point.t], dtype=D)
    s = t - 1 / grid
    x_t = (1 - column(t)) * point.x0 + column(t) * point.x1
    uncond = teacher(x_t, t, null_of(condition), condition.frames, condition.image)
    v = uncond + 3.0 * (teacher(x_t, t, *told) - uncond)
    x_s = x_t - 1 / grid * v
    target = x_s - column(s) * average(x_s, s, *told)                   # f-(x_s, s)
    loss = (x_t - column(t) * student(x_t, t, *told) - target).square().mean()

    dcd = made(DiscreteDistillation, Dcd(grid=grid))
    assert_equal(dcd.on_grid(point.t), t)
    assert_equal(dcd.target(x_t, t, nets, condition), target)
    got = dcd.jump_from(x_t, t, nets, condition).loss
    assert_equal(got, loss)
    parameters = list(student.parameters())
    for a, b in zip(torch.autograd.grad(got, parameters), torch.autograd.grad(loss, parameters), strict=True):
        assert_equal(a, b)
