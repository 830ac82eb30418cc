"""A run on disk: folders `step-00000500`, each whole or absent.

A part of a run (student, average, ...) is a set of pieces: flat stretches of tensors, those of one rank,
named "student/exp_avg/blocks.0.ffn.0.weight".  Rank r writes rank-0000r.safetensors; the stretches of a
tensor lie in them in the order of ranks, so any number of ranks, or none, reads any stretch of any tensor.
state.json has the shapes, the files' digests and what the caller adds; `complete`, written last, has the
digest of state.json.  Nothing in it is code.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from swiftvideo_fast.atomic import aside_of, sweep, whole

STATE, COMPLETE = "state.json", "complete"
FOLDERS = "step-" + "[0-9]" * 8


@dataclass(frozen=True)
class Piece:
    """data: flat and live, the stretch from `begin` of a tensor of that shape."""

    data: Tensor
    shape: tuple[int, ...]
    begin: int = 0

    @classmethod
    def whole(cls, tensor: Tensor) -> "Piece":
        return cls(tensor.detach().view(-1), tuple(tensor.shape))


class Part(Protocol):
    """What a checkpoint keeps of a network."""

    def pieces(self) -> dict[str, Piece]: ...

    def settle(self) -> None:
        """Called once the pieces have been filled."""


def save(run: Path, step: int, *, parts: dict[str, Part], state: dict, keep: int) -> Path:
    """Write run/step-XXXXXXXX and drop all but the newest `keep`.  Atomic; OSError when the disk refuses."""
    pieces = named(parts)
    target = run / f"step-{step:08d}"
    with whole(target) as aside:
        aside.mkdir()
        file = rank_file(0)
        save_file({name: piece.data for name, piece in pieces.items()}, aside / file)
        about = {"step": step, "files": {file: _digest(aside / file)},
                 "shapes": {name: piece.shape for name, piece in pieces.items()}}
        (aside / STATE).write_text(json.dumps(about | state, indent=1))
        (aside / COMPLETE).write_text(_digest(aside / STATE))
    tidy(run, keep)
    return target


def restore(folder: Path, parts: dict[str, Part]) -> dict:
    """Fill the parts; returns the state saved with them, {"step": ...} and what the caller added.

    ValueError names the file that is missing, or whose bytes are not those that were written, or what in it
    does not fit; then the parts are as they were.
    """
    saved = Saved(folder)
    saved.check()
    pieces = named(parts)
    saved.fit(pieces)
    for name, piece in pieces.items():
        piece.data.copy_(saved.read(name, piece.begin, piece.begin + piece.data.numel()))
    for part in parts.values():
        part.settle()
    return saved.state


class Damaged(ValueError):
    """A checkpoint that is not what was written."""


class Saved:
    """A checkpoint to read from.  Damaged when its state.json is missing or not what was written."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            if (folder / COMPLETE).read_text() != _digest(folder / STATE):
                raise ValueError(f"{COMPLETE} has another digest")
            self.state = json.loads((folder / STATE).read_text())
            step, self.digests, self.shapes = (self.state[key] for key in ("step", "files", "shapes"))
            if folder.name != f"step-{step:08d}":
                raise ValueError(f"it says step {step}")
        except (OSError, ValueError, KeyError, TypeError) as why:
            raise self._damaged(STATE, why) from why

    def check(self) -> None:
        """Damaged when a file has not the digest that state.json has of it."""
        for name, digest in self.digests.items():
            try:
                if _digest(self.folder / name) != digest:
                    raise ValueError("its bytes are not those that were written")
            except (OSError, ValueError) as why:
                raise self._damaged(name, why) from why

    def fit(self, pieces: dict[str, Piece]) -> None:
        """One ValueError for all names and shapes that are not the wanted ones; it shows the first three."""
        found = {name: tuple(shape) for name, shape in self.shapes.items()}
        want = {name: piece.shape for name, piece in pieces.items()}
        wrong = [f"{name}: found {found.get(name, 'nothing')}, want {want.get(name, 'nothing')}"
                 for name in sorted(want.keys() | found.keys()) if want.get(name) != found.get(name)]
        if wrong:
            more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
            raise ValueError(f"{self.folder}: does not fit: {'; '.join(wrong[:3])}{more}")

    def read(self, name: str, begin: int, end: int) -> Tensor:
        """[begin, end) of the flat tensor."""
        return torch.cat(list(self._stretches(name, begin, end)) or [torch.empty(0)])

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Every tensor under "student/weight/" or the like, whole and in its shape, named by what follows."""
        return {name.removeprefix(prefix): self.read(name, 0, math.prod(shape)).view(shape)
                for name, shape in self.shapes.items() if name.startswith(prefix)}

    def _stretches(self, name: str, begin: int, end: int) -> Iterator[Tensor]:
        at = 0
        for tensors in self._files:
            if name in tensors.keys():                  # noqa: SIM118  (no dict)
                stretch = tensors.get_slice(name)
                length, = stretch.get_shape()
                if at < end and begin < at + length:
                    yield stretch[max(0, begin - at):end - at]
                at += length

    @cached_property
    def _files(self) -> list[safe_open]:
        return [safe_open(self.folder / name, "pt") for name in sorted(self.digests)]

    def _damaged(self, name: str, why: Exception) -> Damaged:
        return Damaged(f"{self.folder / name}: damaged checkpoint ({why}); delete {self.folder} to go on "
                       "from the checkpoint before it, or from the start")


def tidy(run: Path, keep: int) -> None:
    """Drop all but the newest `keep` checkpoints, and what a kill left half-written or half-dropped."""
    for old in folders(run)[:-keep]:
        old.rename(aside_of(old))           # so that a kill here leaves no half of it under its name
    sweep(run)


def newest(run: Path) -> Path | None:
    """The last checkpoint of a run, if there is one."""
    return max(folders(run), default=None)


def folders(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(run.glob(FOLDERS))


def named(parts: dict[str, Part]) -> dict[str, Piece]:
    return {f"{part}/{name}": piece for part, of in parts.items() for name, piece in of.pieces().items()}


def rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
