"""The CCD loss and its gradient on the CPU, against the reference in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import DTYPES, ISAS, assert_as_good_as_torch, gradients, normal, with_isa

from swiftvideo_fast.ops import ccd_loss, reference
from swiftvideo_fast.ops.ccd_loss import ccd_loss_op


@settings(max_examples=30)
@given(isa=ISAS, dtype=DTYPES, B=st.integers(1, 4), strided=st.booleans(),
       size=st.one_of(st.integers(1, 300), st.integers(1, 40000)))
def test_loss_and_gradient_match_the_reference(isa, dtype, B, size, strided):
    rng = torch.Generator().manual_seed(size)
    F_student, F = (normal(rng, B, size, dtype=dtype, strided=strided) for _ in range(2))
    g, dloss = normal(rng, B, size, dtype=torch.float32), normal(rng, B, dtype=torch.float32)
    with with_isa(isa):
        loss = ccd_loss(F_student, F, g)
        dF, = gradients(lambda F_student: ccd_loss(F_student, F, g), (F_student,), dloss)
    assert loss.dtype == torch.float32 and dF.dtype == dtype
    assert_as_good_as_torch("loss", loss, reference.ccd_loss, F_student.float(), F.float(), g)
    assert_as_good_as_torch("dF_student", dF, lambda x, F, g, dloss: (
        2 * (x - F - g).to(x.dtype) * dloss[:, None].to(x.dtype)), F_student, F, g, dloss)


def test_gradient_passes_gradcheck(rng):
    F_student, F, g = (normal(rng, 2, 3, 4) for _ in range(3))
    torch.autograd.gradcheck(lambda x: ccd_loss(x, F, g), (F_student.requires_grad_(),))


def test_only_the_student_has_a_gradient(rng):
    F_student, F, g = (normal(rng, 2, 3).requires_grad_() for _ in range(3))
    ccd_loss(F_student, F, g).sum().backward()
    assert F_student.grad is not None and F.grad is None and g.grad is None


def test_an_empty_batch_gives_an_empty_result():
    none = torch.zeros(0, 4)
    assert ccd_loss(none, none, none).shape == (0,)


def test_op_is_well_formed(rng):
    F_student, F, g = (normal(rng, 2, 3, dtype=torch.float32) for _ in range(3))
    torch.library.opcheck(ccd_loss_op, (F_student.requires_grad_(), F, g))


def test_says_which_argument_is_wrong():
    x = torch.zeros(2, 3, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"ccd_loss: g is torch.bfloat16; want torch.float32"):
        ccd_loss(x, x, x)
    with pytest.raises(ValueError, match=r"ccd_loss: F_student is \(1, 3\); want \(B, ...\) = \(2, 3\)"):
        ccd_loss(x[:1], x, x.float())


# Mutants of the Triton kernel, for tests/mutants.py: (original, replacement).
MUTANTS = [
    ("residual = student - f - ", "residual = student - f + "),
    ("residual = student - f - ", "residual = student - "),
    ("square += residual * residual", "square += residual"),
    ("square += residual * residual", "square = residual * residual"),
    ("torch.empty_like(F), partial_sums", "torch.empty_like(F, dtype=torch.float16), partial_sums"),
    ("F_student, F, g = contiguous", "F_student, F, _ = contiguous"),
    ("at, mask = clip * D + col, col < D", "at, mask = col, col < D"),
    ("square_ptr + clip * parts + part", "square_ptr + part"),
]
