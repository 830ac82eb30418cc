"""What the network is told besides x_t and t, and guidance by it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

STRIDE_T = 4        # pixel frames a latent frame, after the first


@dataclass(frozen=True)
class Condition:
    """frames: (B, 20, T, H, W) = [mask 4 | masked video's latent 16].  text, null_text: (B, L, E).
    image: (B, M, E') tokens of the first frame, or None."""

    frames: Tensor
    text: Tensor
    null_text: Tensor
    image: Tensor | None = None

    def __getitem__(self, rows) -> "Condition":
        image = None if self.image is None else self.image[rows]
        return Condition(self.frames[rows], self.text[rows], self.null_text[rows], image)

    def to(self, device: torch.device) -> "Condition":
        image = None if self.image is None else self.image.to(device)
        return Condition(self.frames.to(device), self.text.to(device), self.null_text.to(device), image)

    def without_text(self) -> "Condition":
        return replace(self, text=self.null_text)


def first_frame_condition(pixels_BCTHW: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """The image-to-video condition: the first frame known, the rest to generate.

    pixels: (B, 3, 4n+1, H, W) in [-1, 1].  Frames after the first become 0 (mid-grey) and go through the
    codec, as in Wan's released pipeline; the mask is 1 where a frame is known: all four channels of latent
    frame 0.  Returns (B, 20, n+1, H/8, W/8).
    """
    masked = torch.zeros_like(pixels_BCTHW)
    masked[:, :, :1] = pixels_BCTHW[:, :, :1]
    latent = encode(masked)
    mask = torch.zeros_like(latent[:, :STRIDE_T])
    mask[:, :, 0] = 1
    return torch.cat([mask, latent], 1)


def velocity(net, x_t: Tensor, t: Tensor, condition: Condition, guidance: float = 1.0) -> Tensor:
    """u + guidance (c - u), the Ho & Salimans form; only the text differs between c and u.

    Guidance 1 is one evaluation of c; any other, one evaluation of both stacked.
    """
    if guidance == 1.0:
        return net(x_t, t, condition.text, condition.frames, condition.image)
    image = None if condition.image is None else torch.cat([condition.image] * 2)
    both = net(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([condition.text, condition.null_text]),
               torch.cat([condition.frames] * 2), image)
    c, u = both.chunk(2)
    return u + guidance * (c - u)
