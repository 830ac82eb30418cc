"""gate on the CPU: value, tangent and backward against torch in float64, then their properties."""

import itertools

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
from swiftvideo_fast.ops import gate, reference
from swiftvideo_fast.ops.gate import gate_backward, gate_jvp, gate_op

WIDTHS = st.integers(1, 300)


def draw(rng, B=2, N=5, C=24, dtype=torch.float64, narrow=None, strided=False):
    """x, tx, y, ty, g, tg."""
    tokens = [normal(rng, B, N, C, dtype=dtype, strided=strided) for _ in range(4)]
    return *tokens, *(normal(rng, B, C, dtype=narrow or dtype) for _ in range(2))


def meaning(x, tx, y, ty, g, tg):
    return forward_mode(reference.gate, [(x, tx), (y, ty), (g, tg)])


@settings(max_examples=40)
@given(isa=ISAS, dtype=DTYPES, B=st.integers(0, 3), N=LENGTHS, C=WIDTHS, strided=st.booleans(),
       given_tangents=st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_matches_forward_mode(isa, dtype, B, N, C, strided, given_tangents):
    rng = torch.Generator().manual_seed(N * 1000 + C)
    x, tx, y, ty, g, tg = draw(rng, B, N, C, dtype, torch.float32, strided)
    tx, ty, tg = (t if here else None for t, here in zip((tx, ty, tg), given_tangents, strict=True))
    with with_isa(isa):
        got, alone = gate_jvp(x, tx, y, ty, g, tg), gate_op(x, y, g)
    assert_as_good_as_torch("z tz", got, meaning, x, tx, y, ty, g, tg)
    assert torch.equal(alone, got[0])


@settings(max_examples=20)
@given(isa=ISAS, dtype=DTYPES, B=st.integers(0, 3), N=LENGTHS, C=WIDTHS, strided=st.booleans())
def test_backward_matches_autograd(isa, dtype, B, N, C, strided):
    rng = torch.Generator().manual_seed(N * 1000 + C)
    dz, _, y, _, g, _ = draw(rng, B, N, C, dtype, torch.float32, strided)
    with with_isa(isa):
        got = gate_backward(dz, y, g)
    assert_as_good_as_torch("dy dg", got, lambda y, g, dz: gradients(
        lambda y, g: reference.gate(torch.zeros_like(y), y, g), (y, g), dz), y, g, dz)


def test_backward_is_the_transpose_of_the_tangent(rng):
    x, tx, y, ty, g, tg = draw(rng, N=300)
    assert_adjoint(gate, (x, y, g), (tx, ty, tg), gate_jvp(x, tx, y, ty, g, tg)[1], rng)


def test_is_linear_in_the_tangent(rng):
    x, tx, y, ty, g, tg = draw(rng)
    two = gate_jvp(x, -2 * tx, y, -2 * ty, g, -2 * tg)[1]
    torch.testing.assert_close(two, -2 * gate_jvp(x, tx, y, ty, g, tg)[1])


@pytest.mark.parametrize("missing", list(itertools.product([True, False], repeat=3)), ids=str)
def test_a_missing_tangent_is_zero_tensors(rng, missing):
    x, tx, y, ty, g, tg = draw(rng, dtype=torch.float32)
    none = [None if gone else t for t, gone in zip((tx, ty, tg), missing, strict=True)]
    zero = [torch.zeros_like(t) if gone else t for t, gone in zip((tx, ty, tg), missing, strict=True)]
    a, b = (gate_jvp(x, t[0], y, t[1], g, t[2]) for t in (none, zero))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_gradients_pass_gradcheck(rng):
    x, tx, y, ty, g, tg = draw(rng, N=3, C=4)
    inputs = [a.requires_grad_() for a in (x, y, g)]
    torch.autograd.gradcheck(gate, inputs)
    torch.autograd.gradcheck(lambda x, y, g: gate(x, Dual(y, ty), g).p, inputs)


def test_ops_are_well_formed(rng):
    x, tx, y, ty, g, tg = draw(rng, dtype=torch.float32)
    x, y, g = (a.requires_grad_() for a in (x, y, g))
    torch.library.opcheck(gate_op, (x, y, g))
    torch.library.opcheck(gate_jvp, (x, tx, y, None, g, tg))


def test_says_which_argument_is_wrong(rng):
    x, tx, y, ty, g, tg = draw(rng)
    with pytest.raises(ValueError, match=r"gate: g is \(1, 24\); want \(B, C\) = \(2, 24\)"):
        gate(x, y, g[:1])
    with pytest.raises(ValueError, match=r"gate_jvp: ty is torch.float32; want torch.float64"):
        gate_jvp(x, tx, y, ty.float(), g, tg)


# Mutants of the Triton kernel, for tests/mutants.py: (original, replacement).
MUTANTS = [
    ("+ g * y", "+ y"),
    ("            tz += tl.load(tx_ptr + at, mask, 0.0).to(tl.float32)", "            tz += 0"),
    ("tz += g * tl.load(ty_ptr", "tz += tl.load(ty_ptr"),
    ("tz += y * tl.load(tg_ptr", "tz += tl.load(tg_ptr"),
    ("tl.load(tg_ptr + clip * C + col", "tl.load(tg_ptr + col"),
    ("g = tl.load(g_ptr + clip * C + col", "g = tl.load(g_ptr + col"),
    ("at = (clip * N + row)[:, None]", "at = row[:, None]"),
    ("mask = (row < N)[:, None] & (col < C)[None, :]", "mask = (row < N)[:, None] & (col >= 0)[None, :]"),
    ("mask = (row < N)[:, None] & (col < C)[None, :]", "mask = (row >= 0)[:, None] & (col < C)[None, :]"),
    ("dg += dz * tl", "dg = dz * tl"),
    ("dg += dz * tl", "dg += tl"),
    ("tl.store(dy_ptr + at, g * dz, mask)", "tl.store(dy_ptr + at, dz, mask)"),
    ("(clip * tl.num_programs(0) + chunk) * C", "chunk * C"),
    ("tl.minimum(N, (chunk + 1) * CHUNK)", "N"),
    ("x, y, g = contiguous(\"gate\"", "_, y, g = contiguous(\"gate\""),
    ("dz, y, g = contiguous", "_, y, g = contiguous"),
]
