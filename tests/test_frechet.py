"""The Frechet distance against scipy's matrix root and against closed forms."""

import pytest
import torch
from scipy.linalg import sqrtm

from swiftvideo_fast.metrics.frechet import Gaussian, distance, fit


def draw(rng, clips, features):
    mixing = torch.randn(features, features, generator=rng, dtype=torch.float64)
    return torch.randn(clips, features, generator=rng, dtype=torch.float64) @ mixing + mixing[0]


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
