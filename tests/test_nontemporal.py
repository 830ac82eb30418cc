"""Tensors larger than the caches: non-temporal stores give the same bits as normal stores of their parts."""

import oracle
import pytest
import torch

from swiftvideo_fast import _C

ROWS = 1400                                         # of 1536 floats: four such tensors are 34 MB
GEN = torch.Generator().manual_seed(0)


def planes(count: int, C: int, dtype: torch.dtype) -> list[torch.Tensor]:
    rows = ROWS * 4 // dtype.itemsize               # as many bytes in any dtype
    return [torch.randn(1, rows, C, generator=GEN).to(dtype) for _ in range(count)]


def modulate(x, tx, *rest):
    s, ts, b, tb = (torch.linspace(a, 1, x.shape[2])[None] for a in (-1.0, 0.0, 0.5, 2.0))
    return _C.modulate_jvp(x, tx, s, ts, b, tb, 1e-6)


def norm_rope(x, tx, *rest):
    return _C.norm_rope_jvp(x, tx, torch.linspace(0.5, 2, x.shape[2]), None, None, 1e-6)


def gate(x, tx, y, ty):
    g = torch.linspace(-1, 1, x.shape[2])[None]
    return _C.gate_jvp(x, tx, y, ty, g, g)


def gelu(x, tx, *rest):
    return _C.gelu_jvp(x, tx)


@pytest.mark.parametrize("C", [1536, 1530], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", [modulate, norm_rope, gate, gelu])
@pytest.mark.parametrize("isa", _C.isas())
def test_rows(op, dtype, C, isa):
    x = planes(4, C, dtype)
    with oracle.with_isa(isa):
        whole = op(*x)
        ends = [op(*(plane[:, rows].contiguous() for plane in x)) for rows in (slice(100), slice(-100, None))]
    for i, plane in enumerate(whole):
        assert torch.equal(plane[:, :100], ends[0][i]) and torch.equal(plane[:, -100:], ends[1][i])


@pytest.mark.parametrize("size", [2**21, 2**21 - 3], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", ["l2", "clip", "loss"])
@pytest.mark.parametrize("isa", _C.isas())
def test_clips(norm, dtype, size, isa):
    v, F, dF = (torch.randn(3, 16 // dtype.itemsize, size, generator=GEN) * 0.5).to(dtype)
    t = torch.linspace(0.1, 0.9, len(F))

    def op(clips: slice) -> tuple[torch.Tensor, torch.Tensor]:
        if norm == "loss":
            return _C.ccd_loss(v[clips], F[clips], dF[clips].float())
        return _C.ccd_gradient(v[clips], F[clips], dF[clips], t[clips], 0.5, norm, 0.1)

    with oracle.with_isa(isa):
        whole = op(slice(None))
        for clip in range(len(F)):
            for plane, alone in zip(whole, op(slice(clip, clip + 1)), strict=True):
                assert torch.equal(plane[clip], alone[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None])
@pytest.mark.parametrize("isa", _C.isas())
def test_shards(dtype, isa):
    """The last shard's size is not a multiple of a register."""
    sizes = 2**22, 2**20 + 5
    average, master = ([torch.randn(n, generator=GEN) for n in sizes] for _ in range(2))
    copy = [] if dtype is None else [x.to(dtype) for x in average]
    want = [a + (1 - 0.9) * (m - a) for a, m in zip(average, master, strict=True)]
    alone = [[x[:100].clone() for x in shards] for shards in (average, copy)]
    with oracle.with_isa(isa):
        _C.ema_(average, master, 0.9, copy)
        _C.ema_(alone[0], [m[:100] for m in master], 0.9, alone[1])
    for found, parts in ((average, alone[0]), (copy, alone[1])):
        assert all(torch.equal(x[:100], part) for x, part in zip(found, parts, strict=True))
    for a, w in zip(average, want, strict=True):
        torch.testing.assert_close(a, w, rtol=2**-22, atol=2**-23)
