"""gelu on the CPU: value and tangent against torch in float64, then their properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import DTYPES, ISAS, LENGTHS, assert_as_good_as_torch, forward_mode, normal, with_isa

from swiftvideo_fast.dual import Dual
from swiftvideo_fast.ops import gelu, reference
from swiftvideo_fast.ops.gelu import gelu_backward, gelu_jvp, gelu_op


def meaning(x, tx):
    return forward_mode(reference.gelu, [(x, tx)])


@settings(max_examples=40)
@given(isa=ISAS, dtype=DTYPES, B=st.integers(0, 3), N=LENGTHS, C=st.integers(1, 300),
       strided=st.booleans(), scale=st.sampled_from([0.1, 1, 5]))
def test_matches_forward_mode(isa, dtype, B, N, C, strided, scale):
    rng = torch.Generator().manual_seed(N * 1000 + C)
    x, tx = (normal(rng, B, N, C, dtype=dtype, strided=strided) for _ in range(2))
    with with_isa(isa):
        got = gelu_jvp(scale * x, tx)
        apart = gelu_op(scale * x), gelu_backward(tx, scale * x)
    assert_as_good_as_torch("y ty", got, meaning, scale * x, tx)
    assert all(map(torch.equal, apart, got))                    # elementwise: the backward is the tangent


def test_far_from_zero_it_is_the_identity_or_zero():
    x = torch.tensor([-1e10, -100.0, -15.0, 15.0, 100.0, 1e10])
    y, ty = gelu_jvp(x, torch.ones_like(x))
    assert torch.equal(y, torch.tensor([0, 0, 0, 15.0, 100.0, 1e10]))
    assert torch.equal(ty, torch.tensor([0, 0, 0, 1.0, 1.0, 1.0]))


def test_nan_stays_nan():
    assert all(x.isnan().all() for x in gelu_jvp(torch.full((3,), torch.nan), torch.ones(3)))


def test_is_linear_in_the_tangent(rng):
    x, tx = normal(rng, 30), normal(rng, 30)
    torch.testing.assert_close(gelu_jvp(x, -2 * tx)[1], -2 * gelu_jvp(x, tx)[1])


def test_gradients_pass_gradcheck(rng):
    x, tx = normal(rng, 2, 7).requires_grad_(), normal(rng, 2, 7)
    torch.autograd.gradcheck(gelu, (x,))
    torch.autograd.gradcheck(lambda x: gelu(Dual(x, tx)).p, (x,))


def test_ops_are_well_formed(rng):
    x, tx = (normal(rng, 3, 4, dtype=torch.float32) for _ in range(2))
    torch.library.opcheck(gelu_op, (x.requires_grad_(),))
    torch.library.opcheck(gelu_jvp, (x, tx))


def test_says_which_argument_is_wrong(rng):
    with pytest.raises(ValueError, match=r"gelu_jvp: tx is \(3,\); want .* \(2, 3\)"):
        gelu_jvp(torch.zeros(2, 3), torch.zeros(3))


# Mutants of the Triton kernel, for tests/mutants.py: (original, replacement).
MUTANTS = [
    ("(1 + 0.044715 * square)", "1"),
    ("(1 + 0.044715", "(1 + 0.04471"),
    ("1.5957691216057308", "1.5958"),
    ("(s + slope", "(slope"),
    ("(1 + 0.134145 * square)", "1"),
    ("tl.abs(two_u)", "two_u"),
    ("e * larger", "1 - larger"),
    ("tl.where(x > 0, larger, smaller)", "larger"),
    ("(larger * smaller)", "larger"),
    ("mask = at < numel", "mask = at < numel - 1"),
    ("x, tx = contiguous", "x, _ = contiguous"),
    ("return _launch(x, dy, None", "return _launch(dy, x, None"),
    ("dy, x = contiguous", "dy, _ = contiguous"),
    ("x, = contiguous", "_, = contiguous"),
    ("(triton.cdiv(x.numel(), BLOCK),)", "(x.numel() // BLOCK + 0 ** (x.numel() // BLOCK),)"),
]
