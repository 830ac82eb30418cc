"""Figures of fidelity on clips with known values."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from swiftvideo_fast.metrics.corrupt import corrupt
from swiftvideo_fast.metrics.fidelity import (
    STILL,
    colour_drift,
    detail_ratio,
    first_frame_psnr,
    motion_ratio,
    sharpness_kept,
    static_share,
    temporal_flickering,
    trajectory_error,
)


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


def bytes_of(clips):
    """Returns (B, T, H, W, 3) uint8, rounded as by write_video."""
    return ((clips.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()


def test_flickering_is_vbenchs_formula_on_bytes(clips, rng):
    """VBench 0.1.5: per pair of frames the mean absolute difference in float32, then the mean over pairs."""
    noisy = corrupt(clips, "flicker", 1.0, rng)
    for x in (clips, noisy):
        pairs = [[np.abs(a.astype(np.float32) - b.astype(np.float32)).mean() for a, b in pairwise(clip)]
                 for clip in bytes_of(x)]
        want = [(255.0 - np.mean(clip).item()) / 255.0 for clip in pairs]
        np.testing.assert_allclose(temporal_flickering(x), want, rtol=1e-6)
    assert (temporal_flickering(noisy) < temporal_flickering(clips)).all()
    assert temporal_flickering(torch.ones(1, 3, 4, 8, 8)).tolist() == [1.0]
    black_and_white = torch.tensor([-1.0, 1.0]).repeat(3)[None, None, :, None, None].expand(1, 3, 6, 8, 8)
    assert temporal_flickering(black_and_white).tolist() == [0.0]


def test_a_static_copy_is_counted_one_by_one(clips, rng):
    mixed = torch.cat([corrupt(clips[:1], "freeze", 1.0, rng), clips[1:]])
    assert static_share(mixed, clips) == 0.25
    assert static_share(clips, clips) == 0.0
    assert static_share(corrupt(clips, "freeze", 1.0, rng), clips) == 1.0


def test_sharpness_falls_where_the_end_is_blurred_alone(clips, rng):
    assert sharpness_kept(clips[:, :, :1].expand_as(clips)).tolist() == [1.0] * 4
    blurred = torch.cat([clips[:, :, :-1], corrupt(clips[:, :, :1], "blur", 1.0, rng)], 2)
    assert (sharpness_kept(blurred) < 0.5).all()
    assert sharpness_kept(torch.cat([clips[:, :, :1], 2 * clips[:, :, :1]], 2)) == pytest.approx([4.0] * 4)


def test_colour_drift_is_in_grey_levels_from_the_first_frame(clips):
    still = clips[:, :, :1].expand_as(clips).clone()
    assert colour_drift(still).tolist() == [0.0] * 4
    still[1, 0, 4] += 20 / 127.5                            # one frame turns red and back
    still[1, 1, 6] += 10 / 127.5
    drift = colour_drift(still)
    assert drift[[0, 2, 3]].tolist() == [0.0] * 3
    assert drift[1] == pytest.approx(20.0, abs=0.1)
    tinted = still.clone()
    tinted[2, :, -1] += 20 / 127.5
    assert colour_drift(tinted)[2] == pytest.approx(20 * 3 ** 0.5, abs=0.2)


@pytest.mark.parametrize("figure", [temporal_flickering, colour_drift])
def test_what_is_no_clip_in_unit_range_is_refused(figure, clips):
    for broken in (clips[0], clips[:, :2], (clips * 127).byte()):
        with pytest.raises(ValueError, match=r"want floats \(B, 3, T, H, W\) in \[-1, 1\]"):
            figure(broken)
    clips[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        figure(clips)
    with pytest.raises(ValueError, match="at least 2 frames"):
        temporal_flickering(clips[1:, :, :1])
