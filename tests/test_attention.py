"""Attention and its tangent on the CPU: against torch's forward mode in float64, then its properties."""

import itertools
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import (
    DTYPES,
    ISAS,
    LENGTHS,
    assert_adjoint,
    assert_as_good_as_torch,
    forward_mode,
    gradients,
    normal,
    with_isa,
)
from torch.nn.functional import scaled_dot_product_attention

from swiftvideo_fast import _C
from swiftvideo_fast.dual import Dual
from swiftvideo_fast.ops import attention, reference
from swiftvideo_fast.ops.attention import attention_backward, attention_jvp, attention_op


def draw(rng, B=1, H=2, N=7, M=None, D=16, G=None, dtype=torch.float64, strided=False):
    """q, tq, k, tk, v, tv."""
    q, k = (B, H, N, D), (B, G or H, N if M is None else M, D)
    return [normal(rng, *shape, dtype=dtype, strided=strided) for shape in (q, q, k, k, k, k)]


def meaning(q, tq, k, tk, v, tv, scale, causal):
    return forward_mode(reference.attention, [(q, tq), (k, tk), (v, tv)], scale, causal)


def largest_term(q, tq, k, tk, v) -> float:
    """Returns a bound of |tS v|: (P∘tS) v and rowsum(P∘tS) o nearly cancel in to."""
    tS = sum(a.double().norm(dim=-1).amax() * b.double().norm(dim=-1).amax()
             for a, b in ((tq, k), (q, tk)) if a is not None and b is not None and a.numel() and b.numel())
    return float(tS * v.abs().max()) * q.shape[-1]**-0.5 if v.numel() else 0.0


@settings(max_examples=40)
@given(isa=ISAS, dtype=DTYPES, B=st.integers(0, 2), G=st.integers(1, 2), share=st.integers(1, 2),
       N=LENGTHS, M=LENGTHS, D=st.one_of(st.sampled_from([16, 64, 128, 256]), st.integers(16, 256)),
       causal=st.booleans(), strided=st.booleans(), given_tangents=st.tuples(*[st.booleans()] * 3))
def test_matches_forward_mode(isa, dtype, B, G, share, N, M, D, causal, strided, given_tangents):
    rng = torch.Generator().manual_seed(N * 1000 + M)
    q, tq, k, tk, v, tv = draw(rng, B, G * share, N, M, D, G, dtype, strided)
    tq, tk, tv = (t if here else None for t, here in zip((tq, tk, tv), given_tangents, strict=True))
    args = (q, tq, k, tk, v, tv, D**-0.5, causal)
    with with_isa(isa):
        got = attention_jvp(*args)[:2]
        alone, lse = attention_op(q, k, v, D**-0.5, causal)
    assert_as_good_as_torch("o to", got, meaning, *args, inside=largest_term(q, tq, k, tk, v))
    assert torch.equal(alone, got[0])
    assert lse.shape == q.shape[:3] and lse.dtype == torch.float32


@pytest.mark.parametrize("isa", _C.isas())
@pytest.mark.parametrize("dtype, bars", [(torch.float32, (1e-5, 1e-5)), (torch.bfloat16, (2.5e-3, 3.5e-3))])
def test_stays_within_the_error_limits(rng, isa, dtype, bars):
    args = *draw(rng, 1, 1, 1536, D=128, dtype=dtype), 128**-0.5, False
    with with_isa(isa):
        got = attention_jvp(*args)[:2]
    exact = meaning(*(x.double() for x in args[:6]), *args[6:])
    for one, true, bar in zip(got, exact, bars, strict=True):
        assert (one.double() - true).norm() <= bar * true.norm()


def test_row_sums_are_of_the_rounded_values(rng):
    """With a mean offset in V, sums of unrounded p and h leave the rounding error times the offset in to."""
    q, tq, k, tk, v, tv = draw(rng, 1, 1, 1536, D=128, dtype=torch.bfloat16)
    args = q, tq, k, tk, v + 8, tv, 128**-0.5, False
    to = attention_jvp(*args)[1].double()
    exact = meaning(*(x.double() for x in args[:6]), *args[6:])[1]
    assert (to - exact).norm() <= 3.5e-3 * exact.norm()


@pytest.mark.parametrize("isa", _C.isas())
def test_float64_is_computed_in_float64(rng, isa):
    args = *draw(rng, 2, 4, 70, 33, 20, G=2), 0.3, False
    with with_isa(isa):
        o, to, lse = attention_jvp(*args)
    torch.testing.assert_close((o, to), meaning(*args), rtol=1e-13, atol=1e-13)
    scores = args[0] @ args[2].repeat_interleave(2, 1).mT * 0.3
    torch.testing.assert_close(lse, scores.logsumexp(-1), rtol=1e-14, atol=1e-14)


def test_large_logits_do_not_overflow(rng):
    q, tq, k, tk, v, tv = draw(rng, N=40, dtype=torch.float32)
    args = 60 * q, tq, 60 * k, tk, v, tv, 1.0, False
    exact = meaning(*(x.double() for x in args[:6]), *args[6:])
    for got, want in zip(attention_jvp(*args)[:2], exact, strict=True):
        assert (got - want).norm() <= 3e-3 * want.norm()      # a logit of 14,000 has an error of 1e-3


@pytest.mark.parametrize("dtype, huge", [(torch.float32, 1e38), (torch.float64, 1e300)], ids=str)
@pytest.mark.parametrize("isa", _C.isas())
def test_a_masked_key_adds_exactly_nothing(rng, isa, dtype, huge):
    q, tq, k, tk, v, tv = draw(rng, N=40, dtype=dtype)
    last = torch.zeros(40, 1, dtype=dtype)
    last[-1] = huge
    with with_isa(isa):
        without, with_it = (attention_jvp(q, tq, k, tk, v + add, tv + add, 0.25, True)[:2]
                            for add in (0 * last, last))
    assert all(torch.equal(a[:, :, :-1], b[:, :, :-1]) for a, b in zip(without, with_it, strict=True))


def test_is_linear_in_the_tangent(rng):
    q, tq, k, tk, v, tv = draw(rng, N=70)
    _, one, _ = attention_jvp(q, tq, k, tk, v, tv, 0.25, False)
    _, two, _ = attention_jvp(q, -2 * tq, k, -2 * tk, v, -2 * tv, 0.25, False)
    torch.testing.assert_close(two, -2 * one)


@pytest.mark.parametrize("missing", [m for m in itertools.product([True, False], repeat=3)], ids=str)
def test_a_missing_tangent_is_zero_tensors(rng, missing):
    q, k, v, *tangents = draw(rng, N=70, dtype=torch.float32)
    none = [None if gone else t for t, gone in zip(tangents, missing, strict=True)]
    zero = [torch.zeros_like(t) if gone else t for t, gone in zip(tangents, missing, strict=True)]
    a, b = (attention_jvp(q, t[0], k, t[1], v, t[2], 0.25, True) for t in (none, zero))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_is_bitwise_reproducible_on_any_number_of_threads(rng):
    args = *draw(rng, 2, 3, 300, dtype=torch.float32), 0.25, True
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3, 2):
        torch.set_num_threads(count)
        results.append(attention_jvp(*args))
    torch.set_num_threads(threads)
    for again in results[1:]:
        assert all(map(torch.equal, results[0], again))


def test_output_has_the_projections_memory_layout(rng):
    q, tq, k, tk, v, tv = draw(rng, 2, 3, 5, dtype=torch.float32)
    for o in attention_jvp(q, tq, k, tk, v, tv, 0.25, False)[:2]:
        assert o.shape == q.shape and o.transpose(1, 2).is_contiguous()


def test_memory_does_not_grow_with_the_square_of_the_length(rng):
    """8,192 tokens: one N x N of float32 would take 256 MB."""
    args = *draw(rng, 1, 1, 8192, dtype=torch.float32), 0.25, False
    attention_jvp(*(x[:, :, :64] for x in args[:6]), *args[6:])
    peak, done = [], threading.Event()

    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * 4096

    def watch():
        while not done.wait(0.002):
            peak.append(resident())

    before = resident()
    watcher = threading.Thread(target=watch)
    watcher.start()
    attention_jvp(*args)
    done.set()
    watcher.join()
    assert max(peak) - before < 16 * 2**20


@pytest.mark.parametrize("causal", [False, True])
def test_backward_is_the_transpose_of_the_tangent(rng, causal):
    q, tq, k, tk, v, tv = draw(rng, H=4, N=9, M=11, G=2)
    to = attention_jvp(q, tq, k, tk, v, tv, 0.25, causal)[1]
    assert_adjoint(lambda *x: attention_op(*x, 0.25, causal)[0], (q, k, v), (tq, tk, tv), to, rng)


FEW = 16


@settings(max_examples=15)
@given(dtype=DTYPES, N=LENGTHS, M=LENGTHS, D=st.integers(16, 96), causal=st.booleans(), strided=st.booleans())
def test_backward_matches_autograd(dtype, N, M, D, causal, strided):
    """Against sdpa's, whose backward also starts from O and LSE: dS = P (dP - sum dO O) cancels to the
    rounding of those, most where few keys are seen.  There the bound is D roundings of D terms."""
    rng = torch.Generator().manual_seed(N * 1000 + M)
    q, do, k, _, v, _ = draw(rng, 2, 2, N, M, D, dtype=dtype, strided=strided)
    o, lse = attention_op(q, k, v, D**-0.5, causal)
    got = attention_backward(do, q, k, v, o, lse, D**-0.5, causal)

    def exact(*x):
        return gradients(lambda *x: reference.attention(*x, None, causal), x[:3], x[3])

    def by_torch(*x):
        if x[0].dtype == torch.float64:
            return exact(*x)
        return gradients(lambda *x: scaled_dot_product_attention(*x, is_causal=causal), x[:3], x[3])

    if (min(N, M) if causal else M) >= FEW:
        return assert_as_good_as_torch("dq dk dv", got, by_torch, q, k, v, do)
    products = (do.abs().double() @ v.abs().double().mT).sum()
    largest = max([1.0, *(x.abs().max() for x in (q, k) if x.numel())])
    for ours, true in zip(got, exact(*(x.double() for x in (q, k, v, do))), strict=True):
        assert ((ours - true).abs() <= D * torch.finfo(dtype).eps * products * largest).all()


def test_gradients_pass_gradcheck(rng):
    q, tq, k, tk, v, tv = draw(rng, N=3, M=4)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v), (q, k, v))
    torch.autograd.gradcheck(lambda q, k, v: attention(Dual(q, tq), Dual(k, tk), v).p, (q, k, v))


def test_the_tangent_is_not_on_the_tape(rng):
    q, tq, k, tk, v, tv = draw(rng)
    o = attention(Dual(q.requires_grad_(), tq.requires_grad_()), Dual(k, tk), Dual(v, tv))
    assert o.p.requires_grad and not o.t.requires_grad


def test_ops_are_well_formed(rng):
    q, tq, k, tk, v, tv = draw(rng, dtype=torch.float32)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    torch.library.opcheck(attention_op, (q, k, v, 0.3, False))
    torch.library.opcheck(attention_jvp, (q, tq, k, None, v, tv, 0.3, True))


@pytest.mark.parametrize("change, message", [
    (dict(tk=(1, 2, 3, 16)), r"attention_jvp: tk is \(1, 2, 3, 16\); want \(B, G, M, D\) = \(1, 2, 7, 16\)"),
    (dict(v=(1, 2, 7, 8)), r"attention_jvp: v is \(1, 2, 7, 8\); want \(B, G, M, D\) = \(1, 2, 7, 16\)"),
    (dict(q=(2, 7, 16)), r"attention_jvp: q is \(2, 7, 16\); want \(B, H, N, D\)"),
    (dict(q=(1, 3, 7, 16), tq=(1, 3, 7, 16)), r"attention_jvp: k has 2 heads; want a divisor of q's 3"),
])
def test_says_which_argument_is_wrong(rng, change, message):
    args = dict(zip("q tq k tk v tv".split(), draw(rng), strict=True))
    args |= {name: torch.zeros(shape, dtype=torch.float64) for name, shape in change.items()}
    with pytest.raises(ValueError, match=message):
        attention_jvp(**args, scale=0.25, causal=False)


def test_says_which_dtype_is_wrong(rng):
    q, tq, k, tk, v, tv = draw(rng)
    with pytest.raises(ValueError, match=r"attention_jvp: tq is torch.float32; want torch.float64"):
        attention_jvp(q, tq.float(), k, tk, v, tv, 0.25, False)
    with pytest.raises(ValueError, match=r"attention: the CPU has kernels for float32, bfloat16 and float64"):
        attention_op(q.half(), k.half(), v.half(), 0.25, False)
