"""The compiler's report on a sample of kernels, without a GPU.  On all: `python -m bench sm90`, by hand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KERNELS = """attention_jvp attention_tangent modulate_jvp modulate_backward norm_rope_jvp norm_rope_backward
             gate_jvp gate_backward gelu_jvp tangent ccd_loss ema_""".split()


def test_no_sampled_kernel_spills_or_loses_its_tensor_cores():
    """In a process of its own: triton decides on import whether it interprets."""
    pytest.importorskip("triton")
    report = subprocess.run([sys.executable, "-m", "bench", "sm90", "--sample"], cwd=ROOT, text=True,
                            env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"},
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert report.returncode == 0, report.stdout[-2000:]
    assert {line.split()[1] for line in report.stdout.splitlines()} == set(KERNELS)
