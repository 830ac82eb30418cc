"""The methods that SwiftVideo is compared with: losses written out once more, and rest on Gaussian data.

On N(0, sd^2) data under the exact flow a(t) x, N Euler steps on a grid multiply x_t by known factors, and a
student with one number a grid time can have exactly these.
"""

import pytest
import torch
from test_gaussian import NOTHING, AtRest, Flow, Table
from test_objectives import Net, assert_equal, column, draw, made, null_of

from swiftvideo_fast.objectives.lcm import LatentConsistency, Lcm
from swiftvideo_fast.seeds import generator

D = torch.float64


@pytest.fixture
def nets():
    average, teacher = Net(2).requires_grad_(False), Net(3).requires_grad_(False)
    return {"student": Net(1), "average": average, "teacher": teacher}


def told(condition):
    return condition.text, condition.frames, condition.image


def guided(net, x_t, t, condition, w):
    """u + w (c - u)."""
    u = net(x_t, t, null_of(condition), condition.frames, condition.image)
    return u + w * (net(x_t, t, *told(condition)) - u)


def assert_same_loss(got, want, net):
    """Value and gradient."""
    assert_equal(got, want)
    parameters = list(net.parameters())
    for a, b in zip(torch.autograd.grad(got, parameters, retain_graph=True),
                    torch.autograd.grad(want, parameters), strict=True):
        assert_equal(a, b)


def euler_factors(grid: int, sd: float, edges=(0,)) -> torch.Tensor:
    """(grid + 1,): what Euler steps from k / grid down to the nearest edge below make of x."""
    a, factors = Flow(sd).w(torch.arange(grid + 1, dtype=D) / grid), [torch.ones((), dtype=D)]
    for k in range(1, grid + 1):
        factors.append((1 if k - 1 in edges else factors[-1]) * (1 - a[k] / grid))
    return torch.stack(factors)


# --- LCM -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["huber", "l2"])
def test_lcm_is_its_equation_with_an_euler_step_and_a_guidance_of_each_clip(nets, distance):
    student, average, teacher = nets.values()
    point, condition = draw()
    t = torch.tensor([1, 2, 5, 9, 10], dtype=D) / 10
    w = torch.tensor([2.0, 2.5, 3.0, 3.5, 4.0], dtype=D)
    s, x_t = t - 0.1, (1 - column(t)) * point.x0 + column(t) * point.x1
    x_s = x_t - 0.1 * guided(teacher, x_t, t, condition, column(w))
    d = (x_t - column(t) * student(x_t, t, *told(condition))
         - (x_s - column(s) * average(x_s, s, *told(condition))))
    want = d.square().mean() if distance == "l2" else ((d * d + 1e-6).sqrt() - 1e-3).mean()
    lcm = made(LatentConsistency, Lcm(grid=10, distance=distance))
    assert_same_loss(lcm.jump_from(x_t, t, w, nets, condition).loss, want, student)


def test_lcm_draws_every_time_of_its_grid_and_guidance_from_its_range(nets):
    t, w = made(LatentConsistency, Lcm(guidance=3.0, spread=0.5, grid=4)).draw(4000, generator(0, "path"))
    assert sorted(set(t.tolist())) == [0.25, 0.5, 0.75, 1.0]
    assert all(abs((t == k / 4).double().mean() - 1 / 4) < 4 * 0.433 / 4000**0.5 for k in range(1, 5))
    assert 2.5 < w.min() < 2.51 and 3.49 < w.max() < 3.5


@pytest.mark.parametrize("distance", ["huber", "l2"])
@pytest.mark.parametrize("sd", [0.5, 1.0])
def test_lcm_rests_at_the_teachers_euler_steps_which_near_the_consistency_function(sd, distance):
    errors = []
    for grid in (16, 32, 64):
        rest, t = Table(grid), torch.arange(1, grid + 1, dtype=D) / grid
        with torch.no_grad():
            rest.theta.copy_(1 - euler_factors(grid, sd))
        lcm = made(LatentConsistency, Lcm(grid=grid, distance=distance))
        nets = {"student": rest, "average": rest, "teacher": Flow(sd)}
        loss = lcm.jump_from(torch.ones(grid, 1, dtype=D), t, torch.full((grid,), 3.0, dtype=D), nets,
                             NOTHING).loss
        assert loss < 1e-15 and torch.autograd.grad(loss, rest.theta)[0].abs().max() < 1e-12
        errors.append((rest.w(t) - AtRest(sd).w(t)).abs().max().item())
    assert all(1.8 < coarse / fine < 2.2 for coarse, fine in zip(errors, errors[1:], strict=False)), errors
