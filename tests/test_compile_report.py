"""The compile report of a sample of kernels, without a GPU.  All kernels: bench compile_report."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from swiftvideo_fast import ops

ROOT = Path(__file__).parents[1]
PATHS = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}


def test_no_sampled_kernel_spills_or_loses_its_tensor_cores():
    """Runs in a subprocess: triton selects the interpreter at import."""
    pytest.importorskip("triton")
    report = subprocess.run([sys.executable, "-m", "bench", "compile_report", "--sample"], cwd=ROOT,
                            text=True, env=PATHS, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert report.returncode == 0, report.stdout[-2000:]
    compiled = {line.split()[1] for line in report.stdout.splitlines()}
    for name in ops.OPS:
        assert compiled & set(ops.custom_ops(name)), f"{name} has no kernel in the report"


PLANTED = """
from bench import compile_report
figures = {"registers": 168, "stack": 0, "spills": 0, "shared": 227 * 1024, "HGMMA": 24, "F2F": 0, "U16": 0}
for change in ({}, {"spills": 2}, {"stack": 8}, {"HGMMA": 0}, {"shared": 227 * 1024 + 1}, {"F2F": 64}):
    print(*compile_report.faults("attention_jvp sm90 128", 90, figures | change))
print(*compile_report.faults("tangent", 90, figures | {"U16": 48}))
lines = "BAR.SYNC 0", "BAR.SYNC 0", "@P0 BRA 0x0040", "@!P1 BRA 0x0010", "BAR.SYNC 0", "BRA 0x0000"
sass = "".join(f"/*{16 * i:04x}*/ {line} ;" for i, line in enumerate(lines))
print(compile_report.looped(sass, "BAR.SYNC"))
compile_report.sample = lambda: ("gate_jvp 5120", "attention_jpv")
compile_report.main(["--sample"])
"""


def test_planted_faults_and_missing_kernels_are_reported():
    """A sample must not pass after its kernels are renamed."""
    pytest.importorskip("triton")
    told = subprocess.run([sys.executable, "-c", PLANTED], cwd=ROOT, text=True, capture_output=True,
                          env=PATHS)
    assert told.stdout.split("\n") == [
        "", "spills (2 stores, 0 bytes of stack)", "spills (0 stores, 8 bytes of stack)", "has no HGMMA",
        "needs 232449 bytes of shared memory; the limit is 232448", "rounds one value at a time (64 F2F)",
        "moves two bytes at a time (48 loads and stores)",
        "1", ""]
    assert told.returncode == 2 and "no kernel's name begins with 'attention_jpv'" in told.stderr


PAIRS = """
from bench.compile_report import compiled, meta
import torch, triton
import triton.language as tl
from swiftvideo_kernels.blocks import rounded

def kernel(x_ptr, narrow_ptr, wide_ptr):
    at = tl.arange(0, 64)
    narrow, wide = rounded(tl.load(x_ptr + at), tl.zeros([1], tl.bfloat16), True)
    tl.store(narrow_ptr + at, narrow)
    tl.store(wide_ptr + at, wide)

x, wide, narrow = meta(64, dtype=torch.float32), meta(64, dtype=torch.float32), meta(64)
print(compiled(lambda: triton.jit(kernel)[(1,)](x, narrow, wide, num_warps=1), 90)[0].asm["ptx"])
"""


def test_a_pair_is_rounded_into_its_own_halves(tmp_path):
    """The interpreter has no PTX.  cvt's first source is the upper half; what lies first is the lower."""
    pytest.importorskip("triton")
    (tmp_path / "pairs.py").write_text(PAIRS)
    ptx = subprocess.run([sys.executable, tmp_path / "pairs.py"], cwd=ROOT, text=True, capture_output=True,
                         env=PATHS).stdout
    assert re.search(r"ld\.global\.v2\.b32\s+{ (%r\d+), (%r\d+) }.*"
                     r"cvt\.rn\.bf16x2\.f32 (%r\d+), \2, \1;.*"
                     r"shl\.b32 (%r\d+), \3, 16; and\.b32 (%r\d+), \3, 0xffff0000;.*"
                     r"st\.global\.b32 [^{]*{ \3 }.*st\.global\.v2\.b32 [^{]*{ \4, \5 }", ptx, re.DOTALL), ptx
