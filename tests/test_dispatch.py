"""Which instruction set's kernels the CPU runs."""

import itertools

import pytest
import torch

from swiftvideo_fast import _C


def test_an_isa_runs_until_the_one_before_does_again():
    """A row's sum is in another order at each, and so its last bits."""
    x, s, b = (torch.randn(shape, generator=torch.Generator().manual_seed(0))
               for shape in ((1, 50, 1536), (1, 1536), (1, 1536)))
    widest, found = _C.isas()[-1], []
    for isa in _C.isas():
        assert _C.use_isa(isa) == widest
        found.append(_C.modulate(x, s, b, 1e-6))
        assert _C.use_isa(widest) == isa
    assert not any(itertools.starmap(torch.equal, itertools.combinations(found, 2)))


def test_an_isa_this_machine_lacks_is_refused():
    with pytest.raises(ValueError, match="use_isa: mmx is not an instruction set of this machine"):
        _C.use_isa("mmx")
