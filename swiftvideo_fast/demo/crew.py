"""Many small runs on one machine: each in a process of one thread, as soon as what it starts from is there.

A second thread makes one run of so small a network a quarter faster; a second run beside it doubles the work.
"""

import multiprocessing
import os
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

import torch

from swiftvideo_fast.config import Config, Ta
from swiftvideo_fast.train.loop import train
from swiftvideo_fast.train.rounds import make_pairs


def train_all(runs: list[Config]) -> None:
    """Train each config to its end, in their order where cores are short.  The first error ends it."""
    spawn = multiprocessing.get_context("spawn")
    running: dict[Future, Config] = {}
    waiting = list(runs)
    with ProcessPoolExecutor(os.cpu_count(), spawn, begin) as crew:
        try:
            while waiting or running:
                unfinished = [*waiting, *running.values()]
                for cfg in [c for c in waiting if not any(starts_from(c, other) for other in unfinished)]:
                    waiting.remove(cfg)
                    running[crew.submit(finish, cfg)] = cfg
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    running.pop(done)
                    done.result()
        except BaseException:
            crew.shutdown(wait=False, cancel_futures=True)
            raise


def starts_from(cfg: Config, other: Config) -> bool:
    """Whether a file that cfg reads lies in the folder of the other run."""
    reads = [cfg.model.student, getattr(cfg.objective, "pairs", None)]
    return cfg is not other and any(Path(other.run.dir) in Path(file).parents for file in reads if file)


def finish(cfg: Config) -> None:
    """What is not done yet of one run, its pairs first."""
    if isinstance(cfg.objective, Ta):
        make_pairs(cfg)
    train(cfg)


def begin() -> None:
    """A worker: one thread, and no longer alive than the process that started it."""
    torch.set_num_threads(1)

    def end_with_it() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()
