"""The flow path, time samplers, ladders, and seeds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftvideo_fast import path, seeds
from swiftvideo_fast.config import Times

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple)


@given(shapes, st.integers(0, 2**32))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_a_draw_lies_on_the_path_between_data_and_noise(shape, seed):
    rng = torch.Generator().manual_seed(seed)
    x0 = torch.randn(shape, generator=rng, dtype=torch.float64)
    point = path.draw(x0, rng, Times())
    assert point.x_t.shape == point.x1.shape == x0.shape and point.t.shape == x0.shape[:1]
    assert point.x1.dtype == x0.dtype
    assert ((point.t > 0) & (point.t < 1)).all()
    for i, t in enumerate(point.t.tolist()):
        assert torch.allclose(point.x_t[i], (1 - t) * x0[i] + t * point.x1[i], rtol=0, atol=1e-7)
    assert torch.equal(point.velocity, point.x1 - x0)


@given(shapes)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_path_begins_at_the_data_and_ends_at_the_noise(shape):
    x0, x1 = torch.randn(2, *shape)
    assert torch.equal(path.interpolate(x0, x1, torch.zeros(shape[0])), x0)
    assert torch.equal(path.interpolate(x0, x1, torch.ones(shape[0])), x1)


@pytest.mark.parametrize("mean, std", [(-0.6, 1.4), (-0.8, 1.0)])
def test_times_are_logit_normal(mean, std, rng):
    n = 100_000
    t = path.draw(torch.zeros(n, 1), rng, Times(mean, std)).t.double()
    logit = t.logit()
    assert abs(logit.mean().item() - mean) < 4 * std / math.sqrt(n)                 # four standard errors
    assert abs(logit.std().item() / std - 1) < 4 / math.sqrt(2 * n)
    below = (logit < mean + std).double().mean().item()
    assert abs(below - 0.841345) < 4 * math.sqrt(0.1335 / n)                # the normal distribution's shape


def test_times_are_uniform_when_asked(rng):
    n = 100_000
    t = path.draw(torch.zeros(n, 1), rng, Times(uniform=True)).t
    assert abs(t.mean().item() - 1 / 2) < 4 * math.sqrt(1 / 12 / n)
    assert abs(t.var().item() - 1 / 12) < 4 * math.sqrt(1 / 180 / n)


def test_noise_is_standard_and_independent_of_time(rng):
    n = 100_000
    point = path.draw(torch.zeros(n, 1), rng, Times())
    x1 = point.x1[:, 0]
    assert abs(x1.mean().item()) < 4 / math.sqrt(n)
    assert abs(x1.var().item() - 1) < 4 * math.sqrt(2 / n)
    assert abs(torch.corrcoef(torch.stack([x1, point.t]))[0, 1].item()) < 4 / math.sqrt(n)


# --- ladders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps, shift, times", [
    (4, 3.0, [1, .9, .75, .5]),
    (8, 3.0, [1, .9545, .9, .8333, .75, .6429, .5, .3]),
    (2, 3.0, [1, .75]),
    (4, 5.0, [1, .9375, .8333, .625]),
    (4, 1.0, [1, .75, .5, .25]),
    (1, 3.0, [1]),
])
def test_ladders_are_those_of_wan(steps, shift, times):
    ladder = path.ladder(steps, shift)
    assert ladder[0] == 1 and ladder[-1] == 0
    assert ladder == pytest.approx([*times, 0], abs=5e-5)                           # published to four places


@given(st.integers(1, 60), st.floats(0.1, 20))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_a_ladder_goes_down_from_noise_to_data(steps, shift):
    ladder = path.ladder(steps, shift)
    assert len(ladder) == steps + 1 and ladder[0] == pytest.approx(1, abs=1e-15) and ladder[-1] == 0
    assert all(t > s for t, s in zip(ladder, ladder[1:], strict=False))


@pytest.mark.parametrize("steps, shift", [(0, 1.0), (-1, 1.0), (4, 0.0), (4, -3.0)])
def test_an_impossible_ladder_is_an_error(steps, shift):
    with pytest.raises(ValueError, match=f"steps = {steps}, shift = {shift}"):
        path.ladder(steps, shift)


# --- seeds -----------------------------------------------------------------------------------------------


def test_a_draw_is_named_by_seed_purpose_and_position():
    def first(*name):
        return torch.rand(4, generator=seeds.generator(*name)).tolist()

    assert first(0, "path", 5) == first(0, "path", 5)
    names = [(0, "path", 5), (1, "path", 5), (0, "crops", 5), (0, "path", 6), (5, "path", 0)]
    assert len({tuple(first(*name)) for name in names}) == len(names)


def test_seeds_are_the_same_on_every_machine():
    assert seeds.seed_of(0, "path", 0) == 2657402762583973277


@given(st.integers(0, 2**31), st.integers(0, 2**40))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_the_same_draw_comes_again(seed, position):
    x0 = torch.zeros(3, 2)
    one, two = (path.draw(x0, seeds.generator(seed, "path", position), Times(0.0, 1.0)) for _ in range(2))
    assert torch.equal(one.x_t, two.x_t) and torch.equal(one.t, two.t)
