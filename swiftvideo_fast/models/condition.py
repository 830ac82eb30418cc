"""Conditioning of a network (first frame, text, image tokens), and classifier-free guidance."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """frames: (B, m + C, T, H, W) = [mask | latent of the masked video].  text: (B, L, E).
    null_text: (L, E), the embedding of the empty text, shared by all clips.
    image: (B, M, E') tokens of the first frame, or None."""

    frames: Tensor
    text: Tensor
    null_text: Tensor
    image: Tensor | None = None

    def __getitem__(self, rows) -> "Condition":
        return self.map(lambda x: x[rows])

    def to(self, device: torch.device | str) -> "Condition":
        return replace(self.map(lambda x: x.to(device)), null_text=self.null_text.to(device))

    def map(self, per_clip: Callable[[Tensor], Tensor]) -> "Condition":
        """Applies per_clip to every tensor with one row per clip."""
        image = None if self.image is None else per_clip(self.image)
        return Condition(per_clip(self.frames), per_clip(self.text), self.null_text, image)

    def drop_text(self, dropped_B: Tensor) -> "Condition":
        """Replaces the text of the clips in the mask dropped_B by the null text."""
        return replace(self, text=torch.where(dropped_B[:, None, None], self.null_text, self.text))


def first_frame_condition(pixels_BCTHW: Tensor, encode: Callable[[Tensor], Tensor], stride_t: int) -> Tensor:
    """Returns the image-to-video condition, (B, stride_t + C, t, h, w): first frame known, rest to generate.

    pixels: (B, 3, T, H, W) in [-1, 1].  Frames after the first are set to 0 (mid-grey) before encoding, as in
    Wan's released pipeline.  The mask, stride_t channels, is 1 for known frames: in latent frame 0.
    """
    masked = torch.zeros_like(pixels_BCTHW)
    masked[:, :, :1] = pixels_BCTHW[:, :, :1]
    latent = encode(masked)
    mask = torch.zeros_like(latent[:, :stride_t])
    mask[:, :, 0] = 1
    return torch.cat([mask, latent], 1)


def guided(call: Callable[..., Tensor], x_t: Tensor, t: Tensor, condition: Condition,
           guidance: float | Tensor = 1.0, s: Tensor | None = None) -> Tensor:
    """u + guidance (c - u) (Ho & Salimans); u has the null text, and is otherwise conditioned as c.

    Guidance 1 evaluates c alone; any other value, or a tensor (B,), evaluates both in one batch.
    s: the second time of a flow map, for call(x_t, t, condition, s).
    """
    second = () if s is None else (s,)
    if not isinstance(guidance, Tensor) and guidance == 1.0:
        return call(x_t, t, condition, *second)
    both = condition.map(lambda x: torch.cat([x, x]))
    null = condition.null_text.expand_as(condition.text)
    both = replace(both, text=torch.cat([condition.text, null]))
    c, u = call(torch.cat([x_t, x_t]), torch.cat([t, t]), both, *[torch.cat([s, s]) for s in second]).chunk(2)
    if isinstance(guidance, Tensor):
        guidance = guidance.view(-1, *[1] * (u.dim() - 1)).to(u)
    return u + guidance * (c - u)
