"""`make gpu`: its parts and the attention benchmark, without a GPU."""

import json
import sys
from pathlib import Path

import pytest
import torch
from swiftvideo_kernels import tiles
from swiftvideo_kernels.tiles import TILES, Tile

from bench import gpu, harness, step, tune, versus

FINE = {"ms": 3.0, "tflops": 500.0, "gb": 1.0, "error o": 1e-3, "error to": 1e-3}


def broken(*_):
    raise RuntimeError("an illegal memory access\nand more")


def stuck(*_):
    raise AssertionError("run though the card was lost")


@pytest.fixture
def card(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(versus, "RECORD", tmp_path / "gpu.json")
    monkeypatch.setattr(versus, "measure", lambda run, flops: {
        "ms": flops / 1e3, "tflops": versus.LEAST_TFLOPS + 1.0, "gb": 0.5})
    monkeypatch.setattr(versus, "sampled_error", lambda args, o, to: (o, to))
    return monkeypatch


def test_a_failed_part_does_not_stop_the_others_and_is_reported_last(card, tmp_path, capfd):
    card.setattr(gpu, "ROOT", tmp_path)
    card.setattr(gpu, "OUT", tmp_path / "out")
    card.setattr(gpu, "compile_all", lambda: None)
    card.setattr(gpu, "PARTS", {
        "one": gpu.Part(60, (sys.executable, "-c", "print('in one'); raise SystemExit(3)")),
        "two": gpu.Part(2, ("sh", "-c", "echo in two; exec sleep 60")),
        "three": gpu.Part(60, (sys.executable, "-c", "print('in three')"))})
    assert gpu.main([]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[-2:] == ["one: exit status 3, see out/one.log", "two: not done after 2 s"]
    assert {"in one", "in two", "in three"} <= set(lines)
    assert (tmp_path / "out" / "two.log").read_text() == "in two\n"
    assert gpu.main(["three"]) == 0
    with pytest.raises(SystemExit):
        gpu.main(["four"])


def test_the_parts_keep_to_eight_minutes_and_cover_every_shape_and_op():
    assert sum(gpu.PARTS[name].seconds for name in gpu.usual()) + 40 <= gpu.TOTAL
    words = [word for part in gpu.PARTS.values() for word in part.command]
    assert set(versus.SHAPES) | set(gpu.ELEMENTWISE) | {*step.STEPS, "phases", "kernels"} <= set(words)
    assert "build_ext" not in words, "the GPU's machine needs no C++"
    part = gpu.PARTS["attention"]
    assert gpu.command(part, True, ["a:b"])[-3:] == ["--record", "--peer", "a:b"]
    assert "--record" not in gpu.command(gpu.PARTS["tests"], True, []) + gpu.command(part, False, [])


def test_a_steps_figures_are_written_one_by_one(tmp_path, monkeypatch, capsys):
    """A tiny step on this device.  A failing part does not stop the others."""
    monkeypatch.setattr(step, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(step, "milliseconds", lambda run, repeats=3: (run(), 2.0)[1])
    monkeypatch.setattr(step, "sampling", broken)
    argv = ["sampling", "step", "kernels", "phases", "--preset", "tiny", "--frames", "5", "--size", "64x64",
            "--record"]
    assert step.main([*argv, "--out", str(tmp_path)]) == 1
    card, = json.loads((tmp_path / "record.json").read_text()).values()
    parts = card["step"]["wan_tiny"]["parts"]
    assert parts["step"]["ms"] == 2.0 and "all" in parts["kernels"]
    assert {"teacher, guided", "jvp", "student, recompute nothing"} <= set(parts)
    assert "sampling: RuntimeError" in capsys.readouterr().out


def test_a_gpu_is_timed_by_its_own_clock_after_a_sleep(monkeypatch):
    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            done.append("event")

        def synchronize(self):
            done.append("wait")

        def elapsed_time(self, ended):
            return 6.0

    done = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append(cycles))
    assert harness.queued(lambda: done.append("run"), 3) == 2.0
    assert done == [harness.WAIT, "event", "run", "run", "run", "event", "wait"]


def test_a_part_with_a_missing_library_is_reported_and_skipped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step, "find_spec", lambda name: None)
    argv = ["da", "zero3", "--preset", "tiny", "--frames", "5", "--size", "64x64", "--out", str(tmp_path)]
    assert step.main(argv) == 0
    said = capsys.readouterr().out
    assert "da: skipped, without diffusers and transformers\nzero3: skipped, without deepspeed\n" in said


def measured(ways):
    kept, args = [], [torch.zeros(1, 2, 3, 4)] * 6
    bad = versus.measured("wan_1_3b", ways, args, lambda found: kept.append(json.dumps(found)))
    return bad, json.loads(kept[-1]), len(kept)


def test_a_failing_candidate_does_not_stop_the_others(card):
    ways = {"forward a": broken, "forward b": lambda: None, "jvp ours": lambda: (1e-3, 1e-3),
            "jvp peer": broken, "jvp last": lambda: (0.0, 0.0)}
    bad, found, times = measured(ways)
    assert list(found) == ["forward b", "jvp ours", "jvp last"] and times == 3
    assert bad == [] and found["jvp ours"]["forwards"] == 3.0
    bad, found, _ = measured({"jvp ours": broken, "jvp last": lambda: (0.0, 0.0)})
    assert bad == ["wan_1_3b: RuntimeError"] and list(found) == ["jvp last"]


def test_a_lost_cuda_context_ends_the_shape_and_keeps_its_figures(card):
    card.setattr(torch.cuda, "synchronize", broken)
    bad, found, _ = measured({"forward b": lambda: None, "jvp tile": broken, "jvp ours": stuck})
    assert bad == ["wan_1_3b: jvp tile has cost the process its card; none after it is measured"]
    assert list(found) == ["forward b"]


def test_missed_limits_are_reported():
    def missed(shape, **figures):
        return versus.below(shape, {"jvp ours": FINE | figures})

    assert missed("wan_1_3b", forwards=3.0) == []
    assert missed("wan_1_3b", forwards=3.5, tflops=400.0, **{"error to": 4e-3}) == [
        "wan_1_3b: jvp ours: error of to is 4.0e-03, bar 0.0035", "wan_1_3b: 3.5 forwards a JVP, bar 3.4",
        "wan_1_3b: 400.0 TFLOP/s, bar 450"]
    assert missed("small", forwards=9.0, tflops=1.0) == []
    assert missed("small", forwards=1.0, **{"error o": float("nan")}) != []
    wrong = FINE | {"error o": 1.0}
    assert versus.below("small", {"jvp one pass 64x32": wrong, "jvp a:peer": wrong}) == [
        "small: jvp one pass 64x32: error of o is 1.0e+00, bar 0.0025"]


def test_the_record_has_device_date_and_versions(card, capsys):
    def at_shape(name, peers, keep):
        keep({"forward a": {"ms": 1.0}})
        return [f"{name}: a bar is missed"]

    card.setattr(versus, "at_shape", at_shape)
    assert versus.main(["small", "width_64", "--record"]) == 1
    assert capsys.readouterr().out.endswith("small: a bar is missed\nwidth_64: a bar is missed\n")
    record = json.loads(versus.RECORD.read_text())["a card"]
    assert list(record) == ["small", "width_64"] and record["small"]["ways"] == {"forward a": {"ms": 1.0}}
    assert f"torch {torch.__version__}, triton" in record["small"]["measured"]
    with pytest.raises(SystemExit):
        versus.main(["large"])


def test_a_tile_that_fails_or_is_wrong_is_never_first(card, capsys):
    card.setattr(tune.triton.testing, "do_bench", lambda run, return_mode: 2.0)
    good, bad, lost = Tile(64, 32, 4, 2), Tile(64, 64, 4, 2), Tile(32, 32, 4, 2)

    def launch(at):
        return broken() if at is lost else torch.ones(4) + (at is bad) * 0.1

    times = [tune.milliseconds(launch, at, launch(good)) for at in (good, bad, lost)]
    assert times == [2.0, float("inf"), float("inf")]
    said = capsys.readouterr().out
    assert "differs by 1.0e-01 from the launched" in said and "RuntimeError" in said


def test_a_row_of_the_table_is_rewritten_alone():
    text = Path(tiles.__file__).read_text()
    for key, row in TILES.items():
        exec(tune.rewritten(text, key, row[::-1]), found := {})
        assert found["TILES"] == TILES | {key: row[::-1]}
