"""A fixed sample of PyTorch's operator database; all of it: python tests/opdb_sweep.py."""

from collections import Counter

import opdb_sweep
import pytest


@pytest.mark.filterwarnings("ignore")
def test_operators_of_torch_agree_with_its_forward_mode():
    results = list(opdb_sweep.sweep(opdb_sweep.operators([]), samples=1))
    counts = Counter(result.split(":")[0] for _, result in results)
    assert not [r for r in results if r[1].startswith("wrong")]
    assert counts["equal"] >= 0.99 * (counts["equal"] + counts["raised"]) and counts["equal"] > 1000
