"""The whole road in minutes: distil the teacher, align the student, measure held-out clips, show it."""

import json
from pathlib import Path

from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.demo import page
from swiftvideo_fast.demo.pool import run_tasks
from swiftvideo_fast.demo.seed import result, tasks
from swiftvideo_fast.demo.stages import LAST, students
from swiftvideo_fast.report.about import About, here
from swiftvideo_fast.report.page import write_report
from swiftvideo_fast.report.tables import Row, as_json


def demo(folder: Path, configs: Path, seeds: int = 1, clips: int = 256, overrides: list[str] = ()) -> Path:
    """Train, measure and report under `folder`; returns the report.  A second call goes on from the first."""
    runs, todo = [], {}
    for seed in range(seeds):
        place = folder / f"seed-{seed}"
        runs.append(dict(students(place, configs, seed, overrides)))
        todo |= tasks(seed, runs[seed], clips, place)
    print(f"{LAST}: real and generated clips are told apart through {runs[0][LAST].da.backbone}", flush=True)
    done = run_tasks(todo)
    results = [result(seed, runs[seed], done) for seed in range(seeds)]
    rows = [Row(name, steps, {m: [r.rows[name, steps][m] for r in results] for m in figures})
            for (name, steps), figures in results[0].rows.items()]
    print("".join(f"\n{table.text()}\n" for table in page.tables(results, rows, clips)))
    with atomic_write(folder / "table.json") as aside:
        aside.write_text(json.dumps(as_json(rows), indent=1) + "\n")
    sections = page.sections(results, rows, clips)
    return write_report(folder / "report.html", page.TITLE, sections, About(here()))
