"""norm_rope on the CPU: value, tangent and backward against torch in float64, then their properties."""

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
from swiftvideo_fast.ops import norm_rope, reference
from swiftvideo_fast.ops.norm_rope import norm_rope_backward, norm_rope_jvp, norm_rope_op

HALVES = st.one_of(st.integers(1, 24), st.sampled_from([32, 64]))
HEADS = dict(H=st.integers(1, 5), R=HALVES, rotated=st.booleans())


def draw(rng, B=2, N=5, H=3, R=4, dtype=torch.float64, rotated=True, strided=False):
    """x, tx, w, cos, sin for heads of width 2 R."""
    x, tx = (normal(rng, B, N, 2 * R * H, dtype=dtype, strided=strided) for _ in range(2))
    w, angle = normal(rng, 2 * R * H, dtype=dtype), normal(rng, N, R)
    table = torch.float64 if dtype == torch.float64 else torch.float32
    return x, tx, w, *([angle.cos().to(table), angle.sin().to(table)] if rotated else [None, None])


def meaning(x, tx, *constants):
    return forward_mode(reference.norm_rope, [(x, tx)], *constants)


@settings(max_examples=40)
@given(isa=ISAS, dtype=DTYPES, B=st.integers(0, 3), N=LENGTHS, strided=st.booleans(), **HEADS)
def test_matches_forward_mode(isa, dtype, B, N, H, R, rotated, strided):
    rng = torch.Generator().manual_seed(N * 1000 + R)
    x, tx, w, cos, sin = draw(rng, B, N, H, R, dtype, rotated, strided)
    with with_isa(isa):
        got, alone = norm_rope_jvp(x, tx, w, cos, sin, 1e-6), norm_rope_op(x, w, cos, sin, 1e-6)
    assert_as_good_as_torch("y ty", got, meaning, x, tx, w, cos, sin, 1e-6)
    assert torch.equal(alone, got[0])


def test_matches_at_the_width_of_wan(rng):
    args = *draw(rng, 1, 7, 12, 64, torch.float32), 1e-6
    assert_as_good_as_torch("y ty", norm_rope_jvp(*args), meaning, *args)


@settings(max_examples=20)
@given(isa=ISAS, dtype=DTYPES, B=st.integers(0, 3), N=LENGTHS, strided=st.booleans(), **HEADS)
def test_backward_matches_autograd(isa, dtype, B, N, H, R, rotated, strided):
    rng = torch.Generator().manual_seed(N * 1000 + R)
    x, dy, w, cos, sin = draw(rng, B, N, H, R, dtype, rotated, strided)
    with with_isa(isa):
        got = norm_rope_backward(dy, x, w, cos, sin, 1e-6)
    assert_as_good_as_torch("dx dw", got, lambda x, w, dy, *table: gradients(
        lambda x, w: reference.norm_rope(x, w, *table), (x, w), dy), x, w, dy, cos, sin)


def test_backward_is_the_transpose_of_the_tangent(rng):
    x, tx, w, cos, sin = draw(rng, N=300)
    ty = norm_rope_jvp(x, tx, w, cos, sin, 1e-6)[1]
    assert_adjoint(lambda x: norm_rope(x, w, cos, sin), (x,), (tx,), ty, rng)


def test_rotation_keeps_the_length_of_every_pair(rng):
    x, _, w, cos, sin = draw(rng)
    turned, still = norm_rope(x, w, cos, sin), norm_rope(x, w, None, None)
    torch.testing.assert_close(*(y.unflatten(-1, (-1, 2)).norm(dim=-1) for y in (turned, still)))


def test_is_linear_in_the_tangent(rng):
    x, tx, *rest = draw(rng)
    one, two = (norm_rope_jvp(x, scale * tx, *rest, 1e-6)[1] for scale in (1, -2))
    torch.testing.assert_close(two, -2 * one)


def test_gradients_pass_gradcheck(rng):
    x, tx, w, cos, sin = draw(rng, N=3, H=2, R=2)
    torch.autograd.gradcheck(lambda x, w: norm_rope(x, w, cos, sin), (x.requires_grad_(), w.requires_grad_()))
    torch.autograd.gradcheck(lambda x, w: norm_rope(Dual(x, tx), w, None, None).p, (x, w))


def test_the_tangent_is_not_on_the_tape(rng):
    x, tx, w, cos, sin = draw(rng)
    y = norm_rope(Dual(x.requires_grad_(), tx.requires_grad_()), w, cos, sin)
    assert y.p.requires_grad and not y.t.requires_grad


def test_ops_are_well_formed(rng):
    x, tx, w, cos, sin = draw(rng, dtype=torch.float32)
    x, w = x.requires_grad_(), w.requires_grad_()
    torch.library.opcheck(norm_rope_op, (x, w, None, None, 1e-6))
    torch.library.opcheck(norm_rope_jvp, (x, tx, w, cos, sin, 1e-6))


def test_says_which_argument_is_wrong(rng):
    x, tx, w, cos, sin = draw(rng)
    with pytest.raises(ValueError, match=r"norm_rope: sin is \(4, 4\); want \(N, D / 2\) = \(5, 4\)"):
        norm_rope(x, w, cos, sin[:4])
    with pytest.raises(ValueError, match=r"norm_rope: cos is \(5, 7\); want .* with D a divisor of 24"):
        norm_rope(x, w, torch.zeros(5, 7), torch.zeros(5, 7))
    with pytest.raises(ValueError, match=r"norm_rope: sin is None; want both or neither"):
        norm_rope(x, w, cos, None)
    with pytest.raises(ValueError, match=r"norm_rope_jvp: tx is \(1, 5, 24\); want \(B, N, C\)"):
        norm_rope_jvp(x, tx[:1], w, cos, sin, 1e-6)


# Mutants of the Triton kernel, for tests/mutants.py: (original, replacement).
MUTANTS = [
    ("rstd * (u - n * mean_nu)", "rstd * u"),
    ("rstd * (u - n * mean_nu)", "u - n * mean_nu"),
    ("(pair % R)", "pair"),
    ("at = row[:, None] * R", "at = row[:, None] * (R + 1)"),
    ("FIRST // 2 + tl.arange", "tl.arange"),
    ("a * cos - b * sin", "a * cos + b * sin"),
    ("a * sin + b * cos", "b * sin + a * cos"),
    ("/ C + eps", "/ C"),
    ("y = _rotate(a * part(w_ptr, col_a, mask_a)", "y = _rotate(a"),
    ("y = b * part(w_ptr, col_b, mask_b)", "y = b"),
    ("(ta, a, mean_nt, rstd) * part(w_ptr, col_a, mask_a)", "(ta, a, mean_nt, rstd)"),
    ("mean_nt = row_dot(ta, tb, a, b) / C", "mean_nt = row_dot(ta, None, a, None) / C"),
    ("sin = sign * tl", "sin = tl"),
    ("dn_b = dy_b * part(w_ptr, col_b, mask_b)", "dn_b = dy_b"),
    ("dw_a += dy_a * a", "dw_a = dy_a * a"),
    ("dw_b += dy_b * b", "dw_b = dy_b * b"),
    ("dw.sum((0, 1))", "dw.sum(1)[0]"),
    ("(cos.float(), sin.float())", "(cos, sin)"),
    ("at = (tl.program_id(1).to(tl.int64) * N + row)[:, None]", "at = row[:, None]"),
    ("tl.minimum(N, (chunk + 1) * CHUNK)", "N"),
]
