"""Seeded random space-time crops of the demo's clips, with a static or panning crop window.

With random panning and time reversal, the first frame and the caption do not determine the clip.  A few-step
sampler that averages over the possible motions then visibly blurs.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from swiftvideo_fast.config.strict import NATURAL, POSITIVE, Limit, option, want
from swiftvideo_fast.data.batch import Batch, joined
from swiftvideo_fast.data.clips import Clip, demo_clips
from swiftvideo_fast.data.shots import SPLITS, changes, shots, split
from swiftvideo_fast.data.source import SourceOptions, draw_rows
from swiftvideo_fast.models.family import Codec, Latent
from swiftvideo_fast.models.toy.codec import PcaCodec
from swiftvideo_fast.provenance import device_memory
from swiftvideo_fast.seeds import seed_of

PANS = 0, 1, -1     # still, right, left
CHUNK = 256         # crops per encoding batch


@dataclass(frozen=True)
class Crops:
    """pixels: (B, 3, T, H, W) float32 in [-1, 1].  captions: B strings."""

    pixels: Tensor
    captions: list[str]


class CropSource:
    """Crops of `frames` frames of size x size pixels from one split of the clips.

    speed: panning in pixels per frame, rounded down to whole pixels.  pace: source frames per output frame
    (interpolated).  Clips without a shot that fits the window are listed in `skipped`; ValueError when no
    clip fits.
    """

    def __init__(self, clips: list[Clip], part: str, *, frames: int, size: int, speed: float = 0.5,
                 pace: float = 1.0):
        if part not in SPLITS:
            raise ValueError(f"CropSource: part is {part!r}; want one of {SPLITS}")
        self.frames, self.size, self.speed, self.pace = frames, size, speed, pace
        self.span = 1 + ceil(pace * (frames - 1))
        reach = size + int(speed * (frames - 1))
        window = max(frames, self.span)
        self.skipped, self.windows, self.captions = [], [], []
        for clip in clips:
            T, H, W, _ = clip.frames.shape
            change = changes(clip.frames)
            runs = [r for s in shots(change) for r in split(s, window, change)[part] if len(r) >= self.span]
            if not runs or size > H or reach > W:
                self.skipped.append(f"{clip.name} ({T} frames of {W}x{H}) has no {part} window of "
                                    f"{self.span} frames of {reach}x{size}")
                continue
            self.windows.append([clip.frames[r.start:r.stop] for r in runs])
            self.captions.append(clip.caption)
        if not self.windows:
            raise ValueError("no clip fits the window: " + "; ".join(self.skipped))

    def draw(self, count: int, seed: int) -> Crops:
        """Draws `count` crops as a function of the seed.  Clips are drawn uniformly, shots by length."""
        rng = np.random.default_rng(seed)
        drawn = [self._one(rng) for _ in range(count)]
        stacked = np.stack([pixels for pixels, _ in drawn])
        pixels = torch.from_numpy(stacked).permute(0, 4, 1, 2, 3).contiguous().float() / 127.5 - 1
        return Crops(pixels, [caption for _, caption in drawn])

    def _one(self, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        which = rng.integers(len(self.windows))
        places = np.array([len(r) - self.span + 1 for r in self.windows[which]])
        run = self.windows[which][rng.choice(len(places), p=places / places.sum())]
        start = rng.integers(len(run) - self.span + 1)
        window = run[start:start + self.span][::rng.choice((1, -1))]

        xs = rng.choice(PANS) * (self.speed * np.arange(self.frames)).astype(int)
        xs -= xs.min()
        x0 = rng.integers(window.shape[2] - self.size - xs.max() + 1)
        y0 = rng.integers(window.shape[1] - self.size + 1)

        def cropped(frames: np.ndarray) -> np.ndarray:
            return np.stack([window[i, y0:y0 + self.size, x:x + self.size]
                             for i, x in zip(frames, x0 + xs, strict=True)])

        at = self.pace * np.arange(self.frames)
        before, after = np.floor(at).astype(int), np.ceil(at).astype(int)
        part = (at - before).astype(np.float32)[:, None, None, None]
        crop = ((1 - part) * cropped(before) + part * cropped(after)).round().astype(np.uint8)
        return crop, self.captions[which]


@dataclass(frozen=True, kw_only=True)
class CropOptions(SourceOptions):
    """Crops of the demo's clips.

    frames: frames per crop, 4n + 1.  size: side of a crop in pixels.  height: clips are scaled to this
    height, pixels.  speed: panning, pixels per frame.  pace: source frames per output frame (interpolated).
    pool: crops encoded in advance.
    """

    name: ClassVar[str] = "crops"
    frames: int = 17
    size: int = 64
    height: int = option(Limit(lambda x: 0 < x <= 4320, "1 to 4,320 pixels"), 72)
    speed: float = option(NATURAL, 0.5)
    pace: float = option(POSITIVE, 1.0)
    pool: int = option(POSITIVE, 2048)

    def shape(self, latent: Latent) -> tuple[int, int, int]:
        want(self.height >= self.size, "data.height", self.height, f"at least data.size = {self.size}")
        return latent.shape(self.frames, self.size, self.size, "data")


class EncodedCrops:
    """The source `crops`: a pool of encoded crops in memory."""

    Options = CropOptions
    prefetch = False                            # drawing indexes memory
    footage = staticmethod(demo_clips)          # height -> the clips to crop

    def __init__(self, options: CropOptions, codec: Codec, seed: int, pixels: bool = False):
        self.options, self.codec, self.seed, self.pixels = options, codec, seed, pixels

    def draw(self, count: int, seed: int, position: int) -> Batch:
        return self.pool[draw_rows(len(self.pool), count, seed, position)]

    def close(self) -> None: ...

    @cached_property
    def pool(self) -> Batch:
        self._check_pool()
        return self.clips("train", self.options.pool, self.seed)

    def _check_pool(self) -> None:
        """Raises ValueError when the pool would not fit in the machine's memory."""
        o, one = self.options, self.cropper(self.options, "train").draw(1, self.seed)
        x0, condition = self.codec.encode(one.pixels, one.captions)
        kept = [x0, condition.frames, condition.text, condition.image]
        per_crop = sum(x.nbytes for x in kept if x is not None) + self.pixels * one.pixels.numel()
        held = device_memory(torch.device("cpu"))
        want(o.pool * per_crop <= held, "data.pool", o.pool, f"at most {held // per_crop}: a crop takes "
             f"{per_crop / 1e6:.3g} MB, all {o.pool * per_crop / 1e9:,.0f} GB, and this machine has "
             f"{held / 1e9:.0f} GB")

    def clips(self, split: str, count: int, seed: int, first: int = 0) -> Batch:
        """As Source.clips; warns about clips that are left out."""
        source, batches, end = self.cropper(self.options, split), [], first + count
        for clip in source.skipped:
            warnings.warn(f"left out: {clip}", stacklevel=2)
        for start in range(first - first % CHUNK, end, CHUNK):
            crops = source.draw(min(CHUNK, end - start), seed_of(seed, "crops", start))
            x0, condition = self.codec.encode(crops.pixels, crops.captions)
            pixels = ((crops.pixels + 1) * 127.5).round().byte() if self.pixels else None
            batches.append(Batch(x0, condition, crops.captions, pixels=pixels))
        return joined(batches)[first % CHUNK:]

    def size(self, split: str) -> None:
        return None

    def summary(self) -> str:
        self._check_pool()
        crops = self.cropper(self.options, "train")
        return "; left out: ".join([f"{len(crops.windows)} clips fit the window", *crops.skipped])

    @classmethod
    def cropper(cls, options: CropOptions, split: str) -> CropSource:
        """Returns the crops of a split, as pixels."""
        return CropSource(list(cls.footage(options.height)), split, frames=options.frames, size=options.size,
                          speed=options.speed, pace=options.pace)


def fit_codec(source: CropSource, seed: int, count: int = 512) -> PcaCodec:
    """Fits the demo's PCA codec to `count` seeded crops."""
    return PcaCodec.fit(source.draw(count, seed_of(seed, "codec")).pixels)
