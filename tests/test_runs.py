"""Runs: extended, moved, with changed settings, speed and starts recorded, listed."""

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from test_train import everything, scalars

from swiftvideo_fast import cli
from swiftvideo_fast.config import Config
from swiftvideo_fast.models import weights
from swiftvideo_fast.objectives.base import AVERAGE
from swiftvideo_fast.train import checkpoint, listing, loop, recipe, run_folder, speed
from swiftvideo_fast.train.log import SPEED, read_log


def train(cfg: Config, **changes) -> Path:
    """changes: of the run section."""
    return recipe.train(with_run(cfg, **changes), tiny.TABLES)


def with_run(cfg: Config, **changes) -> Config:
    return replace(cfg, run=replace(cfg.run, **changes))


def test_an_extended_run_of_constant_rate_ends_with_the_bits_of_a_run_of_that_length(inputs, capsys):
    cfg = tiny.config(inputs, "ccd", run="long", optim={"schedule": "constant"})
    want = everything(train(cfg, steps=8))
    shutil.rmtree(inputs / "long")
    short = {name: (train(cfg) / name).read_bytes() for name in recipe.FILES.values()}
    assert capsys.readouterr().err.count("extended") == 0
    run = train(cfg, steps=8)
    assert "long: extended from 6 to 8 steps\n" in capsys.readouterr().err
    kept = {name: run / f"{Path(name).stem}-00000006.safetensors" for name in short}
    assert all(kept[name].read_bytes() == raw for name, raw in short.items()), "the shorter run's weights"
    for file in kept.values():
        file.unlink()
    assert everything(run) == want


def test_an_extended_run_goes_on_at_the_rates_of_the_longer_schedule_and_says_so(inputs, capsys):
    cfg = tiny.config(inputs, "flow", run="rates")
    log = read_log(train(cfg)) and read_log(train(cfg, steps=9))
    rates = [loop.learning_rate(cfg.optim, step, 6 if step < 6 else 9) for step in range(9)]
    assert [line["lr"] for line in log] == rates and rates[6] > 100 * rates[5] * math.ulp(1.0)
    assert "; the cosine schedule now spans the longer run: lr 0 -> 0.00025" in capsys.readouterr().err


def test_an_extended_run_that_was_cut_short_does_not_end_with_its_old_weights(inputs, monkeypatch):
    cfg = tiny.config(inputs, "flow", run="cut")
    old = weights.load(train(cfg) / recipe.FILES[AVERAGE]).head.head.weight

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recipe, "export", killed)             # all steps taken, and a checkpoint of them
        train(cfg, steps=8)
    assert checkpoint.newest(Path(cfg.run.dir)).name == "step-00000008"
    run = train(cfg, steps=8)
    assert not torch.equal(weights.load(run / recipe.FILES[AVERAGE]).head.head.weight, old)


def test_fewer_steps_than_a_run_has_are_refused(inputs):
    cfg = tiny.config(inputs, "flow", run="shorter")
    want = everything(train(cfg))
    with pytest.raises(ValueError, match="shorter is at step 6; want run.steps of 6 or more .found 5., or"):
        train(cfg, steps=5)
    assert everything(Path(cfg.run.dir)) == want


@pytest.mark.filterwarnings("ignore:.*step")
def test_what_no_step_depends_on_may_change_from_one_start_to_the_next(inputs):
    cfg = tiny.config(inputs, "da", run="changed")
    train(cfg, steps=4)
    changed = replace(cfg, da=replace(cfg.da, watch=3), optim=replace(cfg.optim, max_skips=9),
                      model=replace(cfg.model, recompute="blocks"))
    run = train(changed, steps=8, save_every=1, log_every=2, keep=3, watch_every=4)
    assert [line["step"] for line in read_log(run)] == [1, 2, 3, 4, 6, 8]
    assert [f.name for f in checkpoint.folders(run)] == [f"step-0000000{n}" for n in (6, 7, 8)]
    assert (run / "samples/step-00000008.mp4").exists()
    with pytest.raises(ValueError, match=r"another config \(da.lr: 0.001 -> 0.01\); choose another run"):
        train(replace(cfg, da=replace(cfg.da, lr=0.01)), steps=9)


def test_a_run_may_move_with_what_lies_beside_it(inputs, tmp_path):
    """As in rounds of alignment: the second starts from the first's student, ../8-4."""
    first = train(tiny.config(inputs, "flow", run=str(tmp_path / "old/8-4")))
    cfg = tiny.config(inputs, "ccd", run=str(tmp_path / "old/4-2"),
                      model={"student": str(first / recipe.FILES[AVERAGE])})
    train(cfg)
    (tmp_path / "old").rename(tmp_path / "new")
    moved = replace(cfg, model=replace(cfg.model, student=f"{tmp_path}/new/8-4/{recipe.FILES[AVERAGE]}"))
    run = train(moved, dir=f"{tmp_path}/new/4-2", steps=8)
    assert checkpoint.newest(run).name == "step-00000008" and not (tmp_path / "old").exists()
    other = replace(moved, model=replace(moved.model, student=cfg.model.weights))
    with pytest.raises(ValueError, match="holds a run of another config .model.student"):
        train(other, dir=f"{tmp_path}/new/4-2", steps=8)


def test_a_path_may_be_written_in_another_way(inputs, monkeypatch):
    cfg = tiny.config(inputs, "ccd", run="spelled")
    train(cfg)
    monkeypatch.chdir(inputs)
    run_folder.check(replace(cfg, model=replace(cfg.model, weights="teacher.safetensors")),
                     tiny.TABLES.fill_defaults)


def test_no_message_advises_to_delete_a_training():
    package = Path(cli.__file__).parents[1]
    for file in [*package.glob("train/*.py"), *package.glob("cli/*.py")]:
        assert "delete" not in file.read_text(), file


# Speed and starts.

def test_speed_is_recorded_and_shown_and_leaves_the_log_as_it_is(inputs):
    cfg = tiny.config(inputs, "ccd", run="timed")
    run = train(cfg, log_every=3)
    lines = read_log(run, SPEED)
    assert [line["step"] for line in lines] == [3, 6]
    for line in lines:
        assert line["clips_per_second"] == pytest.approx(2 / line["seconds"])
        assert line["tokens_per_second"] == pytest.approx(line["clips_per_second"] * 2)     # 2 x 1 x 1 tokens
        assert 0 < line["waiting"] < 1 and line["memory_gb"] > 0.1
    assert not {"seconds", "waiting", "memory_gb"} & {name for line in read_log(run) for name in line}
    assert scalars(run).keys() == {name for name in read_log(run)[0] if name != "step"}
    first = run / SPEED
    first.write_text(first.read_text() + '{"step": 9, "sec')
    train(cfg, log_every=3, steps=9)
    assert [line["step"] for line in read_log(run, SPEED)] == [3, 6, 9]


def test_speed_is_the_mean_over_steps_and_what_is_between_them_does_not_count(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 4.0, 100.0, 101.0, 103.0, 103.5, 104.0, 104.5])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    source = speed.Timed(SimpleNamespace(draw=lambda *_: None, prefetch=False))
    meter = speed.Speed(source, clips=8, tokens=10, device=torch.device("cpu"))
    for _ in range(2):                      # 4 s of which 2, then 4 s of which 0.5... counted by hand
        with meter.step():
            source.draw(1, 0, 0)
    found = meter.read()
    assert found | {"memory_gb": 0} == {"seconds": 3.75, "clips_per_second": 16 / 7.5,
                                        "tokens_per_second": 160 / 7.5, "waiting": 4 / 7.5, "memory_gb": 0}
    with meter.step():
        pass
    assert meter.read()["waiting"] == 0


def test_a_run_records_each_start(inputs, monkeypatch):
    monkeypatch.setattr("sys.argv", ["swiftvideo", "train", "a b.yaml"])
    cfg = tiny.config(inputs, "flow", run="starts")
    run = train(cfg)
    train(cfg)                              # ends at once, and is no start
    train(cfg, steps=7)
    starts = [json.loads(line) for line in (run / run_folder.STARTS).read_text().splitlines()]
    assert [start["step"] for start in starts] == [0, 6]
    assert all(torch.__version__.startswith(start["torch"]) and start["device"] for start in starts)
    assert starts[0]["command"] == "swiftvideo train 'a b.yaml'"
    assert starts[0].keys() == {"time", "step", "python", "swiftvideo_fast", "torch", "triton", "commit",
                                "device", "command"}


# The list.

def test_runs_are_listed_with_their_state(inputs, tmp_path, capsys):
    cfg = tiny.config(inputs, "ccd", run=str(tmp_path / "a/done"))
    train(cfg)
    train(replace(cfg, optim=replace(cfg.optim, lr=2e-3)), dir=str(tmp_path / "cut"), steps=4)
    tree = (tmp_path / "cut/config.yaml").read_text()
    (tmp_path / "cut/config.yaml").write_text(tree.replace("steps: 4", "steps: 9"))
    shutil.copytree(tmp_path / "cut", tmp_path / "damaged")
    (tmp_path / "damaged/config.yaml").write_text("")
    shutil.copytree(tmp_path / "cut", tmp_path / "held")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.yaml").write_text("name: of another program\n")
    os.utime(tmp_path / "cut/log.jsonl", (0, 0))
    os.utime(tmp_path / "cut/config.yaml", (0, 0))
    lock = run_folder.Lock(with_run(cfg, dir=str(tmp_path / "held")))
    lock.acquire()
    assert cli.main(["runs", str(tmp_path)]) == 0
    lock.close()
    head, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == list(listing.HEAD) and [row[0] for row in rows] == ["a/done", "cut", "damaged", "held"]
    assert [row[1:4] for row in rows] == [["ccd", "6/6", "finished"], ["ccd", "4/9", "stopped"],
                                          ["-", "-", "damaged"], ["ccd", "4/9", "running"]]
    loss = read_log(tmp_path / "a/done")[-1]["loss"]
    assert rows[0][4] == f"{loss:.4g}" and rows[1][-2:] == ["d", "ago"]
    assert cli.main(["runs", str(tmp_path / "a/done")]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("done")


@pytest.mark.parametrize("seconds, want", [
    (0, "now"), (59, "59 s ago"), (60, "1 min ago"), (3599, "59 min ago"), (7200, "2 h ago"),
    (1e6, "11 d ago")])
def test_an_age_is_in_its_largest_unit(seconds, want):
    assert listing.ago(seconds) == want
