"""Figures of fidelity beyond a distribution distance: trajectory error, detail, motion, first frame, flicker.

Clips are (B, 3, T, H, W) in [-1, 1].  Functions of single clips return (B,); ratios are of the sets' means.
Grey levels are integers from 0 to 255, rounded as by write_video.
"""

import torch
from torch import Tensor

STILL = 0.3     # motion ratio below which clips count as copies of the first frame


def trajectory_error(z: Tensor, z_teacher: Tensor) -> Tensor:
    """Returns (B,), the mean squared difference of latents to the teacher's sample from the same noise."""
    if z.shape != z_teacher.shape:
        raise ValueError(f"trajectory_error: z is {tuple(z.shape)}, z_teacher {tuple(z_teacher.shape)}; "
                         "want equal shapes")
    return (z.double() - z_teacher.double()).square().flatten(1).mean(1)


def detail_ratio(generated: Tensor, real: Tensor) -> float:
    """Returns high-frequency energy of generated over real: below 1 blurred, above 1 noisy or too contrasted.

    Energy of the frames' Laplacian; a Fourier band would count the frame's border as detail.
    """
    return (detail(generated).mean() / detail(real).mean()).item()


def first_frame_psnr(clips: Tensor, first_BCHW: Tensor) -> Tensor:
    """Returns (B,), the PSNR in dB of each first frame against the condition; 99 if equal."""
    error = (clips[:, :, 0].double() - first_BCHW.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(4 / error)).clamp(max=99.0)


def motion_ratio(generated: Tensor, real: Tensor) -> float:
    """Returns motion of generated over real; below STILL, clips are static copies."""
    return (motion(generated).mean() / motion(real).mean()).item()


def detail(clips: Tensor) -> Tensor:
    """Returns (B,), the mean energy of the frames' Laplacian."""
    x = clips.float()
    middle = x[..., 1:-1, 1:-1]
    sides = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    return (sides - 4 * middle).square().flatten(1).mean(1)


def motion(clips: Tensor) -> Tensor:
    """Returns (B,), the mean absolute change between consecutive frames."""
    if clips.shape[2] < 2:
        raise ValueError(f"motion_ratio: clips are {tuple(clips.shape)}; want at least 2 frames")
    return clips.float().diff(dim=2).abs().flatten(1).mean(1)


def static_share(generated: Tensor, real: Tensor) -> float:
    """Returns the fraction of clips with motion below STILL of the real clips' mean."""
    return (motion(generated) < STILL * motion(real).mean()).double().mean().item()


def temporal_flickering(clips: Tensor) -> Tensor:
    """Returns (B,), VBench's (255 - mean absolute change between frames in grey levels) / 255.

    1 has no motion; it counts motion as flicker.  VBench's range over models is 0.6293 to 1.
    """
    grey = grey_levels(clips)
    if grey.shape[2] < 2:
        raise ValueError(f"temporal_flickering: clips are {tuple(grey.shape)}; want at least 2 frames")
    change = grey.diff(dim=2).abs().flatten(1)
    return 1 - change.sum(1).double() / (255 * change.shape[1])


def sharpness_kept(clips: Tensor) -> Tensor:
    """Returns (B,), detail of the last frame over the first: below 1 the clip blurs over time."""
    return detail(clips[:, :, -1:]).double() / detail(clips[:, :, :1]).double().clamp(min=1e-12)


def colour_drift(clips: Tensor) -> Tensor:
    """Returns (B,), the largest distance of a frame's mean colour to the first frame's, in grey levels."""
    mean_BCT = grey_levels(clips).sum((3, 4)).double() / (clips.shape[3] * clips.shape[4])
    return (mean_BCT - mean_BCT[:, :, :1]).norm(dim=1).amax(1)


def grey_levels(clips: Tensor) -> Tensor:
    """Returns grey levels 0 to 255 as int16.  ValueError unless float (B, 3, T, H, W) and finite."""
    if clips.ndim != 5 or clips.shape[1] != 3 or not clips.is_floating_point():
        raise ValueError(f"clips are {clips.dtype} {tuple(clips.shape)}; want floats (B, 3, T, H, W) "
                         "in [-1, 1]")
    if not clips.isfinite().all():
        raise ValueError("clips have pixels that are NaN or infinite")
    return ((clips.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.int16)
