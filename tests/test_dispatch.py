"""Which level of the CPU room's kernels runs."""

import itertools

import pytest
import torch

from swiftvideo_fast import _C


def test_a_level_runs_until_the_one_before_does_again():
    """A row's sum is in another order at each, and so its last bits."""
    x, s, b = (torch.randn(shape, generator=torch.Generator().manual_seed(0))
               for shape in ((1, 50, 1536), (1, 1536), (1, 1536)))
    widest, found = _C.levels()[-1], []
    for level in _C.levels():
        assert _C.use_level(level) == widest
        found.append(_C.modulate(x, s, b, 1e-6))
        assert _C.use_level(widest) == level
    assert not any(itertools.starmap(torch.equal, itertools.combinations(found, 2)))


def test_a_level_this_machine_lacks_is_refused():
    with pytest.raises(ValueError, match="use_level: mmx is not a level of this machine"):
        _C.use_level("mmx")
