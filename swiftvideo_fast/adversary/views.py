"""The critic's view of a clip: a window of frames, a crop, an augmentation; drawn once for real and fake."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT, HOLE = 8, 2          # translation up to side / 8; cutout of side / 2


@dataclass(frozen=True)
class View:
    """start: first latent frame of the window.  corner: of the crop, as a fraction of its range.
    u: (B, 7) in [0, 1), each clip's augmentation, equal for all its frames."""

    start: int
    corner: tuple[float, float]
    u: Tensor

    def of(self, pixels_BCTHW: Tensor, crop: int) -> Tensor:
        """Returns pixels (B, 3, T, H, W) cropped to at most crop x crop, then augmented (DiffAugment: colour,
        translation, cutout)."""
        y, x = (int(share * max(side - crop + 1, 1))
                for share, side in zip(self.corner, pixels_BCTHW.shape[3:]))
        tint, move, hole = self.u.to(pixels_BCTHW).split([3, 2, 2], 1)
        return cut_out(shift(colour(pixels_BCTHW[..., y:y + crop, x:x + crop], tint), move), hole)


def draw_view(clips: int, frames: int, window: int, rng: torch.Generator) -> View:
    """Draws a view of `clips` clips: `window` of `frames` latent frames.  rng: a CPU generator."""
    start = int(torch.randint(frames - window + 1, (), generator=rng))
    y, x = torch.rand(2, generator=rng).tolist()
    return View(start, (y, x), torch.rand(clips, 7, generator=rng))


def colour(x_BCTHW: Tensor, u_B3: Tensor) -> Tensor:
    """Adds up to +-0.5 brightness, scales saturation by 0 to 2 and contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = u_B3.T[..., None, None, None, None]
    x = x_BCTHW + brightness - 0.5
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * 2 * saturation
    mean = x.mean((1, 2, 3, 4), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def shift(x_BCTHW: Tensor, u_B2: Tensor) -> Tensor:
    """Translates by up to side / SHIFT, padding with 0."""
    H, W = x_BCTHW.shape[3:]
    h, w = H // SHIFT, W // SHIFT
    padded = F.pad(x_BCTHW, (w, w, h, h))
    corners = [(int(y * (2 * h + 1)), int(x * (2 * w + 1))) for y, x in u_B2.tolist()]
    return torch.stack([clip[..., y:y + H, x:x + W] for clip, (y, x) in zip(padded, corners)])


def cut_out(x_BCTHW: Tensor, u_B2: Tensor) -> Tensor:
    """Zeroes a hole of side / HOLE, centred anywhere in the frame."""
    inside = []
    for side, centre in zip(x_BCTHW.shape[3:], u_B2.T):
        middle = (centre * side)[:, None]
        inside.append((torch.arange(side, device=u_B2.device) + 0.5 - middle).abs() < side / (2 * HOLE))
    rows, columns = inside
    return x_BCTHW.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None, None], 0)
