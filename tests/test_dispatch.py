"""Selection of the CPU kernels' instruction set."""

import itertools
import subprocess
import sys

import pytest
import torch

from swiftvideo_fast import _C


def test_use_isa_switches_and_returns_the_previous_isa():
    """Each instruction set sums a row in another order, so the last bits differ."""
    x, s, b = (torch.randn(shape, generator=torch.Generator().manual_seed(0))
               for shape in ((1, 50, 1536), (1, 1536), (1, 1536)))
    widest, found = _C.isas()[-1], []
    for isa in _C.isas():
        assert _C.use_isa(isa) == widest
        found.append(_C.modulate(x, s, b, 1e-6))
        assert _C.use_isa(widest) == isa
    assert not any(itertools.starmap(torch.equal, itertools.combinations(found, 2)))


def test_an_unsupported_isa_is_refused():
    with pytest.raises(ValueError, match="use_isa: mmx is not an instruction set of this machine"):
        _C.use_isa("mmx")


WITHOUT = """
import sys
sys.modules["swiftvideo_fast._C"] = None
import torch
from swiftvideo_fast import doctor, ops
print("CPU backend: " in doctor.report())
ops.gelu(torch.ones(3))
"""


def test_without_the_extension_the_package_imports_and_a_cpu_op_says_how_to_build_it():
    """A GPU machine needs no build."""
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.stdout == "True\n"
    assert "ImportError: gelu on the CPU needs the extension" in done.stderr and "pip install" in done.stderr
