"""A run on disk: folders `step-00000500`, each whole or absent.

A part of a run (student, average, ...) is a set of shards: flat slices of tensors, those of one rank, named
"student/exp_avg/blocks.0.ffn.0.weight".  Rank r writes rank-0000r.safetensors; the slices of a tensor lie in
them in the order of ranks, so any number of ranks, or none, reads any slice of any tensor.  state.json has
the shapes, the files' digests and what the caller adds; `complete`, written last, has the digest of
state.json.  Nothing in it is code.
"""

import json
import math
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from swiftvideo_fast.atomic import aside_of, atomic_write, digest, sweep
from swiftvideo_fast.models.weights import check
from swiftvideo_fast.train.ranks import ALONE, Ranks

STATE, COMPLETE = "state.json", "complete"
FOLDERS = "step-" + "[0-9]" * 8


@dataclass(frozen=True)
class Shard:
    """data: flat and live, the slice from `begin` of a tensor of that shape."""

    data: Tensor
    shape: tuple[int, ...]
    begin: int = 0

    @classmethod
    def whole(cls, tensor: Tensor) -> "Shard":
        return cls(tensor.detach().view(-1), tuple(tensor.shape))


class Part(Protocol):
    """What a checkpoint keeps of a network."""

    def shards(self) -> dict[str, Shard]: ...

    def after_restore(self) -> None:
        """Called once the shards have been filled."""


def save(run: Path, step: int, *, parts: dict[str, Part], state: dict, keep: int,
         ranks: Ranks = ALONE) -> Path:
    """Write run/step-XXXXXXXX and drop all but the newest `keep`.  Atomic; OSError when the disk refuses.

    To be called on every rank; the folder gets its name once all have written.
    """
    shards = named(parts)
    target = run / f"step-{step:08d}"
    about = {"step": step, "shapes": {name: shard.shape for name, shard in shards.items()}} | state
    with atomic_write(target) if ranks.rank == 0 else nullcontext(aside_of(target) / target.name) as aside:
        ranks.together(lambda: _begin(aside) if ranks.rank == 0 else "")
        digests = ranks.together(lambda: _write(aside / rank_file(ranks.rank), shards, ranks.rank))
        ranks.together(lambda: _complete(aside, about, digests) if ranks.rank == 0 else "")
    ranks.gather("renamed")
    if ranks.rank == 0:
        tidy(run, keep)
    return target


def _begin(aside: Path) -> str:
    aside.mkdir()
    return ""


def _write(file: Path, shards: dict[str, Shard], rank: int) -> str:
    """The digest of the file; what every rank holds whole is written by the first."""
    save_file({name: shard.data for name, shard in shards.items()
               if rank == 0 or shard.data.numel() < math.prod(shard.shape)}, file)
    return digest(file)


def _complete(aside: Path, about: dict, digests: list[str]) -> str:
    files = {rank_file(rank): digest for rank, digest in enumerate(digests)}
    (aside / STATE).write_text(json.dumps(about | {"files": files}, indent=1))
    (aside / COMPLETE).write_text(digest(aside / STATE))
    return ""


def restore(saved: "Saved", parts: dict[str, Part]) -> dict:
    """Fill the parts; returns the state saved with them, {"step": ...} and what the caller added.

    ValueError names what does not fit; then the parts are as they were.
    """
    shards = named(parts)
    saved.fit(shards)
    for name, shard in shards.items():
        shard.data.copy_(saved.read(name, shard.begin, shard.begin + shard.data.numel()))
    for part in parts.values():
        part.after_restore()
    return saved.state


def last_good(run: Path, ranks: Ranks = ALONE) -> "Saved | None":
    """The newest checkpoint whose bytes are those that were written; None where a run has no checkpoint.

    Damaged ones that are newer are set aside, under another name, with a warning.  Damaged when none is good.
    """
    damaged = []
    for folder in reversed(folders(run)):
        try:
            saved = Saved(folder)
            saved.check(ranks)
            break
        except Damaged as why:
            damaged.append((folder, why))
    else:
        if damaged:
            raise Damaged(f"{damaged[0][1]}, and no older one is good; restore it, or start again in another "
                          "run.dir")
        return None
    ranks.gather("checked")
    for folder, why in damaged if ranks.rank == 0 else ():
        spare = next(name for n in count(1) if not (name := run / f"{folder.name}.damaged-{n}").exists())
        folder.rename(spare)
        warnings.warn(f"{why}; it is now {spare.name}, and the run goes on from {saved.folder}", stacklevel=2)
    return saved


class Damaged(ValueError):
    """A checkpoint that is not what was written."""


class Saved:
    """A checkpoint to read from.  Damaged when its state.json is missing or not what was written."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            if (folder / COMPLETE).read_text() != digest(folder / STATE):
                raise ValueError(f"{COMPLETE} has another digest")
            self.state = json.loads((folder / STATE).read_text())
            step, self.digests, self.shapes = (self.state[key] for key in ("step", "files", "shapes"))
            if folder.name != f"step-{step:08d}":
                raise ValueError(f"it says step {step}")
            if [*self.digests] != [rank_file(rank) for rank in range(len(self.digests))]:
                raise ValueError("it names other files than the ranks'")
        except (OSError, ValueError, KeyError, TypeError) as why:
            raise self._damaged(STATE, why) from why

    def check(self, ranks: Ranks = ALONE) -> None:
        """Damaged when a file has not the digest that state.json has of it; the ranks share out the files."""
        found = [self._look(name) for name in list(self.digests)[ranks.rank::ranks.world]]
        if wrong := [why for why in ranks.gather(next(filter(None, found), "")) if why]:
            raise Damaged(wrong[0])

    def _look(self, name: str) -> str:
        """What is wrong with a file, if anything."""
        try:
            same = digest(self.folder / name) == self.digests[name]
            return "" if same else str(self._damaged(name, "its bytes are not those that were written"))
        except OSError as why:
            return str(self._damaged(name, why))

    def fit(self, shards: dict[str, Shard]) -> None:
        """ValueError for names and shapes that are not the wanted ones."""
        check({name: tuple(shape) for name, shape in self.shapes.items()},
              {name: shard.shape for name, shard in shards.items()}, self.folder)

    def read(self, name: str, begin: int, end: int) -> Tensor:
        """[begin, end) of the flat tensor."""
        return torch.cat(list(self._slices(name, begin, end)) or [torch.empty(0)])

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Every tensor under "student/weight/" or the like, whole and in its shape, named by what follows."""
        return {name.removeprefix(prefix): self.read(name, 0, math.prod(shape)).view(shape)
                for name, shape in self.shapes.items() if name.startswith(prefix)}

    def _slices(self, name: str, begin: int, end: int) -> Iterator[Tensor]:
        at = 0
        for tensors in self._files:
            if name in tensors.keys():                  # noqa: SIM118  (no dict)
                part = tensors.get_slice(name)
                length, = part.get_shape()
                if at < end and begin < at + length:
                    yield part[max(0, begin - at):end - at]
                at += length

    @cached_property
    def _files(self) -> list[safe_open]:
        return [safe_open(self.folder / name, "pt") for name in sorted(self.digests)]

    def _damaged(self, name: str, why: object) -> Damaged:
        return Damaged(f"{self.folder / name}: damaged checkpoint ({why})")


def tidy(run: Path, keep: int) -> None:
    """Drop all but the newest `keep` checkpoints, and what a kill left half-written or half-dropped."""
    for old in folders(run)[:-keep]:
        old.rename(aside_of(old))           # so that a kill here leaves no half of it under its name
    sweep(run)


def newest(run: Path) -> Path | None:
    """The last checkpoint of a run, if there is one."""
    return max(folders(run), default=None)


def step_of(folder: Path) -> int:
    """The steps taken before a checkpoint, by its name."""
    return int(folder.name.partition("-")[2])


def folders(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(run.glob(FOLDERS))


def named(parts: dict[str, Part]) -> dict[str, Shard]:
    return {f"{part}/{name}": shard for part, of in parts.items() for name, shard in of.shards().items()}


def rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"
