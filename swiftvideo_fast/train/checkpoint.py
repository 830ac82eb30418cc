"""A run on disk: folders `step-00000500`, each whole or absent.

Written aside, synced, then renamed; state.json lists every file with its digest and is the last to be written.
Weights and optimizer moments are safetensors, the rest is JSON: nothing in it is code.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from swiftvideo_fast.models import weights

STATE = "state.json"


def save(run: Path, step: int, *, nets: dict[str, nn.Module], optimizer: torch.optim.Optimizer, state: dict,
         keep: int) -> Path:
    """Write run/step-XXXXXXXX and drop all but the newest `keep`."""
    target = run / f"step-{step:08d}"
    aside = run / f".{target.name}.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, net in nets.items():
        save_file({k: v.detach().contiguous() for k, v in net.state_dict().items()}, aside / f"{name}.safetensors")
    save_file(_moments(optimizer), aside / "optimizer.safetensors")
    digests = {}
    for file in sorted(aside.iterdir()):
        _sync(file)
        digests[file.name] = _digest(file)
    (aside / STATE).write_text(json.dumps({"step": step, "files": digests} | state, indent=1))
    _sync(aside / STATE)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    _sync(run)
    for old in _folders(run)[:-keep]:
        shutil.rmtree(old)
    return target


def newest(run: Path) -> Path | None:
    """The last complete checkpoint of a run, if there is one."""
    folders = _folders(run)
    return folders[-1] if folders else None


def restore(folder: Path, *, nets: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict:
    """Fill nets and optimizer; returns the state saved with them.

    ValueError names the file that is missing or whose bytes are not those that were written.
    """
    try:
        state = json.loads((folder / STATE).read_text())
        for name, digest in state["files"].items():
            if _digest(folder / name) != digest:
                raise ValueError("its bytes are not those that were written")
    except (OSError, ValueError, KeyError) as why:
        name = locals().get("name", STATE)
        raise ValueError(f"{folder / name}: damaged checkpoint ({why}); delete {folder} to go on from the one "
                         "before it") from why
    for name, net in nets.items():
        file = folder / f"{name}.safetensors"
        weights.fill(net, load_file(file), file)
    _fill_moments(optimizer, load_file(folder / "optimizer.safetensors"))
    return state


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value.contiguous() for index, entry in state.items() for key, value in entry.items()}


def _fill_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state = optimizer.state_dict()
    state["state"] = {}
    for name, value in tensors.items():
        index, key = name.split(".")
        state["state"].setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(state)


def _folders(run: Path) -> list[Path]:
    return sorted(f for f in run.glob("step-*") if (f / STATE).is_file())


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
