"""attention_jvp_hopper on the CPU: interpreted source (gluon_cpu), barriers in all interleavings (protocol).

On a GPU: `make gpu PART=hopper`.  Compiled code: tests/test_hopper_report.py.
"""

import sys
import types
from functools import partial
from pathlib import Path

import gluon_cpu
import protocol
import pytest
import torch
from swiftvideo_kernels import attention_jvp as launch
from swiftvideo_kernels import tiles
from swiftvideo_kernels.blocks import tma_aligned
from swiftvideo_kernels.tiles import Tile

from swiftvideo_fast.ops import reference

KERNEL = Path(launch.__file__).with_name("attention_jvp_hopper.py")
LAUNCH = KERNEL.with_name("hopper.py")
TILE = Tile(128, 64, 12, 2, True, hopper=240)
BF16, F16 = torch.bfloat16, torch.float16
BARS = {BF16: (2.5e-3, 3.5e-3), F16: (2.5e-3 / 8, 3.5e-3 / 8)}          # relative Frobenius error of o, to


@pytest.fixture(scope="module")
def hopper():
    return gluon_cpu.load(KERNEL, LAUNCH)["attention_jvp_hopper"]


def draw(B, H, G, N, M, D, dtype=BF16, given=(1, 1, 1)):
    """q, tq, k, tk, v, tv as views of (B, tokens, heads, D) memory.  given: which of tq, tk, tv there are."""
    rng = torch.Generator().manual_seed(N + M)

    def one(tokens, heads):
        return torch.randn(B, tokens, heads, D, generator=rng).to(dtype).transpose(1, 2)
    q, tq, k, tk, v, tv = one(N, H), one(N, H), one(M, G), one(M, G), one(M, G), one(M, G)
    tq, tk, tv = (x if here else None for x, here in zip((tq, tk, tv), given))
    return tuple(tma_aligned(x) for x in (q, tq, k, tk, v, tv))


def exact(q, tq, k, tk, v, tv, scale, causal):
    primal = [x.double() for x in (q, k, v)]
    tangent = [torch.zeros_like(x) if t is None else t.double() for x, t in zip(primal, (tq, tk, tv))]
    s = scale * primal[0] @ primal[1].repeat_interleave(q.shape[1] // k.shape[1], 1).mT
    if causal:
        s = s.masked_fill(torch.ones_like(s, dtype=torch.bool).triu(1), -torch.inf)
    attention = partial(reference.attention, scale=scale, causal=causal)
    return *reference.jvp(attention, tuple(primal), tuple(tangent)), s.logsumexp(-1)


def assert_right(got, args, causal, bars=None):
    want = exact(*args, args[0].shape[-1]**-0.5, causal)
    for name, x, y, bar in zip(("o", "to"), got, want, bars or BARS[args[0].dtype]):
        error = (x - y).norm() / y.norm().clamp(min=1e-3)
        assert error <= bar, f"{name} errs by {error:.1e}"
    torch.testing.assert_close(got[2].double(), want[2], rtol=1e-5, atol=1e-5)


def served(run, *shape, causal=False, tile=TILE, **how):
    args = draw(*shape, **how)
    got = run(*args, shape[-1]**-0.5, causal, tile)
    assert_right(got, args, causal)
    assert all(x.transpose(1, 2).is_contiguous() for x in got[:2])


CASES = {                                       # (B, H, G, N, M, D); tiles are 2 x 64 queries by 64 keys
    "whole blocks": dict(shape=(1, 1, 1, 128, 128, 128)),
    "tails, two heads a key head, two clips": dict(shape=(2, 2, 1, 130, 70, 128)),
    "smallest": dict(shape=(1, 1, 1, 1, 1, 64)),
    "a key short of a block, and one more": dict(shape=(1, 1, 1, 65, 63, 64)),
    "six blocks": dict(shape=(1, 1, 1, 100, 321, 128)),
    "width 96": dict(shape=(1, 2, 2, 64, 100, 96)),
    "width 100": dict(shape=(1, 2, 2, 70, 100, 100)),
    "width 64, float16": dict(shape=(1, 2, 2, 64, 257, 64), dtype=F16),
    "width 128, float16, causal": dict(shape=(1, 1, 1, 150, 150, 128), dtype=F16, causal=True),
    "causal": dict(shape=(1, 2, 1, 333, 333, 64), causal=True),
    "causal, fewer keys": dict(shape=(1, 1, 1, 300, 130, 64), causal=True),
    "causal, more keys": dict(shape=(1, 1, 1, 70, 300, 64), causal=True),
    "causal, whole tiles": dict(shape=(1, 1, 1, 256, 256, 64), causal=True),
    "constant keys": dict(shape=(2, 3, 3, 150, 70, 64), given=(1, 0, 0)),
    "constant keys, width 128": dict(shape=(1, 2, 1, 150, 257, 128), given=(1, 0, 0)),
    "constant keys, causal": dict(shape=(1, 1, 1, 150, 150, 64), given=(1, 0, 0), causal=True),
    "h first": dict(shape=(1, 1, 1, 128, 200, 64), tile=TILE._replace(h_first=True)),
    "three slots": dict(shape=(1, 1, 1, 64, 300, 64), tile=TILE._replace(stages=3)),
    "blocks of 32 keys": dict(shape=(1, 1, 1, 64, 150, 64), tile=TILE._replace(block_n=32, stages=4)),
    **{f"tangents {given}": dict(shape=(1, 1, 1, 70, 140, 64), given=given)
       for given in ((0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0))},
}


@pytest.mark.parametrize("name", CASES)
def test_matches_float64(hopper, name):
    case = dict(CASES[name])
    served(hopper, *case.pop("shape"), **case)


def test_a_mean_in_v_cancels(hopper):
    """The sums are those of the rounded p and h: 8e-3; with either unrounded 4e-2.  tS has a mean, too."""
    q, tq, k, tk, v, tv = draw(1, 1, 1, 64, 200, 64)
    args = q + 1, tq, k, tk + 1, v + 8, tv
    got = hopper(*args, 0.125, False, TILE)
    assert_right(got, args, False, bars=(2.5e-3, 1e-2))


def packed(run, causal, D=64):
    """Sequences of (33, 17), (1, 140), (200, 64), (5, 0), ... (queries, keys), each beside NaN."""
    lengths = [(33, 17), (1, 140), (200, 64), (5, 0), (130, 130), (0, 7)]
    cu_q, cu_k = (torch.tensor([0, *x]).cumsum(0).int() for x in zip(*lengths))
    args = draw(1, 2, 1, int(cu_q[-1]), int(cu_k[-1]), D)
    for i, (n, m) in enumerate(lengths):
        rows, keys = slice(cu_q[i], cu_q[i] + n), slice(cu_k[i], cu_k[i] + m)
        mine = [torch.full_like(x, torch.nan) for x in args]            # all other sequences are NaN
        for x, y in zip(mine, args):
            part = rows if y.shape[2] == args[0].shape[2] else keys
            x[:, :, part] = y[:, :, part]
        o, to, lse = (x[:, :, rows] for x in run(
            *mine, D**-0.5, causal, TILE, cu_q, cu_k, max(n for n, _ in lengths)))
        if m == 0:
            assert not o.any() and not to.any() and (lse == -torch.inf).all()
        elif n:
            alone = [x[:, :, rows] for x in args[:2]] + [x[:, :, keys] for x in args[2:]]
            assert_right((o, to, lse), alone, causal)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_packed_sequences_do_not_see_each_other(hopper, causal):
    packed(hopper, causal)


def test_the_launch_selects_it_where_supported_and_otherwise_tritons_kernel(monkeypatch, rng):
    """Empty and expanded inputs and calls without a tangent go to the other kernel."""
    space, calls = gluon_cpu.load(KERNEL, LAUNCH), []

    def counted(*args):
        calls.append(args[0].shape)
        return space["attention_jvp_hopper"](*args)

    monkeypatch.delattr("swiftvideo_kernels.hopper", raising=False)
    monkeypatch.setitem(sys.modules, "swiftvideo_kernels.hopper",
                        types.SimpleNamespace(attention_jvp_hopper=counted,
                                              tma_readable=space["tma_readable"]))
    row = next(key for key in tiles.TILES if key[:2] == ("attention_jvp", "cpu"))
    monkeypatch.setitem(tiles.TILES, row, (TILE, *tiles.TILES[row]))
    args = draw(1, 2, 1, 70, 40, 100, dtype=F16)
    assert_right(launch.attention_jvp(*args, 0.1, False), args, False)
    assert len(calls) == 1
    q, tq, k, tk, v, tv = draw(2, 2, 2, 18, 20, 16, dtype=F16)
    o, _, _ = launch.attention_jvp(q[:1].expand_as(q), tq, k, tk, v, tv, 0.25, False)
    assert o.isfinite().all() and len(calls) == 1
    launch.attention_jvp(q, None, k, None, v, None, 0.25, False)
    o, _, lse = launch.attention_jvp(q, tq, k[:, :, :0], tk[:, :, :0], v[:, :, :0], tv[:, :, :0], 0.25, False)
    assert not o.any() and (lse == -torch.inf).all() and len(calls) == 1
    with pytest.raises(ValueError, match="attention_jvp: scale is -1; want 0 or more"):
        launch.attention_jvp(q, tq, k, tk, v, tv, -1, False)


def traces(run, monkeypatch) -> list:
    """Returns the partitions' operations, for programs with 0 to 4 key blocks."""
    monkeypatch.setattr(gluon_cpu, "trace", [])
    run(*draw(1, 1, 1, 64, 192, 64), 0.125, False, TILE)
    run(*draw(1, 1, 1, 256, 256, 64), 0.125, True, TILE)
    run(*draw(1, 1, 1, 64, 200, 64, given=(1, 0, 0)), 0.125, False, TILE)
    run(*draw(1, 1, 1, 64, 192, 64), 0.125, False, TILE._replace(h_first=True))
    run(*draw(1, 1, 1, 64, 192, 64), 0.125, False, TILE._replace(stages=1))
    run(*draw(1, 1, 1, 64, 64, 64, given=(0, 1, 0)), 0.125, False, TILE)
    cu = torch.tensor([0, 5, 9], dtype=torch.int32)
    run(*draw(1, 1, 1, 9, 64, 64), 0.125, False, TILE, cu, torch.tensor([0, 0, 64], dtype=torch.int32))
    return [logs for i, logs in enumerate(gluon_cpu.trace) if logs not in gluon_cpu.trace[:i]]


def test_the_barriers_are_correct_in_every_interleaving(hopper, monkeypatch):
    states = [protocol.explore(logs) for logs in traces(hopper, monkeypatch)]
    assert states[0] > 40_000 and min(states) >= 1


WAIT_TS = (f"{'        ts = warpgroup_mma_wait(VALUES, deps=(ts,))':64}"
           "# O, A in flight; k and tk are free\n")
WAIT_O = "    acc_o, acc_to = warpgroup_mma_wait(0, deps=(acc_o, acc_to))\n"
FREE_K, FREE_V = (f"    mbarrier.arrive({name}.index(slot))\n" for name in ("k_free", "v_free"))
Q_FULL = "    mbarrier.wait(bars[0].index(0), 0)\n"
FREED = "_barriers(STAGES, 2), _barriers(STAGES, 2)"
FAULTS = [                                      # (original, replacement)
    # the protocol
    (WAIT_TS + FREE_K, "    " + FREE_K + WAIT_TS),
    (WAIT_O + FREE_V, FREE_V + WAIT_O),
    (FREED, "_barriers(STAGES, 1), _barriers(STAGES, 2)"),
    (FREED, "_barriers(STAGES, 2), _barriers(STAGES, 3)"),
    ("(j // STAGES & 1) ^ 1)", "(j // STAGES & 1))"),
    ("mbarrier.wait(free.index(slot), (j // STAGES & 1) ^ 1)", "mbarrier.wait(free.index(slot), 1)"),
    (Q_FULL, ""),
    ("    mbarrier.wait(v_full.index(slot), phase)\n", ""),
    ("    mbarrier.wait(k_full.index(slot), phase)\n", ""),
    ("slot, phase = j % STAGES, j // STAGES & 1", "slot, phase = j % STAGES, 0"),
    ("for j in range(blocks):", "for j in range(blocks - 1):"),
    ("BYTES if t_desc is None else 2 * BYTES)\n    load", "BYTES)\n    load"),
    ("s = warpgroup_mma_wait(SCORES, deps=(s,))", "s = warpgroup_mma_wait(SCORES + 1, deps=(s,))"),
    ("ts = warpgroup_mma_wait(VALUES,", "ts = warpgroup_mma_wait(VALUES + 1,"),
    ("        _send(to_block, to_own, to, clip, head, row)\n        tma.store_wait(0)\n",
     "        _send(to_block, to_own, to, clip, head, row)\n"),
    ("        if tq is None:\n            tma.store_wait(0)\n", ""),
    # the arithmetic and the addresses
    ("keep = (col < M)", "keep = (col <= M)"),
    ("col[None, :] <= rows", "col[None, :] < rows"),
    ("M = gl.minimum(M, end_row)", "pass"),
    ("acc_to = acc_to * alpha_o", "acc_to = acc_to"),
    ("r = r * alpha + gl.sum(h_used, 1)", "r = r * alpha + gl.sum(p * (ts * scale), 1)"),
    ("l_rounded = l_rounded * alpha + gl.sum(p_used, 1)", "l_rounded = l"),
    ("l = l * alpha + gl.sum(p, 1)", "l = l + gl.sum(p, 1)"),
    ("ts = warpgroup_mma(tq, k, zero,", "ts = warpgroup_mma(q, k, zero,"),
    ("(acc_to - mean * acc_o)", "(acc_to + mean * acc_o)"),
    ("row = first_row + WHO * ROWS", "row = first_row + WHO"),
    ("(rows < N)[:, None]", "(rows < N + 1)[:, None]"),
    ("& (col < WIDTH)[None, :]", ""),
    ("group = head // GROUP", "group = head"),
    ("some = l > 0 ", "some = l > -1 "),
    ("M = gl.where(first_row < N, M, 0)", "M = M"),
    ("x_ptr + start * row", "x_ptr"),
    ("token, lse_at = start.to(gl.int64), head", "token, lse_at = start.to(gl.int64) * 0, head"),
    ("(m + gl.log2(", "(m - gl.log2("),
]


@pytest.mark.parametrize("fault", FAULTS, ids=range(len(FAULTS)))
def test_a_planted_fault_is_detected(fault, monkeypatch):
    source, (there, instead) = KERNEL.read_text(), fault
    assert source.count(there) == 1, "the fault's place is gone from the kernel, or no longer unique"
    space = gluon_cpu.load(KERNEL, LAUNCH, attention_jvp_hopper=source.replace(there, instead))
    run = space["attention_jvp_hopper"]
    monkeypatch.setattr(gluon_cpu, "LIMIT", 0.5)
    with pytest.raises((AssertionError, IndexError, RuntimeError, protocol.Fault)):
        for name in ("tails, two heads a key head, two clips", "causal", "constant keys", "width 100"):
            case = dict(CASES[name])
            served(run, *case.pop("shape"), **case)
        test_a_mean_in_v_cancels(run)
        packed(run, False)
        test_the_barriers_are_correct_in_every_interleaving(run, monkeypatch)
