"""The order of clips: every clip once per epoch, reshuffled each epoch.

The clip is a function of (seed, position) alone, independent of ranks, world size and interruptions.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np
import torch

from swiftvideo_fast.seeds import generator

T = TypeVar("T")


class Order(Generic[T]):
    """Maps positions to clips.  passes: the clips of consecutive epochs, repeated cyclically."""

    def __init__(self, passes: Sequence[Sequence[T]]):
        self.passes = [items for items in passes if len(items)]
        self.ends = np.cumsum([len(items) for items in self.passes])
        self.total = int(self.ends[-1]) if len(self.ends) else 0

    def at(self, seed: int, position: int) -> T:
        _, which, number = self.place(seed, position)
        return self.passes[which][number]

    def place(self, seed: int, position: int) -> tuple[int, int, int]:
        """Returns (epoch, pass, index of the clip in that pass)."""
        cycle, rest = divmod(position, self.total)
        which = int(np.searchsorted(self.ends, rest, side="right"))
        within = rest - int(self.ends[which] - len(self.passes[which]))
        epoch = cycle * len(self.passes) + which
        return epoch, which, int(_shuffled(len(self.passes[which]), seed, epoch)[within])


@lru_cache(maxsize=4)
def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return torch.randperm(count, generator=generator(seed, "epoch", epoch)).numpy()


def held_out(rows: Sequence[int], count: int) -> dict[str, list[int]]:
    """Returns {"valid", "test"}: `count` rows each, a function of the rows alone."""
    shuffled = torch.randperm(len(rows), generator=generator(0, "held out")).tolist()
    valid, test = shuffled[:count], shuffled[count:2 * count]
    return {"valid": [rows[i] for i in valid], "test": [rows[i] for i in test]}
