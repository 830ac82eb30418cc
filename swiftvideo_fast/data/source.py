"""The source protocol: clips by (seed, position)."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from swiftvideo_fast.config.strict import POSITIVE, option
from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.models.family import Codec, Latent
from swiftvideo_fast.seeds import generator


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Base options of every source; data.name selects the source by its options' `name`.

    batch: clips per optimizer step, over all ranks.
    """

    name: ClassVar[str]
    batch: int = option(POSITIVE, 16)

    def shape(self, latent: Latent) -> tuple[int, int, int]:
        """Returns the latent shape (T, H, W) of a clip; ValueError for a size the codec does not accept."""
        raise NotImplementedError


class Drawn(Protocol):
    """Training batches by position.  prefetch: whether draw is slow enough for data/prefetch.py."""

    prefetch: ClassVar[bool]

    def draw(self, count: int, seed: int, position: int) -> Batch:
        """Returns `count` training clips, a function of (seed, position)."""

    def summary(self) -> str:
        """Returns one line for --dry-run: clips available and left out.  ValueError where draw raises it."""

    def close(self) -> None:
        """Releases threads and files; draw must not be called afterwards."""


class Source(Drawn, Protocol):
    """The clips of a data section.  Options: a SourceOptions.  pixels: batches include pixels."""

    Options: type[SourceOptions]

    def __init__(self, options: SourceOptions, codec: Codec, seed: int, pixels: bool = False): ...

    def clips(self, split: str, count: int, seed: int, first: int = 0) -> Batch:
        """Returns clips first to first + count - 1 of a split: train, valid or test.  Clip n is a function of
        split, seed and n."""

    def size(self, split: str) -> int | None:
        """Returns the number of clips of a split, after which `clips` repeats; None if unlimited."""


def draw_rows(rows: int, count: int, seed: int, position: int) -> torch.Tensor:
    """Draws (count,) row numbers below `rows`, with replacement."""
    return torch.randint(rows, (count,), generator=generator(seed, "clips", position))
