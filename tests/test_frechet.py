"""The Frechet distance against scipy's matrix root and against closed forms."""

from types import SimpleNamespace

import intervals
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from swiftvideo_fast.metrics.benchmark import Benchmark
from swiftvideo_fast.metrics.frechet import distance, estimate, fewest, fit
from swiftvideo_fast.metrics.moments import GROUPS, Gaussian, Moments


def draw(rng, clips, features):
    mixing = torch.randn(features, features, generator=rng, dtype=torch.float64)
    return torch.randn(clips, features, generator=rng, dtype=torch.float64) @ mixing + mixing[0]


def seen(x):
    found = Moments(x.shape[1])
    found.update(x)
    return found


def of_cdfvd(real, fake):
    """Returns cd-fvd 0.1.1's distance of features (clips, D): raw sums in float64, scipy's matrix root."""
    means, covariances = [], []
    for x in (real, fake):
        x = x.numpy()
        mean, second = sum(x) / len(x), sum(np.outer(row, row) for row in x) / len(x)
        means.append(mean)
        covariances.append(second - np.outer(mean, mean))
    s = sqrtm(covariances[0] @ covariances[1])
    return np.real(np.square(means[0] - means[1]).sum() + np.trace(covariances[1] + covariances[0] - 2 * s))


@given(st.integers(2, 300), st.integers(2, 300), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=15)
def test_is_cd_fvds_to_a_millionth(m, n, features, seed):
    """With fewer clips than features, scipy's root of the singular product loses half the digits."""
    rng = torch.Generator().manual_seed(seed)
    real, fake = draw(rng, m, features), draw(rng, n, features)
    want = of_cdfvd(real, fake)
    scale = fit(real).covariance.trace() + fit(fake).covariance.trace()
    assert distance(fit(real), fit(fake)) == pytest.approx(want, rel=1e-6, abs=1e-6 * scale.item())


@pytest.mark.parametrize("features", [1, 2, 24])
def test_matches_the_matrix_square_root_of_scipy(rng, features):
    a, b = (fit(draw(rng, 200, features)) for _ in range(2))
    root = torch.from_numpy(sqrtm((a.covariance @ b.covariance).numpy()).real)
    expected = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance - 2 * root).trace()
    assert distance(a, b) == pytest.approx(expected.item(), rel=1e-8)


def test_is_the_closed_form_for_axis_aligned_gaussians(rng):
    m, s = (torch.rand(2, 9, generator=rng, dtype=torch.float64) for _ in range(2))
    a, b = (Gaussian(m[i], s[i].square().diag(), 100) for i in range(2))
    expected = ((m[0] - m[1]).square() + (s[0] - s[1]).square()).sum()
    assert distance(a, b) == pytest.approx(expected.item(), rel=1e-12)


def test_is_the_squared_shift_of_one_set_moved(rng):
    x, shift = draw(rng, 50, 6), torch.arange(6.0, dtype=torch.float64)
    assert distance(fit(x), fit(x + shift)) == pytest.approx(shift.square().sum().item(), rel=1e-9)


@pytest.mark.parametrize("clips", [2, 5, 100])
def test_is_zero_to_itself_and_symmetric_with_fewer_clips_than_features(rng, clips):
    a, b = fit(draw(rng, clips, 32)), fit(draw(rng, clips, 32))
    assert distance(a, a) < 1e-9 * a.covariance.trace()
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-9)


def test_a_singular_covariance_costs_no_accuracy():
    flat = Gaussian(torch.zeros(4).double(), torch.tensor([4.0, 1, 0, 0]).double().diag(), 9)
    other = Gaussian(torch.zeros(4).double(), torch.tensor([1.0, 0, 0, 9]).double().diag(), 9)
    assert distance(flat, other) == pytest.approx(1 + 1 + 9, rel=1e-12)


def test_covariance_is_the_population_one():
    assert fit(torch.tensor([[-1.0], [1.0]])).covariance.item() == 1.0


def test_refuses_one_clip_and_says_how_many_clips_are_not_finite():
    with pytest.raises(ValueError, match=r"\(1, 3\); want .* at least 2 clips"):
        fit(torch.zeros(1, 3))
    broken = torch.zeros(5, 3)
    broken[1, 2], broken[3, 0] = float("nan"), float("inf")
    with pytest.raises(ValueError, match="2 of 5 clips"):
        fit(broken)
    with pytest.raises(ValueError, match="one side has 3 features, the other 4"):
        distance(fit(torch.zeros(2, 3)), fit(torch.zeros(2, 4)))


@pytest.mark.parametrize("case", [(8, 64, alike, "flat", "gaussian") for alike in (True, False)])
def test_the_interval_covers_the_truth_in_93_of_100_draws_and_the_estimate_has_no_bias(case):
    """More cases: `python tests/intervals.py`."""
    truth, found = intervals.of_draws(case, 100, seed=0)
    assert intervals.covered(truth, found) >= intervals.NEEDED
    values = np.array([e.value for e in found])
    plain = np.mean([e.distance for e in found])
    error = values.std(ddof=1) / len(values) ** 0.5
    assert abs(values.mean() - truth) < 3 * error < (plain - truth) / 2
    width = np.mean([e.high - e.low for e in found]) / values.std(ddof=1)
    assert 4 < width < 8                                    # 5.2 of Student's; not wider than needed


def test_the_estimate_is_the_jackknife_of_groups_left_out_on_both_sides(rng):
    """With groups of one size: G d - (G - 1) mean d_g, and its textbook standard error."""
    x, y = draw(rng, 80, 3), draw(rng, 160, 3)
    found, G = estimate(seen(x), seen(y)), GROUPS
    d = distance(fit(x), fit(y))
    left = np.array([distance(fit(x[torch.arange(80) % G != g]), fit(y[torch.arange(160) % G != g]))
                     for g in range(G)])
    assert found.distance == pytest.approx(d, rel=1e-9)
    assert found.value == pytest.approx(G * d - (G - 1) * left.mean(), rel=1e-8)
    half = 2.602480295 * ((G - 1) / G * np.square(left - left.mean()).sum()) ** 0.5
    assert [found.low, found.high] == pytest.approx([found.value - half, found.value + half], rel=1e-7)


def test_clips_that_depend_on_each_other_across_the_sets_make_the_interval_narrow(rng):
    """Samples of the same first frames: their common part cancels."""
    x = draw(rng, 256, 4)
    moved = x + 1 + 0.1 * torch.randn(x.shape, generator=rng)
    paired, apart = estimate(seen(x), seen(moved)), estimate(seen(x), seen(moved[torch.randperm(256)]))
    assert paired.high - paired.low < 0.3 * (apart.high - apart.low)
    assert paired.low < 4 < paired.high


def test_an_estimate_of_few_clips_is_refused_with_the_number_that_is_enough(rng):
    assert [fewest(D) for D in (1, 32, 64, 400, 1408)] == [64, 64, 128, 800, 2816]
    full = seen(draw(rng, 140, 64))
    for sides in ((full, seen(draw(rng, 127, 64))), (seen(draw(rng, 127, 64)), full)):
        with pytest.raises(ValueError, match=r"127 clips for 64 features; want at least 128 a side"):
            estimate(*sides)
    with pytest.raises(ValueError, match="one side has 64 features, the other 2"):
        estimate(full, seen(draw(rng, 140, 2)))
    lopsided = Moments(2)
    lopsided.update(draw(rng, 140, 2), range(0, 280, 2))
    with pytest.raises(ValueError, match="fill 8 and 16 of 16 groups"):
        estimate(lopsided, seen(draw(rng, 140, 2)))


def test_the_benchmark_estimates_what_it_measures(rng):
    """Clips that are their own latents; a random net's features of damaged ones."""
    clips = torch.rand(128, 3, 3, 8, 8, generator=rng) * 2 - 1
    bench = Benchmark(SimpleNamespace(x0=clips), SimpleNamespace(decode=lambda z: z), seed=0)
    made = 0.8 * clips
    for name in ("frechet", "frechet_random"):
        found = bench.estimate(made, name)
        assert found.distance == pytest.approx(bench.distance(made, name), rel=1e-9)
        assert found.low < found.value < found.distance
        features = [fit(bench.nets[name].extract(x)) for x in (made, clips)]
        assert bench.distance(made, name) == pytest.approx(distance(*features), rel=1e-9)
    with pytest.raises(ValueError, match="100 clips for 64 features; want at least 128"):
        bench.estimate(made[:100])


def test_an_estimate_of_one_and_the_same_set_is_not_above_zero(rng):
    same = seen(draw(rng, 200, 4))
    found = estimate(same, same)
    assert found.distance == pytest.approx(0, abs=1e-9) and found.value == pytest.approx(0, abs=1e-7)
