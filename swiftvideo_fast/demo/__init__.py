"""The demo: distils the teacher, aligns the student, measures on held-out clips, writes a report."""

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
from swiftvideo_fast.report.about import About, environment
from swiftvideo_fast.report.page import write_report
from swiftvideo_fast.report.tables import as_json


def demo(folder: Path, configs: Path, seeds: int = 1, clips: int = 256, overrides: list[str] = ()) -> Path:
    """Trains, measures and reports under `folder`; returns the report.  A second call resumes.

    The report is first written with the teacher's samples, and rewritten after every measurement.  One seed
    trains the paper's runs; several also train alignment on paired noise.
    """
    runs, todo = [], {}
    for seed in range(seeds):
        place = folder / f"seed-{seed}"
        runs.append(dict(students(place, configs, seed, overrides, paired=seeds > 1)))
        todo |= tasks(seed, runs[seed], clips, place)
    facts = {"configs": " ".join([str(configs), *overrides]),
             "measured": f"{clips} held-out clips, {seeds} seed{'s' * (seeds > 1)}"}
    texts = {name: yaml.safe_dump(config.to_dict(run), sort_keys=False) for name, run in runs[0].items()}
    about = About(environment() | facts, texts)
    report, began = folder / "report.html", time.monotonic()

    def results(done: dict[Place, Ended]) -> list[Seed]:
        return [result(seed, runs[seed], done) for seed in range(seeds)]

    def show(task: Place, done: dict[Place, Ended]) -> None:
        if task[-1] == TRAINED:         # its measurements will rewrite the report
            return
        cost = page.cost(done, len(todo), time.monotonic() - began)
        write_report(report, page.TITLE, [*page.sections(results(done), clips), cost], about)
        if task == (0, TEACHER, SAMPLES):
            print(f"the teacher's samples are in {report}, which is updated from now on", flush=True)

    found = results(run_tasks(todo, show))
    rows = rows_of(found)
    print("".join(f"\n{table.text()}\n" for table in page.tables(found, rows, clips)))
    with atomic_write(folder / "table.json") as tmp:
        tmp.write_text(json.dumps(as_json(rows), indent=1) + "\n")
    return report
