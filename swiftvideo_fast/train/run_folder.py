"""The run folder: config.yaml, log.jsonl, speed.jsonl, starts.jsonl, samples/, tensorboard/, checkpoints,
and the final weights.

A folder belongs to one config.  Settings that affect no training step (FREE, and the engine) may change
between starts.  The folder may move: paths that are equal relative to run.dir count as equal.  An extended
run (run.steps raised) continues on the learning-rate schedule of the longer run.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import torch
import yaml

from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.config import Config, differences, to_dict
from swiftvideo_fast.provenance import provenance
from swiftvideo_fast.train import checkpoint
from swiftvideo_fast.train.ranks import Ranks

CONFIG, STARTS = "config.yaml", "starts.jsonl"
FREE = ("run.dir", "run.steps", "run.save_every", "run.log_every", "run.keep", "run.watch_every", "run.wandb",
        "model.recompute", "optim.max_skips", "da.watch", "data.threads")
PATHS = "model.codec", "model.weights", "model.student", "objective.pairs", "data.folder", "data.index"
RETRY = 0.2         # seconds; `swiftvideo runs` takes the lock briefly
FillDefaults = Callable[[dict], dict]   # older config as nested dict -> same with current defaults added


def check(cfg: Config, fill_defaults: FillDefaults) -> None:
    """Raises ValueError when run.dir holds a run of another config, or one beyond run.steps."""
    run = Path(cfg.run.dir)
    if run.exists() and not run.is_dir():
        raise ValueError(f"{run}: a file; want a folder for run.dir")
    if (run / CONFIG).exists():
        _same(cfg, fill_defaults(read_config(run)), run)
    if last := checkpoint.newest(run):
        _not_beyond(cfg, checkpoint.step_of(last))


def read_config(run: Path) -> dict:
    """Returns a run's config.yaml as a nested dict; ValueError when it is damaged."""
    try:
        tree = yaml.safe_load((run / CONFIG).read_text())
        if not isinstance(tree, dict):
            raise ValueError("it is empty" if tree is None else f"it holds {tree!r}")
    except (OSError, yaml.YAMLError, ValueError) as why:
        reason = " ".join(str(why).split())
        raise ValueError(f"{run / CONFIG}: not the config of a run ({reason}); restore it, or move it away: "
                         "the checkpoints hold the config too") from why
    return tree


def resume(cfg: Config, parts: dict[str, checkpoint.Part], ranks: Ranks, fill_defaults: FillDefaults) -> dict:
    """Restores the newest good checkpoint into the parts; returns its state: "step" (steps taken),
    "skipped" by role, and "config"."""
    run = Path(cfg.run.dir)
    saved = checkpoint.last_good(run, ranks)
    if saved is None:
        return {"step": 0, "skipped": {}, "config": to_dict(cfg)}
    _same(cfg, fill_defaults(saved.state.get("config", {})), saved.folder)
    _not_beyond(cfg, saved.state["step"])
    state = checkpoint.restore(saved, parts)
    if ranks.rank == 0:
        checkpoint.prune(run, cfg.run.keep)
    return state


class Lock:
    """A lock on run.dir, so that two processes cannot interleave logs and checkpoints.

    Uses flock on the folder: no file is left, and the lock is released when the process ends.
    """

    def __init__(self, cfg: Config):
        self.folder, self.handle = Path(cfg.run.dir), None

    def acquire(self, create: bool = False) -> str:
        """Takes the lock; ValueError when another process has it.  create: creates a missing folder; without
        it, a missing folder is not locked."""
        if create:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as why:
                raise OSError(f"{self.folder}: could not be created ({why}); choose another run.dir") from why
        if self.handle is None and self.folder.is_dir():
            self.handle = _locked(self.folder)
            if self.handle is None:
                time.sleep(RETRY)
                self.handle = _locked(self.folder)
            if self.handle is None:
                raise ValueError(f"{self.folder}: another process trains here; wait for its end, or choose "
                                 "another run.dir")
        return ""

    def close(self) -> None:
        if self.handle is not None:
            os.close(self.handle)


def is_held(folder: Path) -> bool:
    """Returns whether a process trains in a folder."""
    handle = _locked(folder)
    if handle is not None:
        os.close(handle)
    return handle is None


def _locked(folder: Path) -> int | None:
    """Returns a file descriptor that holds the lock; None when another process has it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def write_start(cfg: Config, step: int, device: torch.device) -> str:
    """Writes config.yaml; appends time, step, versions, commit, device and command to starts.jsonl."""
    run = Path(cfg.run.dir)
    with atomic_write(run / CONFIG) as tmp:
        tmp.write_text(yaml.safe_dump(to_dict(cfg), sort_keys=False))
    about = {"time": datetime.now().astimezone().isoformat(timespec="seconds"), "step": step}
    with open(run / STARTS, "a") as file:
        file.write(json.dumps(about | provenance(device)) + "\n")
    return ""


def set_aside(file: Path, step: int) -> None:
    """Renames final weights of a run about to be extended, e.g. to student-00000250.safetensors."""
    for weights in (file, file.with_name(f"lora-{file.name}")):
        if weights.exists():
            weights.rename(weights.with_stem(f"{weights.stem}-{step:08d}"))


def _same(cfg: Config, other: dict, where: Path) -> None:
    new = to_dict(cfg)
    changed = {text.partition(": ")[0]: text for text in differences(other, new)}
    wrong = [text for key, text in changed.items() if key not in FREE and not _same_path(key, other, new)]
    if wrong:
        raise ValueError(f"{where} holds a run of another config ({'; '.join(wrong)}); choose another "
                         "run.dir, or restore these values")


def _same_path(key: str, old: dict, new: dict) -> bool:
    """Returns whether a key's two values are the same path, absolute or relative to run.dir."""
    section, _, name = key.rpartition(".")
    a, b = (tree.get(section, {}).get(name) for tree in (old, new))
    if key not in PATHS or not (a and b):
        return False
    moved = os.path.relpath(a, old["run"]["dir"]) == os.path.relpath(b, new["run"]["dir"])
    return moved or os.path.realpath(a) == os.path.realpath(b)


def _not_beyond(cfg: Config, step: int) -> None:
    if step > cfg.run.steps:
        raise ValueError(f"{cfg.run.dir} is at step {step}; want run.steps of {step} or more (found "
                         f"{cfg.run.steps}), or another run.dir")
