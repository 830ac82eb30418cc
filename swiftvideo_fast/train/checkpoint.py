"""Checkpoints: folders `step-00000500`, written atomically, readable by any number of ranks.

A part of a run (student, average, ...) is a set of shards: one rank's flat slices of its tensors, named like
"student/exp_avg/blocks.0.ffn.0.weight".  Rank r writes rank-0000r.safetensors; a tensor's slices follow rank
order, so any slice can be read under another world size or without ranks.  state.json holds the shapes, the
files' digests and the caller's state; `complete`, written last, holds the digest of state.json.  No pickles.
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

from swiftvideo_fast.atomic import atomic_write, digest, sweep, temporary_of
from swiftvideo_fast.models.weights import check
from swiftvideo_fast.train.ranks import SINGLE_RANK, Ranks

STATE, COMPLETE = "state.json", "complete"
FOLDERS = "step-" + "[0-9]" * 8


@dataclass(frozen=True)
class Shard:
    """A flat slice of a tensor of `shape`, starting at element `begin`.  data: a view, filled on restore."""

    data: Tensor
    shape: tuple[int, ...]
    begin: int = 0

    @classmethod
    def whole(cls, tensor: Tensor) -> "Shard":
        return cls(tensor.detach().view(-1), tuple(tensor.shape))


class Part(Protocol):
    """A network as a checkpoint sees it: its shards, and a hook after they are restored."""

    def shards(self) -> dict[str, Shard]: ...

    def after_restore(self) -> None:
        """Called once the shards have been filled from a checkpoint."""


def save(run: Path, step: int, *, parts: dict[str, Part], state: dict, keep: int,
         ranks: Ranks = SINGLE_RANK) -> Path:
    """Writes run/step-XXXXXXXX atomically and removes all but the newest `keep`; returns the folder.

    Call on every rank; the folder is renamed into place once all have written.  OSError on a failed write.
    """
    shards = named(parts)
    target = run / f"step-{step:08d}"
    about = {"step": step, "shapes": {name: shard.shape for name, shard in shards.items()}} | state
    with atomic_write(target) if ranks.rank == 0 else nullcontext(temporary_of(target) / target.name) as tmp:
        ranks.run_all(lambda: _begin(tmp) if ranks.rank == 0 else "")
        digests = ranks.run_all(lambda: _write(tmp / rank_file(ranks.rank), shards, ranks.rank))
        ranks.run_all(lambda: _complete(tmp, about, digests) if ranks.rank == 0 else "")
    ranks.gather("renamed")
    if ranks.rank == 0:
        prune(run, keep)
    return target


def _begin(tmp: Path) -> str:
    tmp.mkdir()
    return ""


def _write(file: Path, shards: dict[str, Shard], rank: int) -> str:
    """Writes a rank's file; returns its digest.  Unsharded tensors are written by rank 0 alone."""
    save_file({name: shard.data for name, shard in shards.items()
               if rank == 0 or shard.data.numel() < math.prod(shard.shape)}, file)
    return digest(file)


def _complete(tmp: Path, about: dict, digests: list[str]) -> str:
    files = {rank_file(rank): digest for rank, digest in enumerate(digests)}
    (tmp / STATE).write_text(json.dumps(about | {"files": files}, indent=1))
    (tmp / COMPLETE).write_text(digest(tmp / STATE))
    return ""


def restore(saved: "Saved", parts: dict[str, Part]) -> dict:
    """Fills the parts; returns the saved state: {"step": ...} and the caller's keys.

    ValueError on wrong names or shapes; the parts are then unchanged.
    """
    shards = named(parts)
    saved.check_shapes(shards)
    for name, shard in shards.items():
        shard.data.copy_(saved.read(name, shard.begin, shard.begin + shard.data.numel()))
    for part in parts.values():
        part.after_restore()
    return saved.state


def last_good(run: Path, ranks: Ranks = SINGLE_RANK) -> "Saved | None":
    """Returns the newest checkpoint whose digests match; None when the run has none.

    Newer, damaged ones are renamed, with a warning.  Raises Damaged when all are damaged.
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
        warnings.warn(f"{why}; renamed to {spare.name}; resuming from {saved.folder}", stacklevel=2)
    return saved


class Damaged(ValueError):
    """Raised for a checkpoint whose bytes differ from those written."""


class Saved:
    """A checkpoint opened for reading.  Raises Damaged when state.json is missing or its digest differs."""

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

    def check(self, ranks: Ranks = SINGLE_RANK) -> None:
        """Raises Damaged when a file's digest differs from state.json's; each rank checks its share."""
        found = [self._check_file(name) for name in list(self.digests)[ranks.rank::ranks.world]]
        if wrong := [why for why in ranks.gather(next(filter(None, found), "")) if why]:
            raise Damaged(wrong[0])

    def _check_file(self, name: str) -> str:
        """Returns a file's error, or ""."""
        try:
            same = digest(self.folder / name) == self.digests[name]
            return "" if same else str(self._damaged(name, "its bytes are not those that were written"))
        except OSError as why:
            return str(self._damaged(name, why))

    def check_shapes(self, shards: dict[str, Shard]) -> None:
        """ValueError when names or shapes differ from those of `shards`."""
        check({name: tuple(shape) for name, shape in self.shapes.items()},
              {name: shard.shape for name, shard in shards.items()}, self.folder)

    def read(self, name: str, begin: int, end: int) -> Tensor:
        """Returns elements [begin, end) of the flattened tensor, read across rank files."""
        return torch.cat(list(self._slices(name, begin, end)) or [torch.empty(0)])

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Returns every full tensor under a prefix such as "student/weight/", named without the prefix."""
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


def prune(run: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints, and leftovers of killed writes and removals."""
    for old in folders(run)[:-keep]:
        old.rename(temporary_of(old))           # a kill during removal then leaves no partial checkpoint
    sweep(run)


def newest(run: Path) -> Path | None:
    """Returns a run's newest checkpoint, or None."""
    return max(folders(run), default=None)


def step_of(folder: Path) -> int:
    """Returns the number of steps taken before a checkpoint, from its name."""
    return int(folder.name.partition("-")[2])


def folders(run: Path) -> list[Path]:
    """Returns a run's checkpoints, oldest first."""
    return sorted(run.glob(FOLDERS))


def named(parts: dict[str, Part]) -> dict[str, Shard]:
    return {f"{part}/{name}": shard for part, of in parts.items() for name, shard in of.shards().items()}


def rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"
