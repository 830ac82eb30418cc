"""modulate on the CPU: value, tangent and backward against torch in float64, then their properties."""

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

from swiftvideo_fast.dual import Dual
from swiftvideo_fast.ops import modulate, reference
from swiftvideo_fast.ops.modulate import modulate_backward, modulate_jvp, modulate_op

WIDTHS = st.one_of(st.sampled_from([16, 128, 1536]), st.integers(2, 300))


def draw(rng, B=2, N=5, C=24, dtype=torch.float64, narrow=None, strided=False):
    """x, tx, s, ts, b, tb."""
    tokens = [normal(rng, B, N, C, dtype=dtype, strided=strided) for _ in range(2)]
    return *tokens, *(normal(rng, B, C, dtype=narrow or dtype, strided=strided) for _ in range(4))


def meaning(x, tx, s, ts, b, tb, eps):
    return forward_mode(reference.modulate, [(x, tx), (s, ts), (b, tb)], eps)


@settings(max_examples=40)
@given(isa=ISAS, dtype=DTYPES, narrow=DTYPES, B=st.integers(0, 3), N=LENGTHS, C=WIDTHS,
       strided=st.booleans(), given_tangents=st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_matches_forward_mode(isa, dtype, narrow, B, N, C, strided, given_tangents):
    rng = torch.Generator().manual_seed(N * 1000 + C)
    narrow = narrow if dtype == torch.bfloat16 else dtype
    x, tx, s, ts, b, tb = draw(rng, B, N, C, dtype, narrow, strided)
    tx, ts, tb = (t if here else None for t, here in zip((tx, ts, tb), given_tangents, strict=True))
    args = x, tx, s, ts, b, tb, 1e-6
    with with_isa(isa):
        got, alone = modulate_jvp(*args), modulate_op(x, s, b, 1e-6)
    assert_as_good_as_torch("y ty", got, meaning, *args)
    assert torch.equal(alone, got[0])


def test_a_large_mean_costs_no_more_than_it_costs_torch(rng):
    x, *rest = draw(rng, C=1536, dtype=torch.float32)
    assert_as_good_as_torch("y ty", modulate_jvp(x + 1000, *rest, 1e-6), meaning, x + 1000, *rest, 1e-6)


@settings(max_examples=20)
@given(isa=ISAS, dtype=DTYPES, B=st.integers(0, 3), N=LENGTHS, C=WIDTHS, strided=st.booleans())
def test_backward_matches_autograd(isa, dtype, B, N, C, strided):
    rng = torch.Generator().manual_seed(N * 1000 + C)
    x, dy, s, *_ = draw(rng, B, N, C, dtype, torch.float32, strided)
    with with_isa(isa):
        got = modulate_backward(dy, x, s, 1e-6)
    assert_as_good_as_torch("dx ds db", got, lambda x, s, dy: gradients(
        reference.modulate, (x, s, torch.zeros_like(s)), dy), x, s, dy)


def test_backward_is_the_transpose_of_the_tangent(rng):
    x, tx, s, ts, b, tb = draw(rng, N=300)
    ty = modulate_jvp(x, tx, s, ts, b, tb, 1e-6)[1]
    assert_adjoint(modulate, (x, s, b), (tx, ts, tb), ty, rng)


def test_is_linear_in_the_tangent(rng):
    x, tx, s, ts, b, tb = draw(rng)
    _, one = modulate_jvp(x, tx, s, ts, b, tb, 1e-6)
    _, two = modulate_jvp(x, -2 * tx, s, -2 * ts, b, -2 * tb, 1e-6)
    torch.testing.assert_close(two, -2 * one)


def test_a_missing_tangent_is_zero_tensors(rng):
    x, tx, s, ts, b, tb = draw(rng, dtype=torch.float32)
    zero = torch.zeros_like
    for none, zeros in (((tx, None, None), (tx, zero(ts), zero(tb))), ((None, ts, tb), (zero(tx), ts, tb))):
        a, c = (modulate_jvp(x, t[0], s, t[1], b, t[2], 1e-6) for t in (none, zeros))
        torch.testing.assert_close(a, c, rtol=0, atol=0)


def test_gradients_pass_gradcheck(rng):
    x, tx, s, ts, b, tb = draw(rng, N=3, C=6)
    inputs = [a.requires_grad_() for a in (x, s, b)]
    torch.autograd.gradcheck(modulate, inputs)
    torch.autograd.gradcheck(lambda x, s, b: modulate(Dual(x, tx), Dual(s, ts), b).p, inputs)


def test_the_tangent_is_not_on_the_tape(rng):
    x, tx, s, ts, b, tb = draw(rng)
    y = modulate(Dual(x.requires_grad_(), tx.requires_grad_()), s, b)
    assert y.p.requires_grad and not y.t.requires_grad


def test_ops_are_well_formed(rng):
    x, tx, s, ts, b, tb = draw(rng, dtype=torch.float32)
    x, s, b = (a.requires_grad_() for a in (x, s, b))
    torch.library.opcheck(modulate_op, (x, s, b, 1e-6))
    torch.library.opcheck(modulate_jvp, (x, tx, s, None, b, tb, 1e-6))


def test_says_which_argument_is_wrong(rng):
    x, tx, s, ts, b, tb = draw(rng)
    with pytest.raises(ValueError, match=r"modulate_jvp: ts is \(1, 24\); want \(B, C\) = \(2, 24\)"):
        modulate_jvp(x, tx, s, ts[:1], b, tb, 1e-6)
    with pytest.raises(ValueError, match=r"modulate: x is \(5, 24\); want \(B, N, C\)"):
        modulate(x[0], s, b)
    with pytest.raises(ValueError, match=r"modulate: b is torch.float32; want torch.float64"):
        modulate(x, s, b.float())


# Mutants of the Triton kernel, for tests/mutants.py: (original, replacement).
MUTANTS = [
    ("    a = a - mean\n", "    a = a\n"),
    ("b = tl.where(mask_b, b - mean, 0.0)", "b = b - mean"),
    ("b = tl.where(mask_b, b - mean, 0.0)", "b = tl.where(mask_b, b, 0.0)"),
    ("/ C + eps", "/ C"),
    ("(u - mean_u - n * mean_nu)", "(u - n * mean_nu)"),
    ("(u - mean_u - n * mean_nu)", "(u - mean_u)"),
    ("rstd * (u", "(u"),
    ("mean_ntx, rstd) * (1 + part(s_ptr, col, mask))", "mean_ntx, rstd)"),
    ("ty += n * part(ts_ptr", "ty += part(ts_ptr"),
    ("        ty += part(tb_ptr, col, mask)", "        ty += 0"),
    ("channel = clip * C\n", "channel = 0\n"),
    ("y = a * (1 + part(s_ptr", "y = a * (part(s_ptr"),
    ("y = b * (1 + part(s_ptr", "y = b * (part(s_ptr"),
    (" + part(b_ptr + channel, col_a, mask_a)", ""),
    (" + part(b_ptr + channel, col_b, mask_b)", ""),
    ("tx_ptr + at, col_b, mask_b", "x_ptr + at, col_b, mask_b"),
    ("_tangent(tb, b, mean_t", "_tangent(tb, b, 0.0"),
    ("ts_row, tb_row, col_b", "ts_row, None, col_b"),
    ("dn_a = dy_a * (1 + part(s_ptr + clip * C", "dn_a = dy_a * (1 + part(s_ptr"),
    ("dn_b = dy_b * (1 + part(s_ptr + clip * C, col_b, mask_b))", "dn_b = dy_b"),
    ("ds_a += dy_a * a", "ds_a += dy_a"),
    ("ds_b += dy_b * b", "ds_b = dy_b * b"),
    ("db_a += dy_a", "db_a = dy_a"),
    ("tl.sum(db_b, 0)", "tl.sum(ds_b, 0)"),
    ("tl.minimum(N, (chunk + 1) * CHUNK)", "N"),
    ("(clip * tl.num_programs(0) + chunk) * C + tl", "chunk * C + tl"),
    ("(clip * tl.num_programs(0) + chunk) * C + rest", "chunk * C + rest"),
    ("dy, x, s = contiguous", "_, x, s = contiguous"),
]
