"""The folder of a run: config.yaml, log.jsonl, speed.jsonl, starts.jsonl, samples/, tensorboard/,
checkpoints, and at the end the weights.

It belongs to one config.  Settings on which no step depends may change from one start to the next (FREE, and
the engine), and the folder may move: a path then counts as the same where it is the same from run.dir.
Extended (run.steps raised), a run goes on at the learning rates of a run of that many steps.
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
RETRY = 0.2         # seconds; `swiftvideo runs` holds a lock for a moment
Complete = Callable[[dict], dict]       # an older tree -> the same with today's defaults for keys it lacks


def agree(cfg: Config, complete: Complete) -> None:
    """ValueError when run.dir holds a run of another config, or one that is beyond run.steps."""
    run = Path(cfg.run.dir)
    if run.exists() and not run.is_dir():
        raise ValueError(f"{run}: a file; want a folder for run.dir")
    if (run / CONFIG).exists():
        _same(cfg, complete(read_config(run)), run)
    if last := checkpoint.newest(run):
        _not_beyond(cfg, checkpoint.step_of(last))


def read_config(run: Path) -> dict:
    """The tree of a run's config.yaml; ValueError when it is damaged."""
    try:
        tree = yaml.safe_load((run / CONFIG).read_text())
        if not isinstance(tree, dict):
            raise ValueError("it is empty" if tree is None else f"it holds {tree!r}")
    except (OSError, yaml.YAMLError, ValueError) as why:
        reason = " ".join(str(why).split())
        raise ValueError(f"{run / CONFIG}: not the config of a run ({reason}); restore it, or move it away: "
                         "the checkpoints hold the config as well") from why
    return tree


def resume(cfg: Config, parts: dict[str, checkpoint.Part], ranks: Ranks, complete: Complete) -> dict:
    """The state of the newest good checkpoint, now in the parts: "step" (how many), "skipped" by role, and
    the "config" that it was trained by."""
    run = Path(cfg.run.dir)
    saved = checkpoint.last_good(run, ranks)
    if saved is None:
        return {"step": 0, "skipped": {}, "config": to_dict(cfg)}
    _same(cfg, complete(saved.state.get("config", {})), saved.folder)
    _not_beyond(cfg, saved.state["step"])
    state = checkpoint.restore(saved, parts)
    if ranks.rank == 0:
        checkpoint.tidy(run, cfg.run.keep)
    return state


class Lock:
    """Holds run.dir against other processes, whose log and checkpoints would interleave with this run's.

    It is the kernel's lock on the folder: it leaves no file, and ends with the process, however that ends.
    """

    def __init__(self, cfg: Config):
        self.folder, self.handle = Path(cfg.run.dir), None

    def acquire(self, create: bool = False) -> str:
        """ValueError when another process holds the folder.  create: make it where it is not there yet; else
        that one is not held."""
        if create:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as why:
                raise OSError(f"{self.folder}: could not be made ({why}); take another run.dir") from why
        if self.handle is None and self.folder.is_dir():
            self.handle = _locked(self.folder)
            if self.handle is None:
                time.sleep(RETRY)
                self.handle = _locked(self.folder)
            if self.handle is None:
                raise ValueError(f"{self.folder}: another process trains here; wait for its end, or take "
                                 "another run.dir")
        return ""

    def close(self) -> None:
        if self.handle is not None:
            os.close(self.handle)


def is_held(folder: Path) -> bool:
    """Whether a process trains in a folder."""
    handle = _locked(folder)
    if handle is not None:
        os.close(handle)
    return handle is None


def _locked(folder: Path) -> int | None:
    """A handle that holds the folder; None when another process does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def write_start(cfg: Config, step: int, device: torch.device) -> str:
    """config.yaml, and a line in STARTS: when, from which step, versions, commit, device, command."""
    run = Path(cfg.run.dir)
    with atomic_write(run / CONFIG) as aside:
        aside.write_text(yaml.safe_dump(to_dict(cfg), sort_keys=False))
    about = {"time": datetime.now().astimezone().isoformat(timespec="seconds"), "step": step}
    with open(run / STARTS, "a") as file:
        file.write(json.dumps(about | provenance(device)) + "\n")
    return ""


def set_aside(file: Path, step: int) -> None:
    """Weights of an earlier end, of a run that has been extended: student-00000250.safetensors."""
    for weights in (file, file.with_name(f"lora-{file.name}")):
        if weights.exists():
            weights.rename(weights.with_stem(f"{weights.stem}-{step:08d}"))


def _same(cfg: Config, other: dict, where: Path) -> None:
    new = to_dict(cfg)
    changed = {said.partition(": ")[0]: said for said in differences(other, new)}
    wrong = [said for key, said in changed.items() if key not in FREE and not _same_path(key, other, new)]
    if wrong:
        raise ValueError(f"{where} holds a run of another config ({'; '.join(wrong)}); take another run.dir, "
                         "or the values it had")


def _same_path(key: str, old: dict, new: dict) -> bool:
    """Whether a key's two values are one path, or the same as seen from run.dir."""
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
