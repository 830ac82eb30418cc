"""Exponential moving average on the CPU, with its low-precision copy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import ISAS, normal, with_isa

from swiftvideo_fast.ops import ema_, reference
from swiftvideo_fast.ops.ema import ema_op

SIZES = st.lists(st.one_of(st.integers(0, 100), st.integers(1, 40000)), min_size=0, max_size=5)


@settings(max_examples=40)
@given(isa=ISAS, sizes=SIZES, copied=st.sampled_from([None, torch.float32, torch.bfloat16]),
       decay=st.sampled_from([0.0, 0.95, 0.9999, 1.0]))
def test_moves_the_average_and_fills_the_copy(isa, sizes, copied, decay):
    rng = torch.Generator().manual_seed(sum(sizes))
    average, master = ([normal(rng, n, dtype=torch.float32) for n in sizes] for _ in range(2))
    copy = None if copied is None else [torch.full_like(a, torch.nan, dtype=copied) for a in average]
    want = [reference.ema(a.double(), m.double(), decay) for a, m in zip(average, master, strict=True)]
    with with_isa(isa):
        ema_(average, master, decay, copy)
    for a, w in zip(average, want, strict=True):
        torch.testing.assert_close(a.double(), w, rtol=2e-7, atol=2e-7)
    for a, c in zip(average, copy or [], strict=False):
        assert torch.equal(a.to(copied), c)


@pytest.mark.parametrize("offset", [0, 1])
def test_a_shard_larger_than_the_caches_is_the_same(rng, offset):
    """Aligned parts of such a shard use non-temporal stores, others normal ones."""
    average, master = (normal(rng, 5_000_003, dtype=torch.float32)[offset:] for _ in range(2))
    copy, want = torch.empty_like(average, dtype=torch.bfloat16), average + 0.05 * (master - average)
    ema_([average], [master], 0.95, [copy])
    torch.testing.assert_close(average, want)
    assert torch.equal(copy, average.bfloat16())


def test_a_step_of_one_millionth_is_not_lost():
    average, copy = torch.ones(64), torch.ones(64, dtype=torch.bfloat16)
    for _ in range(1000):
        ema_([average], [torch.full((64,), 1 + 1e-3)], 0.999, [copy])
    torch.testing.assert_close(average, torch.full((64,), 1 + 1e-3 * (1 - 0.999**1000)))


def test_a_strided_master_is_accepted(rng):
    average, master = torch.zeros(4, 6), normal(rng, 6, 4, dtype=torch.float32).T
    ema_([average], [master], 0.0)
    torch.testing.assert_close(average, master)


def test_op_is_well_formed(rng):
    shard = normal(rng, 2, 3, dtype=torch.float32)
    torch.library.opcheck(ema_op, ([shard.clone()], [shard], 0.9, [shard.bfloat16()]))


def test_says_which_argument_is_wrong():
    one, two = torch.zeros(3), torch.zeros(4)
    with pytest.raises(ValueError, match=r"ema_: average\[0\] is \(3,\) .*, master\[0\] \(4,\)"):
        ema_([one], [two], 0.9)
    with pytest.raises(ValueError, match="ema_: master and copy hold 2 and 0 tensors; want one for each of"):
        ema_([one], [one, one], 0.9)
    with pytest.raises(ValueError, match=r"ema_: average\[0\] is .*bfloat16.*; want one shape, in float32"):
        ema_([one.bfloat16()], [one.bfloat16()], 0.9)
    with pytest.raises(ValueError, match=r"ema_: copy\[0\] has strides \(1, 3\); want contiguous storage"):
        ema_([torch.zeros(3, 2)], [torch.zeros(3, 2)], 0.9, [torch.zeros(2, 3).T])


def test_copies_may_be_of_several_dtypes():
    """Like the parameters of a bf16 network with fp32 norms."""
    average, master = ([torch.randn(n) for n in (3, 70, 5)] for _ in range(2))
    copy = [torch.zeros(3, dtype=torch.bfloat16), torch.zeros(70), torch.zeros(5, dtype=torch.bfloat16)]
    want = [a + (1 - 0.9) * (m - a) for a, m in zip(average, master, strict=True)]
    ema_(average, master, 0.9, copy)
    torch.testing.assert_close(average, want)
    assert all(torch.equal(c, a.to(c.dtype)) for c, a in zip(copy, average, strict=True))


# Mutants of the Triton kernel, for tests/mutants.py: (original, replacement).
MUTANTS = [
    ("average = decay * average + rest * tl", "average = rest * average + decay * tl"),
    ("average = decay * average + rest * tl", "average = decay * average + tl"),
    ("tl.store(average_ptr + at, average, mask)", "pass"),
    ("        tl.store(copy_ptr + tl.max_contiguous(at, 4), average, mask)", "        pass"),
    ("mask = at < numel", "mask = at < numel - 1"),
    ("zip(average, contiguous(\"ema_\", *master)", "zip(average, master"),
    ("tl.program_id(0).to(tl.int64) * BLOCK", "tl.program_id(0).to(tl.int64) * (BLOCK - 1)"),
]


def test_an_update_is_seen_by_autograd():
    average, master, copy = ([torch.randn(8)] for _ in range(3))
    before = average[0]._version, copy[0]._version
    ema_(average, master, 0.9, copy)
    assert (average[0]._version, copy[0]._version) == (before[0] + 1, before[1] + 1)
