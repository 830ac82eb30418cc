"""Which clip comes at which position: every clip once an epoch, in a new order each time.

The order is a function of (seed, position) alone: not of the ranks, nor of how many there are, nor of where a
run was interrupted.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np
import torch

from swiftvideo_fast.seeds import generator

T = TypeVar("T")


class Order(Generic[T]):
    """passes: the clips of one epoch after another; after the last the first comes again."""

    def __init__(self, passes: Sequence[Sequence[T]]):
        self.passes = [items for items in passes if len(items)]
        self.ends = np.cumsum([len(items) for items in self.passes])
        self.total = int(self.ends[-1]) if len(self.ends) else 0

    def at(self, seed: int, position: int) -> T:
        _, which, number = self.place(seed, position)
        return self.passes[which][number]

    def place(self, seed: int, position: int) -> tuple[int, int, int]:
        """(epoch, pass, number of the clip in it)."""
        cycle, rest = divmod(position, self.total)
        which = int(np.searchsorted(self.ends, rest, side="right"))
        within = rest - int(self.ends[which] - len(self.passes[which]))
        epoch = cycle * len(self.passes) + which
        return epoch, which, int(_shuffled(len(self.passes[which]), seed, epoch)[within])


@lru_cache(maxsize=4)
def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return torch.randperm(count, generator=generator(seed, "epoch", epoch)).numpy()


def held_out(rows: Sequence[int], count: int) -> dict[str, list[int]]:
    """{"valid", "test"}: `count` rows each, the same in every run of one index."""
    shuffled = torch.randperm(len(rows), generator=generator(0, "held out")).tolist()
    valid, test = shuffled[:count], shuffled[count:2 * count]
    return {"valid": [rows[i] for i in valid], "test": [rows[i] for i in test]}
