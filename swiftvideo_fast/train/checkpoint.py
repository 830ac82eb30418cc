"""A run on disk: folders `step-00000500`, each whole or absent.

state.json lists the other files with their digests.  Weights and optimizer moments are safetensors, the rest
is JSON: nothing in it is code.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from swiftvideo_fast.atomic import aside_of, sweep, whole
from swiftvideo_fast.models import weights

STATE = "state.json"


def save(run: Path, step: int, *, nets: dict[str, nn.Module],
         optimizers: dict[str, torch.optim.Optimizer], state: dict, keep: int) -> Path:
    """Write run/step-XXXXXXXX and drop all but the newest `keep`.  Atomic; OSError when the disk refuses."""
    tensors = {_file(name): {k: v.detach().contiguous() for k, v in net.state_dict().items()}
               for name, net in nets.items()}
    tensors |= {_file(name): _moments(optimizer) for name, optimizer in optimizers.items()}
    target = run / f"step-{step:08d}"
    with whole(target) as aside:
        aside.mkdir()
        for name, content in tensors.items():
            save_file(content, aside / name)
        digests = {name: _digest(aside / name) for name in tensors}
        (aside / STATE).write_text(json.dumps({"step": step, "files": digests} | state, indent=1))
    tidy(run, keep)
    return target


def tidy(run: Path, keep: int) -> None:
    """Drop all but the newest `keep` checkpoints, and what a kill left half-written or half-dropped."""
    for old in _folders(run)[:-keep]:
        old.rename(aside_of(old))           # so that a kill here leaves no half of it under its name
    sweep(run)


def newest(run: Path) -> Path | None:
    """The last checkpoint of a run, if there is one."""
    folders = _folders(run)
    return folders[-1] if folders else None


def restore(folder: Path, *, nets: dict[str, nn.Module],
            optimizers: dict[str, torch.optim.Optimizer]) -> dict:
    """Fill nets and optimizers; returns the state saved with them, {"step": ...} and what the caller added.

    ValueError names the file that is missing or whose bytes are not those that were written.
    """
    state = _read_state(folder, [*map(_file, nets), *map(_file, optimizers)])
    for name, net in nets.items():
        file = folder / _file(name)
        weights.fill(net, load_file(file), file)
    for name, optimizer in optimizers.items():
        _fill_moments(optimizer, load_file(folder / _file(name)))
    return state


def _read_state(folder: Path, wanted: list[str]) -> dict:
    """state.json, once the wanted files have the digests in it."""
    name = STATE
    try:
        state = json.loads((folder / STATE).read_text())
        step, digests = state["step"], state["files"]
        if folder.name != f"step-{step:08d}":
            raise ValueError(f"it says step {step}")
        for name in wanted:
            if _digest(folder / name) != digests[name]:
                raise ValueError("its bytes are not those that were written")
    except (OSError, ValueError, KeyError, TypeError) as why:
        raise ValueError(f"{folder / name}: damaged checkpoint ({why}); delete {folder} to go on from the "
                         "checkpoint before it, or from the start") from why
    return state


def _file(part: str) -> str:
    return f"{part}.safetensors"


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    moments = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value.contiguous() for index, of in moments.items()
            for key, value in of.items()}


def _fill_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state = optimizer.state_dict()
    state["state"] = {}
    for name, value in tensors.items():
        index, key = name.split(".")
        state["state"].setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(state)


def _folders(run: Path) -> list[Path]:
    return sorted(run.glob("step-*"))


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
