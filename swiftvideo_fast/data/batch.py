"""A batch of clips: latents, conditions, captions, optionally pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from swiftvideo_fast.models.condition import Condition


@dataclass(frozen=True)
class Batch:
    """x0: (B, C, T, H, W) latents.  pixels: (B, 3, frames, height, width) uint8, or None."""

    x0: Tensor
    condition: Condition
    captions: list[str]
    pixels: Tensor | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.x0)

    def __getitem__(self, rows) -> "Batch":
        return replace(self, **self._selected(rows))

    def _selected(self, rows) -> dict:
        picked = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        pixels = None if self.pixels is None else self.pixels[rows]
        return {"x0": self.x0[rows], "condition": self.condition[rows],
                "captions": [self.captions[i] for i in picked], "pixels": pixels}

    def real_pixels(self, frames: slice) -> Tensor:
        """Returns the source pixels of some frames, (B, 3, T, H, W) in [-1, 1]."""
        return self.pixels[:, :, frames].float() / 127.5 - 1

    def to(self, device: torch.device) -> "Batch":
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: x.to(device) for name, x in values.items() if hasattr(x, "to")})


def joined(batches: Sequence[Batch]) -> Batch:
    """Returns the concatenation of batches, with the null text of the first."""
    first = batches[0].condition
    image = None if first.image is None else torch.cat([b.condition.image for b in batches])
    condition = Condition(torch.cat([b.condition.frames for b in batches]),
                          torch.cat([b.condition.text for b in batches]), first.null_text, image)
    pixels = None if batches[0].pixels is None else torch.cat([b.pixels for b in batches])
    return Batch(torch.cat([b.x0 for b in batches]), condition,
                 [caption for b in batches for caption in b.captions], pixels=pixels)
