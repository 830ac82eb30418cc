"""Compiled code of attention_jvp_hopper for sm_90 with the installed triton; the record of other versions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATHS = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}


def run(*command: str) -> subprocess.CompletedProcess:
    """Runs in a subprocess: triton selects the interpreter at import."""
    pytest.importorskip("triton")
    return subprocess.run([sys.executable, *command], cwd=ROOT, text=True, env=PATHS, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL)


def test_no_loop_is_serialised_or_spills_or_joins_the_consumers():
    report = run("-m", "bench", "hopper_report", "six, causal, packed", "four")
    assert report.returncode == 0, report.stdout[-2000:]
    assert report.stdout.count("loop:") == 4


PLANTED = """
from bench import hopper_report as r
loop = {"HGMMA": 36, "waits": 3, "STL": 0, "LDL": 0, "BAR of all": 0, "F2F": 0, "hazards": 0}
good = {"loops": [loop, loop], "SETMAXREG": [24, 240], "shared": 227 * 1024}
for change in ({}, {"STL": 1}, {"LDL": 1}, {"waits": 36}, {"HGMMA": 35}, {"BAR of all": 1}, {"F2F": 1},
               {"hazards": 1}):
    print(len(r.faults(good | {"loops": [loop, loop | change]}, 36, 240, (3, 8))))
for change in ({"loops": [loop]}, {"SETMAXREG": [240]}, {"shared": 227 * 1024 + 1}):
    print(len(r.faults(good | change, 36, 240, (3, 8))))
product = "HGMMA.64x64x16.F32.BF16 R24, R88, gdesc[UR4], R24, gsb0"
wait = "WARPGROUP.DEPBAR.LE gsb0, 0x0"
for body in ([product, wait, "FMUL R88, R1, R1"], [product, "FMUL R88, R1, R1", wait],
             [product, "FADD R1, R30, R2", wait], [product, "FADD R1, R90, R2", wait]):
    print(r.hazards(body))
code = list(enumerate(["MOV R1, R2", product, wait, "@P0 BRA 0x1", "BAR.SYNC.DEFER_BLOCKING 0x0"]))
print(r.loops(code) == [[text for _, text in code[1:4]]])
print(r.counts(["BAR.SYNC.DEFER_BLOCKING 0x0", "BAR.SYNC.DEFER_BLOCKING 0x2, 0x80"])["BAR of all"])
"""


def test_planted_faults_are_reported():
    planted = run("-c", PLANTED).stdout.split()
    assert planted == ["0", *["1"] * 10, "0", "1", "1", "0", "True", "1"]


def test_the_record_has_three_tritons_two_without_spills_in_loops():
    record = json.loads((ROOT / "bench/hopper.json").read_text())
    assert {"triton 3.6.0", "triton 3.8.0", "triton 3.9.0"} <= set(record)
    for triton in ("triton 3.6.0", "triton 3.8.0"):
        for name, figures in record[triton].items():
            for loop in figures["loops"]:
                assert loop["STL"] == loop["LDL"] == loop["BAR of all"] == 0, (triton, name)
                assert loop["waits"] <= 3, (triton, name)
