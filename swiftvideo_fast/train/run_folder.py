"""The folder of a run: config.yaml, log.jsonl, tensorboard/, checkpoints, and at the end the weights.

It belongs to one config: ValueError names the keys that differ when it holds a run of another.
"""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import yaml

from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.config import Config, differences, to_dict
from swiftvideo_fast.train import checkpoint
from swiftvideo_fast.train.ranks import Ranks

CONFIG = "config.yaml"
Complete = Callable[[dict], dict]       # an older tree -> the same with today's defaults for keys it lacks


def agree(cfg: Config, complete: Complete) -> None:
    """ValueError when run.dir holds a run of another config."""
    run = Path(cfg.run.dir)
    try:
        _same(cfg, complete(yaml.safe_load((run / CONFIG).read_text())), run)
    except FileNotFoundError:
        pass
    except (OSError, yaml.YAMLError, UnicodeDecodeError, AttributeError) as why:
        raise ValueError(f"{run / CONFIG}: not the config of a run ({why}); take another run.dir or delete "
                         "that file") from why


def resume(cfg: Config, parts: dict[str, checkpoint.Part], ranks: Ranks, complete: Complete) -> dict:
    """The state of the newest good checkpoint, now in the parts: "step" (how many), "skipped" by role."""
    run = Path(cfg.run.dir)
    saved = checkpoint.last_good(run, ranks)
    if saved is None:
        return {"step": 0, "skipped": {}}
    _same(cfg, complete(saved.state.get("config", {})), saved.folder)
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
            handle = os.open(self.folder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as why:
                os.close(handle)
                raise ValueError(f"{self.folder}: another process trains here; wait for its end, or take "
                                 "another run.dir") from why
            self.handle = handle
        return ""

    def close(self) -> None:
        if self.handle is not None:
            os.close(self.handle)


def write_config(cfg: Config) -> str:
    with atomic_write(Path(cfg.run.dir) / CONFIG) as aside:
        aside.write_text(yaml.safe_dump(to_dict(cfg), sort_keys=False))
    return ""


def _same(cfg: Config, other: dict, where: Path) -> None:
    if changed := differences(other, to_dict(cfg)):
        raise ValueError(f"{where} holds a run of another config ({'; '.join(changed)}); take another "
                         "run.dir or delete that folder")
