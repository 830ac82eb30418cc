"""Figures of fidelity on clips whose answer is known, and the face of cd-fvd."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from swiftvideo_fast.metrics.corrupt import corrupt
from swiftvideo_fast.metrics.fidelity import (
    STILL,
    detail_ratio,
    first_frame_psnr,
    motion_ratio,
    trajectory_error,
)
from swiftvideo_fast.metrics.frechet import distance, fit
from swiftvideo_fast.metrics.fvd import fvd


@pytest.fixture
def clips(rng):
    """Smooth moving clips (4, 3, 9, 16, 16)."""
    phase = torch.rand(4, 3, 1, 1, 1, generator=rng) * 6
    t, h, w = torch.meshgrid(torch.arange(9), torch.arange(16), torch.arange(16), indexing="ij")
    return 0.5 * torch.sin(phase + 0.3 * t + 0.5 * h + 0.7 * w)


def test_trajectory_error_is_the_mean_square_of_each_clip():
    z = torch.zeros(2, 16, 5, 8, 8)
    other = z.clone()
    other[1] = 0.5
    assert trajectory_error(other, z).tolist() == [0.0, 0.25]
    with pytest.raises(ValueError, match=r"z is \(1, 16, 5, 8, 8\)"):
        trajectory_error(z[:1], z)


def test_detail_scales_with_the_square_of_contrast_and_falls_with_blur(clips, rng):
    assert detail_ratio(clips, clips) == pytest.approx(1)
    assert detail_ratio(2 * clips, clips) == pytest.approx(4)
    assert detail_ratio(corrupt(clips, "blur", 0.5, rng), clips) < 0.9
    assert detail_ratio(corrupt(clips, "noise", 0.5, rng), clips) > 1.5


def test_detail_is_blind_to_brightness_and_to_linear_ramps(clips):
    ramp = torch.linspace(-0.2, 0.2, 16)
    assert detail_ratio(clips + ramp + 0.1, clips) == pytest.approx(1, rel=1e-4)


def test_psnr_of_the_first_frame_is_in_decibels_of_the_range(clips):
    first = clips[:, :, 0]
    assert first_frame_psnr(clips, first).tolist() == [99.0] * 4
    assert first_frame_psnr(clips, first + 0.2) == pytest.approx([20.0] * 4, abs=1e-4)


def test_a_frozen_clip_has_no_motion_and_a_slow_one_half(clips, rng):
    assert motion_ratio(corrupt(clips, "freeze", 1.0, rng), clips) == pytest.approx(0, abs=1e-6)
    assert STILL < motion_ratio(corrupt(clips, "freeze", 0.5, rng), clips) == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match="at least 2 frames"):
        motion_ratio(clips[:, :, :1], clips)


def test_fvd_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cdfvd", None)
    clips = np.zeros((2, 16, 32, 32, 3), np.uint8)
    with pytest.raises(ImportError, match=r"swiftvideo_fast\[eval\]"):
        fvd(clips, clips)
    with pytest.raises(ValueError, match="generated is float32"):
        fvd(clips, clips.astype(np.float32))


def test_fvd_is_our_distance_of_the_package_features(monkeypatch, rng):
    """The package is stood in for by one that takes each clip's pixel means for features."""
    class Stats:
        def get_mean_cov(self):
            return self.features.mean(0), np.cov(self.features.T, ddof=0)

    class Package:
        def __init__(self, net, n_real, n_fake, device):
            assert (net, n_real, n_fake, device) == ("videomae", "full", "full", "cpu")
            self.real_stats, self.fake_stats = Stats(), Stats()

        def add_real_stats(self, clips):
            self.real_stats.features, self.real_stats.num_items = clips.mean((1, 2, 3)), len(clips)

        def add_fake_stats(self, clips):
            self.fake_stats.features, self.fake_stats.num_items = clips.mean((1, 2, 3)), len(clips)

    monkeypatch.setitem(sys.modules, "cdfvd", SimpleNamespace(fvd=SimpleNamespace(cdfvd=Package)))
    real, fake = torch.randint(256, (2, 6, 4, 8, 8, 3), generator=rng, dtype=torch.uint8).numpy()
    means = [fit(torch.from_numpy(x.mean((1, 2, 3)))) for x in (real, fake)]
    assert fvd(real, fake, net="videomae", device="cpu") == pytest.approx(distance(*means), rel=1e-9)
