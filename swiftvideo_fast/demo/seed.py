"""One seed of the demo: its tasks, and their results so far."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from swiftvideo_fast.config import Config
from swiftvideo_fast.demo import measure
from swiftvideo_fast.demo.pool import Ended, Place, Task
from swiftvideo_fast.demo.stages import (
    ALIGNED,
    CONTROL,
    FIRST,
    FULL,
    LAST,
    PAIRED,
    ROUNDS,
    TWICE,
    VARIANTS,
    finish,
    needed,
)
from swiftvideo_fast.metrics.benchmark import REFERENCE_STEPS
from swiftvideo_fast.report.tables import Row
from swiftvideo_fast.train.log import read_log

TEACHER, REAL = "teacher", "real"
TRAINED, ROWS, PROGRESS = "trained", "measured", "watched"                  # kinds of tasks
SAMPLES, TIMES = "sampled", "timed"
STEPS = {                                       # sampling steps that each is measured at
    TEACHER: (4, 2, 1),                         # and REFERENCE_STEPS
    FIRST: (4, 2),
    LAST: (8, 4, 2),
    CONTROL: (4, 2),
    FULL: (4, 2, 1),
    **dict.fromkeys(ALIGNED, (4, 2)),
    **dict.fromkeys(VARIANTS, (4,)),
    **dict.fromkeys([PAIRED, TWICE], (4, 2)),
}
WATCHED = ALIGNED[0], *VARIANTS                 # runs whose progress is charted


@dataclass(frozen=True)
class Seed:
    """Results so far: figures, logs and samples by (name, steps); steps is None for real clips.

    pixels[REAL, None]: the real clips.  progress: alignment run -> step -> Frechet distance at 4 steps.
    """

    captions: list[str] = field(default_factory=list)
    logs: dict[str, list[dict]] = field(default_factory=dict)
    rows: dict[tuple[str, int | None], dict[str, float]] = field(default_factory=dict)
    pixels: dict[tuple[str, int | None], Tensor] = field(default_factory=dict)
    progress: dict[str, dict[int, float]] = field(default_factory=dict)


def tasks(seed: int, runs: dict[str, Config], clips: int, folder: Path) -> dict[Place, Task]:
    """Returns all tasks of a seed: previews before long tasks, each student measured once it is trained."""
    cfg, file = runs[FIRST], folder / "reference.safetensors"
    steps = sorted({n for name in runs for n in STEPS[name]}, reverse=True)

    def after(kind: str, *names: str) -> frozenset[Place]:
        return frozenset((seed, name, kind) for name in names)

    todo = {(seed, TEACHER, SAMPLES): Task(measure.preview, (cfg, clips, STEPS[TEACHER]))}
    for name, run in runs.items():
        todo[seed, name, TRAINED] = Task(finish, (run,), after(TRAINED, *needed(run, runs)))
        todo[seed, name, ROWS] = Task(measure.student_rows, (cfg, clips, STEPS[name], file, run),
                                      after(TRAINED, name) | after(ROWS, TEACHER))
        if name == FIRST:
            todo[seed, TEACHER, ROWS] = Task(measure.teacher_rows, (cfg, clips, STEPS[TEACHER], file))
            places = cfg, run, (REFERENCE_STEPS, *STEPS[TEACHER]), tuple(steps)
            todo[seed, TEACHER, TIMES] = Task(measure.timings, places, after(TRAINED, name))
        if name in WATCHED:
            watched = cfg, run, ROUNDS[1]
            todo[seed, name, PROGRESS] = Task(measure.progress, watched, after(TRAINED, name))
    return todo | {(seed, REAL, ROWS): Task(measure.real_rows, (cfg, clips))}


def result(seed: int, runs: dict[str, Config], done: dict[Place, Ended]) -> Seed:
    """Returns the results of a seed's ended tasks."""
    found = Seed()
    returned = {(name, kind): ended.value for (of, name, kind), ended in done.items() if of == seed}
    if (TEACHER, SAMPLES) in returned:
        captions, real, teacher = returned[TEACHER, SAMPLES]
        found.captions.extend(captions)
        found.pixels[REAL, None] = torch.from_numpy(real)
        found.pixels.update({(TEACHER, n): torch.from_numpy(shown) for n, shown in teacher.items()})
    found.rows.update({(name, None): figures for name, figures in returned.get((REAL, ROWS), {}).items()})
    seconds = returned.get((TEACHER, TIMES), {})
    for name in STEPS:
        for steps, (figures, shown) in returned.get((name, ROWS), {}).items():
            timed = seconds.get((name != TEACHER, steps))
            found.rows[name, steps] = figures | ({"seconds": timed} if timed else {})
            found.pixels[name, steps] = torch.from_numpy(shown)
    found.logs.update({name: read_log(Path(run.run.dir)) for name, run in runs.items()
                       if (name, TRAINED) in returned})
    found.progress.update({name: by_step for (name, kind), by_step in returned.items() if kind == PROGRESS})
    return found


def rows_of(results: list[Seed]) -> list[Row]:
    """Returns the figures of all seeds: real clips, teacher, then students in order."""
    places = [(name, None) for name in measure.REAL_ROWS]
    places += [(name, n) for name, steps in STEPS.items()
               for n in ((REFERENCE_STEPS, *steps) if name == TEACHER else steps)]
    rows = []
    for place in places:
        by_seed = [r.rows[place] for r in results if place in r.rows]
        if by_seed:
            keys = dict.fromkeys(key for figures in by_seed for key in figures)
            values = {key: [figures[key] for figures in by_seed if key in figures] for key in keys}
            rows.append(Row(*place, values))
    return rows
