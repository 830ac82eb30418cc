"""One seed of the demo: what there is to do, and what came of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swiftvideo_fast.config import Config
from swiftvideo_fast.demo import measure
from swiftvideo_fast.demo.pool import Task
from swiftvideo_fast.demo.stages import (
    ALIGNED,
    FIRST,
    FULL,
    LAST,
    PAIRED,
    ROUNDS,
    TWICE,
    UNJUDGED,
    VARIANTS,
    finish,
    needed,
)
from swiftvideo_fast.train.log import read_log

TEACHER, REAL = "teacher", "real"
TRAINED, ROWS, PROGRESS, SAMPLES = "trained", "measured", "watched", "shown"        # kinds of tasks
Place = tuple[int, str, str]                                    # of a task: seed, name, kind
STEPS = {                                       # that each is measured at
    TEACHER: (4, 2, 1),                         # and REFERENCE_STEPS
    FIRST: (4, 2),
    LAST: (8, 4, 2),
    UNJUDGED: (4, 2),
    FULL: (4, 2, 1),
    **dict.fromkeys(ALIGNED, (4, 2)),
    **dict.fromkeys(VARIANTS, (4,)),
    **dict.fromkeys([PAIRED, TWICE], (4, 2)),
}
WATCHED = ALIGNED[0], *VARIANTS                 # runs whose progress is charted


@dataclass(frozen=True)
class Seed:
    """Figures, logs and the first few samples: name -> steps -> ...; steps None: real clips.

    backbone: the adversary's.  progress: run of alignment -> step -> Frechet distance at 4 steps.
    """

    captions: list[str]
    backbone: str
    logs: dict[str, list[dict]]
    rows: dict[tuple[str, int | None], dict[str, float]]
    pixels: dict[tuple[str, int], Tensor]
    progress: dict[str, dict[int, float]]


def tasks(seed: int, runs: dict[str, Config], clips: int, folder: Path) -> dict[Place, Task]:
    """All of them, trainings first: others wait for those."""
    cfg, file = runs[FIRST], folder / "reference.safetensors"

    def after(kind: str, *names: str) -> frozenset[Place]:
        return frozenset((seed, name, kind) for name in names)

    todo = {(seed, name, TRAINED): Task(finish, (run,), after(TRAINED, *needed(run, runs)))
            for name, run in runs.items()}
    todo[seed, TEACHER, ROWS] = Task(measure.teacher_rows, (cfg, clips, STEPS[TEACHER], file))
    for name, run in runs.items():
        todo[seed, name, ROWS] = Task(measure.student_rows, (cfg, clips, STEPS[name], file, run),
                                      after(TRAINED, name) | after(ROWS, TEACHER))
    for name in WATCHED:
        task = Task(measure.progress, (cfg, runs[name], ROUNDS[1]), after(TRAINED, name))
        todo[seed, name, PROGRESS] = task
    todo[seed, REAL, ROWS] = Task(measure.real_rows, (cfg, clips))
    return todo | {(seed, REAL, SAMPLES): Task(measure.shown, (cfg, clips))}


def result(seed: int, runs: dict[str, Config], done: dict[Place, Any]) -> Seed:
    """What its tasks have returned, in one."""
    captions, real = done[seed, REAL, SAMPLES]
    measured = {(name, steps): found for name in STEPS for steps, found in done[seed, name, ROWS].items()}
    pixels = {(REAL, 0): real} | {place: shown for place, (_, shown) in measured.items()}
    return Seed(captions, runs[LAST].da.backbone,
                logs={name: read_log(Path(run.run.dir)) for name, run in runs.items()},
                rows={(name, None): figures for name, figures in done[seed, REAL, ROWS].items()}
                | {place: figures for place, (figures, _) in measured.items()},
                pixels={place: torch.from_numpy(shown) for place, shown in pixels.items()},
                progress={name: done[seed, name, PROGRESS] for name in WATCHED})
