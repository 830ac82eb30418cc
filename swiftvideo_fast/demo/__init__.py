"""The whole road in minutes: distil the teacher, align the student, measure held-out clips, show it."""

import json
import time
from pathlib import Path

import yaml

from swiftvideo_fast import config
from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.demo import page
from swiftvideo_fast.demo.pool import Ended, Place, run_tasks
from swiftvideo_fast.demo.seed import SAMPLES, TEACHER, TRAINED, Seed, result, rows_of, tasks
from swiftvideo_fast.demo.stages import students
from swiftvideo_fast.report.about import About, here
from swiftvideo_fast.report.page import write_report
from swiftvideo_fast.report.tables import as_json


def demo(folder: Path, configs: Path, seeds: int = 1, clips: int = 256, overrides: list[str] = ()) -> Path:
    """Train, measure and report under `folder`; returns the report.  A second call goes on from the first.

    The report is there once the teacher's samples are, and is written anew after every measurement.  One seed
    trains what the paper has; several train alignment on paired noise too.
    """
    runs, todo = [], {}
    for seed in range(seeds):
        place = folder / f"seed-{seed}"
        runs.append(dict(students(place, configs, seed, overrides, paired=seeds > 1)))
        todo |= tasks(seed, runs[seed], clips, place)
    facts = {"configs": " ".join([str(configs), *overrides]),
             "measured": f"{clips} held-out clips, {seeds} seed{'s' * (seeds > 1)}"}
    texts = {name: yaml.safe_dump(config.to_dict(run), sort_keys=False) for name, run in runs[0].items()}
    about = About(here() | facts, texts)
    report, began = folder / "report.html", time.monotonic()

    def results(done: dict[Place, Ended]) -> list[Seed]:
        return [result(seed, runs[seed], done) for seed in range(seeds)]

    def show(task: Place, done: dict[Place, Ended]) -> None:
        if task[-1] == TRAINED:         # the run's figures follow
            return
        cost = page.cost(done, len(todo), time.monotonic() - began)
        write_report(report, page.TITLE, [*page.sections(results(done), clips), cost], about)
        if task == (0, TEACHER, SAMPLES):
            print(f"the teacher's samples are in {report}, which grows from here", flush=True)

    found = results(run_tasks(todo, show))
    rows = rows_of(found)
    print("".join(f"\n{table.text()}\n" for table in page.tables(found, rows, clips)))
    with atomic_write(folder / "table.json") as tmp:
        tmp.write_text(json.dumps(as_json(rows), indent=1) + "\n")
    return report
