"""Where a run's clips come from."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from swiftvideo_fast.config.strict import POSITIVE, option
from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.models.family import Codec, Latent
from swiftvideo_fast.seeds import generator


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Of every source: its own options extend these, under the `name` that data.name chooses it by.

    batch: clips an optimizer step, over all ranks.
    """

    name: ClassVar[str]
    batch: int = option(POSITIVE, 16)

    def shape(self, latent: Latent) -> tuple[int, int, int]:
        """(T, H, W) of its clips' latents; ValueError for a size the codec does not take."""
        raise NotImplementedError


class Drawn(Protocol):
    """What training draws from, by position.  prefetch: whether drawing takes long enough to be done ahead of
    the step, on a thread (data/prefetch.py)."""

    prefetch: ClassVar[bool]

    def draw(self, count: int, seed: int, position: int) -> Batch:
        """`count` training clips; the same (seed, position) draws the same."""

    def summary(self) -> str:
        """One line for --dry-run: what there is to draw, what is left out.  ValueError as drawing would."""

    def close(self) -> None:
        """Let go of threads and files; nothing is drawn after it."""


class Source(Drawn, Protocol):
    """Clips of a data section.  Options: a SourceOptions.  pixels: batches keep their pixels as well."""

    Options: type[SourceOptions]

    def __init__(self, options: SourceOptions, codec: Codec, seed: int, pixels: bool = False): ...

    def clips(self, split: str, count: int, seed: int, first: int = 0) -> Batch:
        """Clips `first` to first + count of a split: train, valid or test.  Clip n depends on the split, the
        seed and n."""

    def size(self, split: str) -> int | None:
        """How many clips a split has, after which `clips` begins again; None where there is no end."""


def draw_rows(rows: int, count: int, seed: int, position: int) -> torch.Tensor:
    """(count,) row numbers below `rows`, drawn with replacement."""
    return torch.randint(rows, (count,), generator=generator(seed, "clips", position))
