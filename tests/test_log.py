"""The log of a run: its files, TensorBoard, wandb, and what is printed."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch

from swiftvideo_fast.config import Run, to_dict
from swiftvideo_fast.objectives.base import STUDENT
from swiftvideo_fast.train import log, recipe
from swiftvideo_fast.train.log import Log, read_log

SPEED_OF_ONE = {"seconds": 1.0}


def logging_to(folder: Path, start: int, steps: int) -> Log:
    return Log(SimpleNamespace(run=Run(str(folder), steps)), start, {})


def test_a_log_cut_by_a_kill_loses_its_last_line_only(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 0.1}\n{"step": 2, "loss": 0.2}\n{"step": 3, "lo')
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2]
    logging_to(tmp_path, start=1, steps=3).close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1, "loss": 0.1}\n'


def test_without_a_terminal_progress_is_a_plain_line_now_and_then(tmp_path, capsys, monkeypatch):
    said = logging_to(tmp_path, start=0, steps=4)
    for step in (1, 2, 3, 4):
        if step == 2:
            monkeypatch.setattr(log, "LINE_EVERY", 0.0)
        if step == 3:
            monkeypatch.setattr(log, "LINE_EVERY", 1e9)
        said(step, {"loss": 0.5}, SPEED_OF_ONE)
        said.tick()
    said.close()
    lines = capsys.readouterr().err.split("\n")
    name = tmp_path.name
    assert [line.partition(" steps, ")[0] for line in lines] == [f"{name}: 2/4", f"{name}: 4/4", ""]
    assert all(line.endswith(" left, loss 0.5") and "\r" not in line for line in lines[:2])


def test_a_tensor_in_the_log_is_a_histogram_on_tensorboard_alone(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said = logging_to(tmp_path, start=0, steps=1)
    said(1, {"loss": 0.5, "logits": torch.tensor([-1.0, 1.0, 1.0])}, SPEED_OF_ONE)
    said.close()
    assert read_log(tmp_path) == [{"step": 1, "loss": 0.5}]
    [shown] = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Histograms("logits")
    assert shown.histogram_value.num == 3


class Wandb:
    """A stub of wandb that records its calls."""

    def __init__(self):
        self.runs, self.lines, self.ended = [], [], 0

    def init(self, **about):
        self.runs.append(about)
        return self

    def log(self, values: dict, step: int) -> None:
        self.lines.append((step, values))

    def Image(self, pixels) -> tuple:  # noqa: N802
        return pixels.shape

    def finish(self) -> None:
        self.ended += 1


def test_wandb_is_told_what_the_log_is_told_and_a_resumed_run_is_the_same_run_there(inputs, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    cfg = tiny.config(inputs, "flow", run="told")
    cfg = replace(cfg, run=replace(cfg.run, wandb="a project", watch_every=3))
    run = recipe.train(cfg, tiny.TABLES)
    lines = [(line.pop("step"), line) for line in read_log(run)]
    told = [(step, {name: x for name, x in line.items() if not name.startswith("speed/")})
            for step, line in wandb.lines if "samples" not in line]
    assert told == lines and len(lines) == 6 and "speed/seconds" in wandb.lines[0][1]
    assert [(step, len(x["samples"])) for step, x in wandb.lines if "samples" in x] == [(3, 3), (6, 3)]
    (run / recipe.FILES[STUDENT]).unlink()
    recipe.train(cfg, tiny.TABLES)
    first, again = wandb.runs
    assert first == again and first["project"] == "a project" and first["resume"] == "allow" and first["id"]
    assert first["config"] == to_dict(cfg) and wandb.ended == 2


def test_wandb_that_is_not_there_is_missed_before_anything_is_written(inputs, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    cfg = tiny.config(inputs, "flow", run="untold")
    with pytest.raises(ValueError, match="run.wandb needs wandb: pip install wandb"):
        recipe.train(replace(cfg, run=replace(cfg.run, wandb="a project")), tiny.TABLES)
    assert not Path(cfg.run.dir).exists()


def test_a_log_that_the_disk_refuses_names_the_run(tmp_path):
    report = logging_to(tmp_path, start=0, steps=2)
    report.log.close()
    report.log = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(OSError, match=f"{tmp_path}: its log could not be written .*No space left"):
        report(1, {"loss": 1.0}, SPEED_OF_ONE)
    report.close()
