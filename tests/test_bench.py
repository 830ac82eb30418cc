"""The bench: wrong cases are not timed, regressions are found, noise is not a regression."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import bench_demo, data, gpu, growth, harness, memory, sampling, step, sweep, table, tune, versus
from bench.growth import slope
from bench.harness import CASES, Case, case, fault, measure
from bench.options import output

SIDE = 192
ROOT = Path(__file__).parents[1]
PATHS = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}


@pytest.fixture
def planted(monkeypatch, tmp_path):
    """One replaceable case with its own record, and a function that runs the command."""
    monkeypatch.setattr(harness, "CASES", {})
    monkeypatch.setattr(table, "CASES", harness.CASES)
    monkeypatch.setattr(table, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()

    def bench(*argv, ours=lambda a: a @ a, theirs=lambda a: a @ a, peers=()):
        harness.CASES.clear()

        @case("product", cpu=(SIDE,))
        def build(side, device, dtype):
            a = torch.randn(side, side, device=device, dtype=dtype)
            return Case(lambda: ours(a), lambda: theirs(a), flops=2 * side**3, peers=dict(peers))

        return table.main(["--seconds", "0.05", *argv])

    yield bench
    torch.set_num_threads(threads)


def slower(a):
    a @ a
    return a @ a


def larger(a):
    kept = a.clone()
    y = a @ a
    del kept
    return y


def test_a_planted_slowdown_fails_the_check(planted, capsys):
    assert planted("--record") == 0
    assert planted("--check", ours=slower) == 1
    assert "ours / torch is" in capsys.readouterr().out


def test_a_planted_allocation_fails_the_check(planted, capsys):
    assert planted("--record") == 0
    assert planted("--check", ours=larger) == 1
    assert "peak memory is" in capsys.readouterr().out


def test_the_same_code_passes_the_check_twenty_times_of_twenty(planted):
    assert planted("--record") == 0
    assert [planted("--check") for _ in range(20)] == [0] * 20


def row(ratio, peak=100):
    return harness.Row("x", 1, 1, ratio, "torch", 1, "GB/s", 1, "copy", peak, 100, {})


def test_one_good_remeasurement_passes():
    trials = iter([9.0, 9.0, 1.0])
    assert table.losses(row(9.0), {"ratio": 1.0, "peak": 100}, lambda times: row(next(trials)), "cpu") == []


def test_a_case_slow_in_every_remeasurement_fails():
    tried = []
    lost = table.losses(row(9.0), {"ratio": 1.0, "peak": 100}, lambda n: tried.append(n) or row(8.0), "cpu")
    assert len(lost) == 1 and "8.000 in the best of 5" in lost[0] and tried == [2, 3, 4, 5]


def test_memory_is_not_remeasured():
    assert len(table.losses(row(1.0, peak=103), {"ratio": 1.0, "peak": 100}, None, "cpu")) == 1


@pytest.mark.parametrize("wrong, told", [
    (lambda a: 1.01 * (a @ a), "relative to torch's result"),
    (lambda a: (a @ a) * float("nan"), "error of nan"),
    (lambda a: a @ a[1:], "RuntimeError"),
])
def test_a_wrong_case_is_reported_and_not_timed(planted, capsys, monkeypatch, wrong, told):
    monkeypatch.setattr(table, "measure", lambda *_: pytest.fail("it was timed"))
    assert planted(ours=wrong) == 1
    out = capsys.readouterr().out
    assert told in out and "not timed" in out


def test_a_peer_that_raises_is_reported_and_skipped(planted, capsys):
    def cannot():
        raise NotImplementedError("no such kernel\nhere")

    assert planted(peers={"rival": cannot, "equal": lambda: None}) == 0
    out = capsys.readouterr().out
    assert "product/cpu: rival is skipped: NotImplementedError: no such kernel\n" in out and "equal" in out


def test_an_unknown_case_prefix_is_refused(planted, capsys):
    with pytest.raises(SystemExit):
        planted("quotient")
    assert "no case with prefix 'quotient'" in capsys.readouterr().err


def test_a_device_without_a_record_passes_and_is_reported(planted, capsys):
    assert planted("--check") == 0
    assert "not on record" in capsys.readouterr().out


def test_table_chart_json_and_trace_are_written(planted, tmp_path):
    files = {name: tmp_path / name for name in ("t.json", "t.png", "traces")}
    json_, png, traces = map(str, files.values())
    assert planted("--json", json_, "--png", png, "--trace", traces) == 0
    told, = json.loads(files["t.json"].read_text())["rows"]
    assert told["limit"] == "matmul" and told["peak"] == SIDE * SIDE * 4
    assert files["t.png"].stat().st_size > 1000
    assert [f.suffix for f in files["traces"].iterdir()] == [".json"]


def test_the_share_is_relative_to_a_copy_of_the_same_bytes():
    x = torch.ones(1 << 16)
    found = measure("copy", Case(lambda: x.clone(), lambda: x.clone(), bytes_moved=8 * x.numel()), "cpu",
                    torch.float32, 0.05)
    assert found.limit == "copy" and 0.2 < found.share < 5 and found.peak == 4 * x.numel()


@pytest.mark.parametrize("name", ["block_jvp", "network_jvp", "ccd_step"])
def test_the_networks_cases_agree_with_torch(name):
    torch.manual_seed(0)
    assert fault(CASES[f"{name}/cpu"](device="cpu", dtype=torch.float32), torch.float32) is None


def test_a_case_torch_cannot_run_is_compared_with_the_limit():
    a = torch.ones(SIDE, SIDE)

    def fill():
        a.fill_(1)

    cannot = Case(lambda: a @ a, lambda: None, flops=2 * SIDE**3)
    in_place = Case(fill, fill, bytes_moved=4 * a.numel())
    found = [measure("x", way, "cpu", torch.float32, 0.01).baseline for way in (cannot, in_place)]
    assert found == ["matmul", "torch"]


def test_growth_prints_its_slopes_and_draws_them(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "SECONDS", 0.05)
    monkeypatch.setitem(growth.SIDES, "cpu", (64, 64))
    assert growth.main(["--frames", "5", "9", "--png", str(tmp_path / "growth.png")]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["attention_jvp", "modulate_jvp", "network_jvp"]
    assert all("time ~ N^" in line and "memory ~ N^" in line for line in lines)
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_the_slope_is_the_exponent():
    assert slope([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)


@pytest.mark.parametrize("command, words, told", [
    (table, "--threads 0", "--threads: '0'; want a whole number, at least 1"),
    (table, "--seconds -1", "--seconds: '-1'; want a number of seconds above 0"),
    (table, "--seconds nan", "--seconds: 'nan'; want a number of seconds above 0"),
    (table, "--png x.foo", "--png: 'x.foo'; want a name that ends in .png, .pdf, .svg"),
    (table, "--json nowhere/t.json", "--json: cannot write nowhere/t.json: No such file or directory"),
    (table, "--json .", "--json: cannot write .: Is a directory"),
    (table, "--trace README.md/t", "--trace: cannot write into README.md/t"),
    (table, "quotient", "no case with prefix 'quotient'"),
    (memory, "--frames 60", "60 frames of 832x480; want 4n + 1 frames"),
    (memory, "--size foo", "--size: 'foo'; want WIDTHxHEIGHT in pixels, such as 832x480"),
    (memory, "--size 0x0", "--size: '0x0'; want WIDTHxHEIGHT"),
    (memory, "--size 830x480", "61 frames of 830x480; want 4n + 1 frames, sides multiples of 16"),
    (memory, "--pass step --against torch", "want --pass jvp, found step"),
    (sweep, "--frames 61 60", "60 frames of 832x480; want 4n + 1 frames"),
    (sweep, "--csv nowhere/s.csv", "--csv: cannot write nowhere/s.csv"),
    (growth, "--frames 6", "6 frames of 256x256; want 4n + 1 frames"),
    (step, "--size foo", "--size: 'foo'; want WIDTHxHEIGHT"),
    (step, "--frames 60", "60 frames of 832x480; want 4n + 1 frames"),
    (sampling, "--frames 60", "frames is 60; want 4n + 1"),
    (data, "--size foo", "--size: 'foo'; want WIDTHxHEIGHT"),
    (data, "--threads 0", "--threads: '0'; want a whole number"),
    (data, "--size 3x3", "--size: 3x3; want even sides"),
    (table, "--trace /proc/t", "--trace: cannot write into /proc/t: /proc is not a writable folder"),
    (table, "--trace=", "--trace: ''; want a folder's path"),
    (step, "--out /proc/t", "--out: cannot write into /proc/t: /proc is not a writable folder"),
    (step, "three", "no part 'three'; there are 'step', 'kernels'"),
    (growth, "--frames 5 5", "--frames: 5; want two different numbers or more"),
    (memory, "--table --pass step", "--table predicts every pass; want no --pass"),
    (memory, "--table --png t.png", "--table predicts every pass; want no --pass"),
    (gpu, "three", "no part 'three'; there are 'step', 'attention'"),
    (gpu, "--peer json.dumps", "--peer: 'json.dumps'; want package.module:function"),
    (versus, "large", "no shape 'large'; there are 'wan_1_3b'"),
    (versus, "--peer no_such.package:f", "no package no_such is installed"),
    (tune, "--wrote", "unrecognized arguments: --wrote"),
], ids=lambda x: getattr(x, "__name__", x))
def test_a_wrong_argument_is_one_line_before_anything_is_measured(command, words, told, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        command.main(words.split())
    out, err = capsys.readouterr()
    assert end.value.code == 2 and not out and err.count("\n") == 1 and told in err


REPORTS = """
import importlib, sys, torch
torch.cuda.is_available = lambda: False
for line in sys.stdin.read().splitlines():
    command, *words = line.split()
    try:
        importlib.import_module(f"bench.{command}").main(words)
        print("accepted", line)
    except SystemExit as end:
        assert end.code == 2, line
"""


def test_wrong_arguments_of_the_reports_are_one_line_each():
    """Runs in a subprocess: triton selects the interpreter at import."""
    pytest.importorskip("triton")
    told = {
        "compile_report --slice 1/0": "--slice: '1/0'; want I/N with I from 0 to N - 1, such as 0/4",
        "compile_report --slice 3/2": "--slice: '3/2'; want I/N",
        "compile_report --slice foo": "--slice: 'foo'; want I/N",
        "compile_report --slice 1/2/3": "--slice: '1/2/3'; want I/N",
        "compile_report --arch 70": "--arch: invalid choice: 70",
        "compile_report attention_jpv": "no kernel's name begins with 'attention_jpv'",
        "compile_report --sample --arch 80": "--sample has its own names and architecture",
        "hopper_report seven": "no case 'seven'; there are 'six', 'six, the",
        "hopper_report --cubin README.md": "--cubin: cannot write into README.md",
        "hopper_report --cubin . --record": "--cubin only writes, always the same two",
        "hopper_card left": "no part 'left'; there are 'right'",
        "hopper_card --part right --share 2": "--share 2, parts []; want --part alone, --share below 2",
        "hopper_card right --part speed": "parts ['right']; want --part alone",
    }
    ran = subprocess.run([sys.executable, "-c", REPORTS], cwd=ROOT, text=True, env=PATHS,
                         input="\n".join(told), capture_output=True)
    lines = [line for line in ran.stderr.splitlines() if line.startswith("python -m bench")]
    assert ran.returncode == 0 and not ran.stdout, ran.stdout + ran.stderr[-2000:]
    assert len(lines) == len(told)
    for line, (words, message) in zip(lines, told.items(), strict=True):
        assert line.startswith(f"python -m bench {words.split()[0]}: ") and message in line


def test_checking_an_output_path_leaves_no_file(tmp_path):
    kept = tmp_path / "kept.json"
    kept.write_text("before")
    assert output(str(kept)) == kept and kept.read_text() == "before"
    output(str(tmp_path / "new.json"))
    assert not (tmp_path / "new.json").exists()


def test_the_peers_column_has_a_header(planted, capsys):
    assert planted(peers={"equal": lambda: None}) == 0
    _, head, row, *_ = capsys.readouterr().out.splitlines()
    assert head.index("times faster than peers") <= row.index("equal")


def test_a_case_needs_bytes_or_flops():
    with pytest.raises(ValueError, match="neither bytes_moved nor flops is given"):
        Case(lambda: None, lambda: None)
    assert bench_demo.build(2, 5, 8, 8, device="cpu", dtype=torch.float32).flops > 0
