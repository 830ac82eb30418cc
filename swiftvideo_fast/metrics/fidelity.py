"""Figures a distribution distance cannot give: is it the teacher's trajectory, as sharp, as moving, as begun?

Clips are (B, 3, T, H, W) in [-1, 1].  Functions of one clip give (B,); ratios are of the sets' means.
"""

import torch
from torch import Tensor

STILL = 0.3     # below this motion ratio a set counts as copies of the first frame


def trajectory_error(z: Tensor, z_teacher: Tensor) -> Tensor:
    """(B,) mean squared difference of latents to the teacher's many-step sample from the same noise."""
    if z.shape != z_teacher.shape:
        raise ValueError(f"trajectory_error: z is {tuple(z.shape)}, z_teacher {tuple(z_teacher.shape)}; "
                         "they must match, clip for clip")
    return (z.double() - z_teacher.double()).square().flatten(1).mean(1)


def detail_ratio(generated: Tensor, real: Tensor) -> float:
    """High-frequency energy of generated over real: below 1 is blurred, above is noisy or over-contrasted.

    Energy is that of the frames' Laplacian; a Fourier band would count the crop's edges as detail.
    """
    return (detail(generated).mean() / detail(real).mean()).item()


def first_frame_psnr(clips: Tensor, first_BCHW: Tensor) -> Tensor:
    """(B,) dB between each clip's first frame and the condition; 99 where they are equal."""
    error = (clips[:, :, 0].double() - first_BCHW.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(4 / error)).clamp(max=99.0)


def motion_ratio(generated: Tensor, real: Tensor) -> float:
    """Mean absolute change from frame to frame, of generated over real; below STILL it is a static copy."""
    return (motion(generated).mean() / motion(real).mean()).item()


def detail(clips: Tensor) -> Tensor:
    """(B,) energy of the frames' Laplacian."""
    x = clips.float()
    middle = x[..., 1:-1, 1:-1]
    sides = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    return (sides - 4 * middle).square().flatten(1).mean(1)


def motion(clips: Tensor) -> Tensor:
    """(B,) mean absolute change from frame to frame."""
    if clips.shape[2] < 2:
        raise ValueError(f"motion_ratio: clips are {tuple(clips.shape)}; want at least 2 frames")
    return clips.float().diff(dim=2).abs().flatten(1).mean(1)
