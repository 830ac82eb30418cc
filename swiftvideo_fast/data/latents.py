"""Latents with their conditions, held in memory, drawn by position."""

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from swiftvideo_fast.data.crops import CropSource
from swiftvideo_fast.models.codec import PcaCodec
from swiftvideo_fast.models.conditioning import STRIDE_T, Condition, first_frame_condition
from swiftvideo_fast.models.encoders import WordVectors
from swiftvideo_fast.seeds import generator, seed_of


@dataclass(frozen=True)
class Latents:
    """x0: (B, 16, T, H, W), what the network is told of each clip, and its caption in words.

    pixels: (B, 3, 4T - 3, 8H, 8W) uint8, where they are kept.
    """

    x0: Tensor
    condition: Condition
    captions: list[str]
    pixels: Tensor | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.x0)

    def __getitem__(self, rows) -> "Latents":
        picked = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        pixels = None if self.pixels is None else self.pixels[rows]
        captions = [self.captions[i] for i in picked]
        return Latents(self.x0[rows], self.condition[rows], captions, pixels=pixels)

    def filmed(self, start: int, count: int) -> Tensor:
        """The kept pixels of latent frames start to start + count, in [-1, 1]."""
        first, last = (max(STRIDE_T * (i - 1) + 1, 0) for i in (start, start + count))
        return self.pixels[:, :, first:last].float() / 127.5 - 1

    def to(self, device: torch.device) -> "Latents":
        """All that can be moved, there."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: x.to(device) for name, x in own.items() if hasattr(x, "to")})

    def draw(self, count: int, seed: int, clips_seen: int) -> "Latents":
        """`count` clips drawn with replacement; the same (seed, clips_seen) draws the same."""
        return self[torch.randint(len(self), (count,), generator=generator(seed, "clips", clips_seen))]


def encode_crops(source: CropSource, count: int, seed: int, codec: PcaCodec, text: WordVectors,
                 batch: int = 256, keep_pixels: bool = False) -> Latents:
    """`count` seeded crops through the codec.  The same arguments give the same latents."""
    x0, frames, captions, pixels = [], [], [], []
    for start in range(0, count, batch):
        crops = source.draw(min(batch, count - start), seed_of(seed, "crops", start))
        x0.append(codec.encode(crops.pixels))
        frames.append(first_frame_condition(crops.pixels, codec.encode))
        captions += crops.captions
        if keep_pixels:
            pixels.append(((crops.pixels + 1) * 127.5).round().byte())
    embedded = text(captions)
    condition = Condition(torch.cat(frames), embedded, torch.zeros_like(embedded))
    return Latents(torch.cat(x0), condition, captions, pixels=torch.cat(pixels) if pixels else None)


def fit_codec(source: CropSource, seed: int, count: int = 512) -> PcaCodec:
    """The codec of `count` seeded crops."""
    return PcaCodec.fit(source.draw(count, seed_of(seed, "codec")).pixels)
