"""A fixed sample of the sweep; all of it: python tests/opdb_sweep.py."""

from zlib import crc32

import opdb_sweep
import programs
import pytest


def two_forms(op):
    """Returns the database's form and one other, chosen by the operator's name."""
    others = opdb_sweep.FORMS[1:]
    return "plain", others[crc32(op.full_name.encode()) % len(others)]


@pytest.mark.filterwarnings("ignore")
def test_operators_of_torch_agree_with_its_forward_mode_in_every_form():
    counts, told = opdb_sweep.tally(opdb_sweep.sweep(opdb_sweep.operators([]), 1, two_forms))
    assert not [line for line in told if "wrong" in line]
    assert counts["right"] >= 0.98 * (counts["right"] + counts["refused"]) and counts["right"] > 1000


def test_random_programs_of_views_and_writes_agree():
    counts, told = opdb_sweep.tally(programs.run(200))
    assert not told and counts["right"] > 190
