"""`swiftvideo runs`: a table of the runs below a folder, with step, state, last loss and age."""

import time
from dataclasses import astuple, dataclass
from pathlib import Path

from swiftvideo_fast.config.strict import want
from swiftvideo_fast.train import checkpoint, run_folder
from swiftvideo_fast.train.log import LOG, read_log

HEAD = "run", "objective", "step", "state", "loss", "steps/s", "changed"
UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


@dataclass(frozen=True)
class Row:
    """One run.  state: running (its folder is locked), finished, stopped, or damaged."""

    name: str
    objective: str
    step: str
    state: str
    loss: str
    rate: str
    age: str


def table(folder: Path) -> str:
    """Returns the table as text.  ValueError when `folder` is not a folder or contains no runs."""
    want(folder.is_dir(), "FOLDER", folder, "a folder with runs; run.dir names a run's")
    found = sorted({path.parent for path in folder.rglob(run_folder.CONFIG)})
    rows = [HEAD, *(astuple(row) for run in found if (row := row_of(run, folder)))]
    want(len(rows) > 1, "FOLDER", folder, "a folder with runs; there is none in it")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)


def row_of(run: Path, folder: Path) -> Row | None:
    """Returns a run's row; None when config.yaml belongs to another program."""
    name = str(run.relative_to(folder)) if run != folder else run.name
    files = [file for file in (run / LOG, run / run_folder.CONFIG) if file.exists()]
    age = ago(time.time() - max(file.stat().st_mtime for file in files))
    try:
        tree = run_folder.read_config(run)
    except ValueError:
        return Row(name, "-", "-", "damaged", "-", "-", age) if (run / LOG).exists() else None
    if not {"run", "objective"} <= tree.keys():
        return None
    log, speed = read_log(run), read_log(run, "speed.jsonl")
    last, steps = checkpoint.newest(run), tree["run"]["steps"]
    step = max([line["step"] for line in log[-1:]] + [checkpoint.step_of(last) if last else 0])
    done = last is not None and checkpoint.step_of(last) >= steps
    state = "running" if run_folder.is_held(run) else "finished" if done else "stopped"
    loss = next((f"{line['loss']:.4g}" for line in reversed(log) if "loss" in line), "-")
    rate = f"{1 / speed[-1]['seconds']:.3g}" if speed else "-"
    return Row(name, tree["objective"]["name"], f"{step}/{steps}", state, loss, rate, age)


def ago(seconds: float) -> str:
    """Returns an age in its largest unit: "3 h ago"."""
    for unit, size in UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "now"
