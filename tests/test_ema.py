"""Exponential moving average on the CPU, with its low-precision copy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import ISAS, normal, with_isa
from torch.utils._python_dispatch import TorchDispatchMode

from swiftvideo_fast import _C
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


def lists():
    """Three shards of each kind, which fit."""
    return [[torch.full((3, 4), float(i), dtype=dtype) for _ in range(3)]
            for i, dtype in enumerate((torch.float32, torch.float32, torch.bfloat16))]


FAULTS = {                              # list, what the last of its tensors is, what the error names
    "shape": (1, lambda: torch.zeros(4, 3), r"master\[2\] \(4, 3\)"),
    "axes": (0, lambda: torch.zeros(12), r"average\[2\] is \(12,\)"),
    "wide": (1, lambda: torch.zeros(3, 4, dtype=torch.float64), r"master\[2\] .*float64"),
    "narrow": (0, lambda: torch.zeros(3, 4, dtype=torch.bfloat16), r"average\[2\] is .*bfloat16"),
    "whole numbers": (0, lambda: torch.zeros(3, 4, dtype=torch.int32), r"average\[2\] is .*int32"),
    "strides": (0, lambda: torch.zeros(4, 3).T, r"average\[2\] has strides \(1, 3\)"),
    "copy's shape": (2, lambda: torch.zeros(3, 3, dtype=torch.bfloat16), r"copy\[2\] is \(3, 3\)"),
    "copy's strides": (2, lambda: torch.zeros(4, 3, dtype=torch.bfloat16).T, r"copy\[2\] has strides"),
}


@pytest.mark.parametrize("which, other, told", FAULTS.values(), ids=FAULTS)
def test_a_fault_in_the_last_shard_is_named_and_nothing_is_moved(which, other, told):
    given = lists()
    given[which][2] = other()
    assert not _C.ema_if_plain(*given[:2], 0.9, given[2])
    with pytest.raises(ValueError, match=told):
        ema_(*given[:2], 0.9, given[2])
    assert not given[0][0].any() and given[2][0].eq(2).all()


@pytest.mark.parametrize("average, copy, told", [
    (torch.float32, torch.float64, r"copy\[0\] is .*float64; want .* that of average or narrower"),
    (torch.float64, torch.float32, r"copy\[0\] is .*float32; want .* that of average or narrower"),
    (torch.float32, torch.float16, "ema_: the CPU has kernels for float32, bfloat16 and float64"),
])
def test_a_copy_wider_than_the_average_or_without_a_kernel_is_refused(average, copy, told):
    old = torch.zeros(3, dtype=average)
    with pytest.raises(ValueError, match=told):
        ema_([old], [torch.ones(3, dtype=average)], 0.9, [torch.zeros(3, dtype=copy)])
    assert not old.any()


def test_what_only_the_dispatcher_can_take_goes_through_it():
    """A lazy negative's storage has the other sign; a mode must see the op; a strided master is plain."""
    average, negative = torch.zeros(4), torch._neg_view(torch.ones(4))
    ema_([average], [negative], 0.0)
    assert average.eq(-1).all()
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Watch():
        ema_([average], [torch.ones(4)], 0.0)
    assert torch.ops.swiftvideo_fast.ema_.default in seen and average.eq(1).all()
    assert _C.ema_if_plain([torch.zeros(2, 3)], [torch.ones(3, 2).T], 0.9, [])


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
