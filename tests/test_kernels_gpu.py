"""Tests that need a GPU: errors at Wan's sizes, the table's tiles, graphs, compile, gradients, memory.

Imports only what a machine with torch and triton has.
"""

from functools import partial

import pytest
import torch
from swiftvideo_kernels import attention as plain
from swiftvideo_kernels.attention_backends import installed
from swiftvideo_kernels.attention_jvp import attention_jvp as one_pass
from swiftvideo_kernels.attention_tangent import attention_tangent
from swiftvideo_kernels.tiles import TILES, family

from bench.arguments import arguments
from swiftvideo_fast import jvp, ops
from swiftvideo_fast.dual import Dual
from swiftvideo_fast.models.wan.network import Wan
from swiftvideo_fast.models.wan.sizes import WanConfig
from swiftvideo_fast.ops import reference
from swiftvideo_fast.ops.attention import attention_jvp

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
BF16 = torch.bfloat16


def draw(*shape, dtype=BF16):
    return torch.randn(shape, device="cuda", dtype=dtype)


def heads(B, H, N, D, count, dtype=BF16):
    return [draw(B, N, H, D, dtype=dtype).transpose(1, 2) for _ in range(count)]


# ema_ returns nothing; attention_backward uses atomics and is not reproducible
CALLS = {form: op for name in ops.OPS for form, op in ops.custom_ops(name).items()
         if form not in ("ema_", "attention_backward")}


def leaves(result) -> tuple:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name", CALLS)
class TestEveryOp:
    def pick(self, name):
        """The op and arguments: small, bf16 beside fp32 modulation."""
        given = arguments(CALLS[name], 2, 37, 96, BF16, partial(torch.randn, device="cuda"))
        return CALLS[name], tuple(given.values())

    def test_is_well_formed(self, name):
        op, args = self.pick(name)
        torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))

    def test_a_captured_graph_replays_bitwise(self, name):
        op, args = self.pick(name)
        eager = leaves(op(*args))
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            op(*args)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = leaves(op(*args))
        for x in captured:
            x.fill_(torch.nan)
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(eager, captured, strict=True))

    def test_compiles_in_one_graph(self, name):
        op, args = self.pick(name)
        got = leaves(torch.compile(lambda *a: op(*a), fullgraph=True)(*args))
        assert all(torch.equal(a, b) for a, b in zip(got, leaves(op(*args)), strict=True))


def assert_within_bars(got, exact):
    """Relative Frobenius errors of o and to; limits from kernels/README.md."""
    for x, want, bar in zip(got, exact, (2.5e-3, 3.5e-3), strict=True):
        error = ((x - want).norm() / want.norm()).item()
        assert error <= bar


@pytest.mark.parametrize("B, H, N, M, D, constant", [
    (1, 12, 24960, 24960, 128, False),      # Wan 1.3B, 61 frames of 832 x 480
    (1, 40, 32760, 32760, 128, False),      # Wan 14B, 81 frames
    (1, 12, 24960, 512, 128, True),         # text
    (1, 8, 4000, 4000, 64, False), (1, 4, 2500, 2500, 96, False), (1, 2, 2500, 2500, 256, False),
    (1, 4, 999, 999, 100, False),           # rows that TMA cannot read
], ids=str)
def test_attention_is_within_the_error_limits_and_reproducible(B, H, N, M, D, constant):
    """At sampled queries of the first and last head, against float64."""
    q, tq = heads(B, H, N, D, 2)
    k, tk, v, tv = heads(B, H, M, D, 4)
    given = (q, tq, k, None, v, None) if constant else (q, tq, k, tk, v, tv)
    tk, tv = (torch.zeros_like(k), torch.zeros_like(v)) if constant else (tk, tv)
    o, to, lse = attention_jvp(*given, D**-0.5, False)
    some = torch.linspace(0, N - 1, 64, device="cuda").long()
    for head in (0, H - 1):
        pick = [x[:, head : head + 1].double() for x in (q[:, :, some], k, v, tq[:, :, some], tk, tv)]
        exact = reference.jvp(reference.attention, tuple(pick[:3]), tuple(pick[3:]))
        assert_within_bars([x[:, head : head + 1, some] for x in (o, to)], exact)
    again = attention_jvp(*given, D**-0.5, False)
    assert all(torch.equal(a, b) for a, b in zip((o, to, lse), again, strict=True))


def of_every_tile(test):
    rows = [(row, tile) for row, tiles in TILES.items() for tile in tiles if row[1].startswith("sm")]
    test = pytest.mark.parametrize("row, tile", rows, ids=lambda x: str(x).replace(" ", ""))(test)
    return pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])(test)


@of_every_tile
def test_every_tile_of_this_cards_table_is_right(row, tile, causal):
    """515 queries and keys: several blocks and a tail.  Packed: as two sequences and two empty ones."""
    kernel, card, D = row
    if card != family(BF16):
        pytest.skip("another card's")
    q, tq = heads(1, 4, 515, D, 2)
    k, tk, v, tv = heads(1, 2, 515, D, 4)
    args, wide = (q, tq, k, tk, v, tv), [x.double() for x in (q, k, v, tq, tk, tv)]
    exact = reference.jvp(partial(reference.attention, causal=causal), tuple(wide[:3]), tuple(wide[3:]))
    if kernel == "attention_tangent":
        o, _, lse = one_pass(*args, D**-0.5, causal)
        return assert_within_bars((o, attention_tangent(*args, o, lse, D**-0.5, causal, tile=tile)), exact)
    assert_within_bars(one_pass(*args, D**-0.5, causal, tile=tile)[:2], exact)
    cu = torch.tensor([0, 190, 190, 515, 515], dtype=torch.int32, device="cuda")
    packed = one_pass(*args, D**-0.5, causal, cu_q=cu, cu_k=cu, max_q=325, tile=tile)
    alone = [one_pass(*(x[:, :, part] for x in args), D**-0.5, causal, tile=tile)
             for part in (slice(190), slice(190, 515))]
    for got, *want in zip(packed, *alone, strict=True):
        torch.testing.assert_close(got, torch.cat(want, 2), rtol=2e-2, atol=2e-2)


@of_every_tile
def test_every_tile_is_bitwise_reproducible(row, tile, causal):
    """A pipeline that reads too early gives different results in each run."""
    kernel, card, D = row
    if card != family(BF16):
        pytest.skip("another card's")
    args, launch, given = heads(1, 8, 8192, D, 6), one_pass, ()
    if kernel == "attention_tangent":
        (o, _, lse), launch = one_pass(*args, D**-0.5, causal), attention_tangent
        given = o, lse
    once, *more = (leaves(launch(*args, *given, D**-0.5, causal, tile=tile)) for _ in range(3))
    assert all(torch.equal(a, b) for again in more for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("dtype, bar", [(BF16, 1e-2), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("G", [1, 4])
def test_the_adjoint_identity_holds(dtype, bar, G):
    """<w, J t> = <J' w, t>: the tangent of one kernel against the backward of another."""
    q, tq, w = heads(1, 4, 333, 64, 3, torch.float32)
    k, tk, v, tv = heads(1, G, 333, 64, 4, torch.float32)
    q, tq, w, k, tk, v, tv = (x.to(dtype) for x in (q, tq, w, k, tk, v, tv))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    out = ops.attention(Dual(q, tq), Dual(k, tk), Dual(v, tv))
    grads = torch.autograd.grad(out.p, (q, k, v), w)
    forward = (w.double() * out.t.double()).sum()
    backward = sum((g.double() * t.double()).sum() for g, t in zip(grads, (tq, tk, tv), strict=True))
    assert (forward - backward).abs() <= bar * w.double().norm() * out.t.double().norm()


@pytest.mark.parametrize("causal, M", [(False, 333), (True, 333), (True, 200)])
def test_primal_attention_and_its_gradient_match_torch(causal, M):
    q, w = heads(2, 4, 333, 64, 2)
    k, v = heads(2, 2, M, 64, 2)
    got = [x.detach().requires_grad_() for x in (q, k, v)]
    want = [x.detach().double().requires_grad_() for x in (q, k, v)]
    o, exact = ops.attention(*got, causal=causal), reference.attention(*want, causal=causal)
    for cotangent in (w, draw().expand(w.shape)):     # the second expanded, as from a sum
        ours = o, *torch.autograd.grad(o, got, cotangent, retain_graph=True)
        theirs = exact, *torch.autograd.grad(exact, want, cotangent.double(), retain_graph=True)
        for a, b in zip(ours, theirs, strict=True):
            assert (a - b).norm() <= 1e-2 * b.norm()


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("D", [64, 128])
def test_the_fastest_backend_of_the_table_is_accurate(D, causal):
    """Fails where an inaccurate backend was skipped."""
    for direction in ("forward", "backward"):
        order = plain.ORDER.get((direction, torch.cuda.get_device_capability()[0]), plain.FLASH)
        first = next(name for name in order if installed(name))
        assert plain.select(direction, torch.device("cuda", 0), BF16, D, causal) == first


def test_the_deterministic_backward_is_bitwise_reproducible():
    q, k, v, do = heads(1, 4, 4096, 128, 4)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    o = ops.attention(q, k, v)
    torch.use_deterministic_algorithms(True, warn_only=True)        # as engine.deterministic does
    try:
        first, *more = (torch.autograd.grad(o, (q, k, v), do, retain_graph=True) for _ in range(4))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for again in more for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("dtype, bar", [(BF16, 3e-2), (torch.float32, 1e-4)], ids=str)
def test_a_networks_pass_matches_the_cpus_and_compiles_to_one_graph(dtype, bar):
    config = WanConfig(dim=256, heads=2, layers=2, ffn_dim=512, text_dim=64, freq_dim=64, time_scale=10.0)
    net = Wan(config).double().requires_grad_(False)
    x, v = torch.randn(2, 1, config.latent, 3, 16, 12, dtype=torch.float64)
    text, condition = torch.randn(1, 9, 64).double(), torch.randn(1, config.condition, 3, 16, 12).double()
    t = torch.full((1,), 0.5).double()
    exact = jvp(lambda x, t: net(x, t, text, condition), (x, t), (v, torch.ones_like(t)))

    net = net.to("cuda", dtype)
    x, v, text, condition = (a.to("cuda", dtype) for a in (x, v, text, condition))
    t = t.float().cuda()

    def run():
        return jvp(lambda x, t: net(x, t, text, condition), (x, t), (v, torch.ones_like(t)))

    for got in (run(), torch.compile(run, fullgraph=True)()):
        for a, want in zip(got, exact, strict=True):
            assert (a.cpu() - want).norm() <= bar * want.norm()


def test_attention_allocates_only_its_outputs():
    q, tq, k, tk, v, tv = heads(1, 12, 24960, 128, 6)
    attention_jvp(q, tq, k, tk, v, tv, 0.09, False)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    o, to, lse = attention_jvp(q, tq, k, tk, v, tv, 0.09, False)
    outputs = sum(x.numel() * x.element_size() for x in (o, to, lse))
    assert torch.cuda.max_memory_allocated() - before <= outputs + 2**24
