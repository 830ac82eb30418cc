"""Gaussian data under its exact flow, where distillation and sampling have closed forms.

With data N(0, s^2) in every element, x_t has the standard deviation sigma(t) = sqrt((1 - t)^2 s^2 + t^2), and
    v(x, t) = a(t) x,   a = sigma' / sigma          the flow: along it x_t grows as sigma(t)
    f(x, t) = x s / sigma(t)                        the consistency function
    F(x, t) = (x - f(x, t)) / t                     its velocity
CCD whose warm-up is held at r is at rest (g = 0) where F + r t dF/dt = v along the flow, so at
    F(x, t) = (1/r) t^(-1/r) integral_0^t tau^(1/r - 1) v(x_tau, tau) dtau
            = (1/r) integral_0^1 y^(1/r - 1) sigma'(t y) dy  x / sigma(t)
which at r = 1 is the velocity above.
"""

import copy
import math

import numpy as np
import pytest
import torch
from test_objectives import made
from torch import Tensor, nn

from swiftvideo_fast import ops, path, sampler
from swiftvideo_fast.config import Times
from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.objectives.ccd import Ccd, ConsistencyDistillation
from swiftvideo_fast.objectives.dcd import Dcd, DiscreteDistillation

D = torch.float64
NOTHING = Condition(*(torch.zeros(1, 1, 1, dtype=D) for _ in range(2)), torch.zeros(1, 1, dtype=D))


class Average:
    """As train/ema.py's, in float64."""

    def __init__(self, student: nn.Module, decay: float):
        self.net, self.student, self.decay = copy.deepcopy(student).requires_grad_(False), student, decay

    def update(self) -> None:
        ops.ema_([*self.net.parameters()], [p.detach() for p in self.student.parameters()], self.decay)


class Linear(nn.Module):
    """F(x, t) = w(t) x, without conditioning."""

    def forward(self, x, t, text=None, frames=None, image=None):
        return path.over(self.w(t.double()), x) * x


class Flow(Linear):
    """The teacher."""

    def __init__(self, s: float):
        super().__init__()
        self.s = s

    def w(self, t):
        return (t - (1 - t) * self.s**2) / sigma(t, self.s)**2


class AtRest(Linear):
    """The fixed point at r = 1 / m: the integral by Gauss and Legendre, smooth for whole m."""

    def __init__(self, s: float, m: int = 1):
        super().__init__()
        self.s, self.m = s, m
        nodes, weights = np.polynomial.legendre.leggauss(48)
        self.y, self.dy = torch.tensor((nodes + 1) / 2), torch.tensor(weights / 2)

    def w(self, t):
        ty = t[:, None] * self.y
        rise = (ty - (1 - ty) * self.s**2) / sigma(ty, self.s)              # sigma'
        return rise @ (self.m * self.y**(self.m - 1) * self.dy) / sigma(t, self.s)


class Legendre(Linear):
    """A student whose w(t) is a polynomial."""

    def __init__(self, degree: int):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(degree + 1, dtype=D))

    def w(self, t):
        z, total = 2 * t - 1, 0
        below, p = torch.zeros_like(z), torch.ones_like(z)
        for k, theta in enumerate(self.theta):
            total = total + math.sqrt(2 * k + 1) * theta * p                # orthonormal on [0, 1]
            below, p = p, ((2 * k + 1) * z * p - k * below) / (k + 1)
        return total


class Table(Linear):
    """A student with one number for each time of a grid: f(x, k / grid) = (1 - theta_k) x, theta_0 = 0."""

    def __init__(self, grid: int):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(grid + 1, dtype=D))

    def w(self, t):
        return self.theta[(t * (len(self.theta) - 1)).round().long()] / t.clamp_min(1e-9)


def sigma(t, s: float):
    return ((1 - t)**2 * s**2 + t**2).sqrt()


def points(t: Tensor, elements: int = 3) -> path.Point:
    rng = torch.Generator().manual_seed(0)
    x0, x1 = (torch.randn(len(t), elements, generator=rng, dtype=D) for _ in range(2))
    return path.Point(x0, x1, t, path.interpolate(x0, x1, t))


# --- fixed point of continuous distillation --------------------------------------------------------------


TIMES = torch.linspace(0.01, 1, 60, dtype=D)


@pytest.mark.parametrize("s", [0.3, 1.0, 2.0])
def test_the_fixed_point_at_r_1_is_the_consistency_function(s):
    assert (AtRest(s).w(TIMES) - (1 - s / sigma(TIMES, s)) / TIMES).abs().max() < 1e-12


@pytest.mark.parametrize("m", [1, 2, 4])
@pytest.mark.parametrize("s", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("norm", ["l2", "rms", "clip"])
def test_the_tangent_vanishes_exactly_there(norm, s, m):
    rest = AtRest(s, m)
    ccd = made(ConsistencyDistillation, Ccd(guidance=3.0, warmup=0, r_max=1 / m, norm=norm))
    _, g, log = ccd.target(points(TIMES), {"average": rest, "teacher": Flow(s)}, NOTHING, 0)
    assert g.abs().max() < 1e-10
    assert log["tangent"] < 1e-10


@pytest.mark.parametrize("m", [2, 4])
def test_and_not_at_another_warm_up(m):
    rest = AtRest(1.0, m)
    ccd = made(ConsistencyDistillation, Ccd(guidance=1.0, warmup=0))
    nets = {"average": rest, "teacher": Flow(1.0)}
    assert ccd.target(points(TIMES), nets, NOTHING, 0)[2]["tangent"] > 0.1


@pytest.mark.parametrize("s, norm, m", [(1.0, "l2", 1), (1.0, "rms", 1), (0.5, "clip", 1), (1.0, "l2", 4)])
def test_ccd_trained_on_draws_comes_to_rest_there(s, norm, m):
    """For uniform t the mean step is a contraction.  Degree 8 leaves 4e-3; r = 1 and 1/4 are 0.7 apart."""
    student = Legendre(8)
    ema = Average(student, 0.95)
    ccd = made(ConsistencyDistillation, Ccd(guidance=1.0, warmup=20, r_max=1 / m, norm=norm, c=1.0),
               Times(uniform=True))
    nets = {"student": student, "average": ema.net, "teacher": Flow(s)}
    optimizer = torch.optim.SGD(student.parameters(), lr=0.075)
    rng = torch.Generator().manual_seed(0)
    for step in range(260):
        x0 = s * torch.randn(512, 4, generator=rng, dtype=D)
        loss = ccd.loss("student", nets, Batch(x0, NOTHING, [""]), rng, step).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update()
    assert (ema.net.w(TIMES) - AtRest(s, m).w(TIMES)).abs().max() < 5e-3


# --- discrete distillation -------------------------------------------------------------------------------


def discretely_distilled(grid: int, s: float) -> Table:
    """Returns a converged student: each pass fits the table exactly and takes the data one time further."""
    student = Table(grid)
    ema = Average(student, 0.0)
    dcd = made(DiscreteDistillation, Dcd(guidance=1.0, grid=grid))
    nets = {"student": student, "average": ema.net, "teacher": Flow(s)}
    every = torch.arange(1, grid + 1, dtype=D) / grid
    ones = torch.ones(grid, 1, dtype=D)
    optimizer = torch.optim.SGD(student.parameters(), lr=grid / 2)
    for _ in range(grid):
        loss = dcd.jump_from(ones, every, nets, NOTHING).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update()
    return ema.net


@pytest.mark.parametrize("s", [0.5, 1.0])
def test_dcd_nears_the_consistency_function_in_first_order(s):
    errors = []
    for grid in (16, 32, 64, 128):
        t = torch.arange(1, grid + 1, dtype=D) / grid
        errors.append((discretely_distilled(grid, s).w(t) - AtRest(s).w(t)).abs().max().item())
    ratios = [coarse / fine for coarse, fine in zip(errors, errors[1:], strict=False)]
    assert all(1.8 < ratio < 2.2 for ratio in ratios), (errors, ratios)


# --- samplers --------------------------------------------------------------------------------------------


def euler_ratio(net: Linear, steps: int, s: float) -> float:
    """Returns the standard deviation of samples over that of the data; all maps are linear."""
    return sampler.euler(net, torch.ones(1, 1, dtype=D), path.ladder(steps)).item() / s


@pytest.mark.parametrize("s, steps, ratio", [
    (1.0, 2, 1.414), (1.0, 4, 1.662), (1.0, 8, 1.816), (1.0, 25, 1.937),
    (0.3, 2, 1.245), (0.3, 4, 1.544), (0.3, 8, 1.751), (0.3, 25, 1.915)])
def test_euler_with_the_consistency_function_inflates(s, steps, ratio):
    assert euler_ratio(AtRest(s), steps, s) == pytest.approx(ratio, abs=5e-4)


@pytest.mark.parametrize("steps, ratio", [(2, 0.500), (4, 0.720), (8, 0.851), (25, 0.950)])
def test_euler_with_the_teacher_shrinks(steps, ratio):
    assert euler_ratio(Flow(1.0), steps, 1.0) == pytest.approx(ratio, abs=5e-4)


@pytest.mark.parametrize("s", [0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 25])
def test_euler_is_the_product_of_its_steps(steps, s):
    times = path.ladder(steps, shift=3.0)
    for net in (Flow(s), AtRest(s), AtRest(s, 4)):
        product = math.prod(1 - (t - u) * net.w(torch.tensor([t], dtype=D)).item()
                            for t, u in zip(times, times[1:], strict=False))
        got = sampler.euler(net, torch.ones(1, 1, dtype=D), times).item()
        assert got == pytest.approx(product, rel=1e-12)


@pytest.mark.parametrize("s", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 25])
def test_consistency_sampling_keeps_the_standard_deviation(steps, s, monkeypatch):
    """Each independent noise has its own axis: a sample's length is its standard deviation."""
    axes = iter(torch.eye(steps, dtype=D))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: next(axes)[None])
    x = sampler.consistency(AtRest(s), torch.randn(1, steps), path.ladder(steps, shift=3.0),
                            torch.Generator())
    assert x.norm().item() == pytest.approx(s, rel=1e-12)
    assert next(axes, None) is None                                         # one fresh noise per time above 0


def test_consistency_sampling_keeps_it_in_draws_too():
    rng = torch.Generator().manual_seed(0)
    x1 = torch.randn(1, 100_000, generator=rng)
    x = sampler.consistency(AtRest(1.0), x1, path.ladder(4), rng)
    assert abs(x.std().item() - 1) < 4 / math.sqrt(2 * x.numel())           # four standard errors
