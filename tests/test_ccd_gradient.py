"""CCD's distillation gradient on the CPU, against the reference in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import DTYPES, ISAS, assert_as_good_as_torch, normal, with_isa

from swiftvideo_fast.ops import ccd_gradient, reference
from swiftvideo_fast.ops.ccd_gradient import NORMS, ccd_gradient_op


@settings(max_examples=40)
@given(isa=ISAS, dtype=DTYPES, B=st.integers(1, 4), norm=st.sampled_from(NORMS), strided=st.booleans(),
       size=st.one_of(st.integers(1, 300), st.integers(1, 40000)), r=st.sampled_from([0.0, 0.3, 1.0]))
def test_matches_its_reference(isa, dtype, B, size, norm, r, strided):
    rng = torch.Generator().manual_seed(size)
    v, F, dF = (normal(rng, B, size, dtype=dtype, strided=strided) for _ in range(3))
    t = torch.rand(B, generator=rng)
    with with_isa(isa):
        got = ccd_gradient(v, F, dF, t, r, norm=norm)
    assert got[0].dtype == torch.float32
    assert_as_good_as_torch("g size", got, reference.ccd_gradient, v.float(), F.float(), dF.float(), t, r,
                            norm)


@pytest.mark.parametrize("norm", NORMS)
def test_float64_is_computed_in_float64(rng, norm):
    v, F, dF = (normal(rng, 3, 2, 40) for _ in range(3))
    t = torch.rand(3, generator=rng, dtype=torch.float64)
    want = reference.ccd_gradient(v, F, dF, t, 0.7, norm)
    torch.testing.assert_close(ccd_gradient(v, F, dF, t, 0.7, norm=norm), want, rtol=1e-13, atol=1e-13)


def test_l2_normalises_to_just_under_one(rng):
    v, F, dF = (normal(rng, 3, 50, dtype=torch.float32) for _ in range(3))
    g, size = ccd_gradient(v, F, dF, torch.ones(3), 1.0, c=0.1)
    torch.testing.assert_close(g.norm(dim=1), size / (size + 0.1))


def test_an_empty_batch_gives_an_empty_result():
    none = torch.zeros(0, 4)
    g, size = ccd_gradient(none, none, none, torch.zeros(0), 1.0)
    assert g.shape == (0, 4) and size.shape == (0,)


def test_is_bitwise_reproducible_on_any_number_of_threads(rng):
    v, F, dF = (normal(rng, 2, 100_000, dtype=torch.float32) for _ in range(3))
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(ccd_gradient(v, F, dF, torch.ones(2), 1.0))
    torch.set_num_threads(threads)
    for again in results[1:]:
        assert all(map(torch.equal, results[0], again))


def test_no_gradient_flows(rng):
    v, F, dF = (normal(rng, 2, 5).requires_grad_() for _ in range(3))
    assert not any(x.requires_grad for x in ccd_gradient(v, F, dF, torch.ones(2), 1.0))


def test_mixed_dtypes_are_promoted(rng):
    v, F, dF = (normal(rng, 2, 5, dtype=torch.float32) for _ in range(3))
    F, dF = F.bfloat16(), dF.bfloat16()
    mixed = ccd_gradient(v, F, dF, torch.ones(2), 1.0)
    wide = ccd_gradient(v, F.float(), dF.float(), torch.ones(2), 1.0)
    torch.testing.assert_close(mixed, wide)


def test_op_is_well_formed(rng):
    v, F, dF = (normal(rng, 2, 3, dtype=torch.bfloat16) for _ in range(3))
    torch.library.opcheck(ccd_gradient_op, (v, F, dF, torch.ones(2), 0.5, "rms", 0.1))


def test_says_which_argument_is_wrong(rng):
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"ccd_gradient: t is \(3,\); want \(B\) = \(2,\)"):
        ccd_gradient(x, x, x, torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match=r"ccd_gradient: norm is 'l1'; want one of l2, rms, clip"):
        ccd_gradient(x, x, x, torch.zeros(2), 1.0, norm="l1")


# Mutants of the Triton kernel, for tests/mutants.py: (original, replacement).
MUTANTS = [
    ("return v - f - rt * df", "return v - f"),
    ("return v - f - rt * df", "return v - f + rt * df"),
    ("return v - f - rt * df", "return v - rt * df"),
    ("rt = r * tl.load(t_ptr + clip)", "rt = r * tl.load(t_ptr)"),
    ("rt = r * tl.load(t_ptr + clip)", "rt = tl.load(t_ptr + clip)"),
    ("at, mask = clip * D + col, col < D", "at, mask = clip * D + col, col <= D"),
    ("at, mask = clip * D + col, col < D", "at, mask = col, col < D"),
    ("range(part * BLOCK, D, parts * BLOCK)", "range(part * BLOCK, parts * BLOCK, parts * BLOCK)"),
    ("square += g * g", "square = g * g"),
    ("square += g * g", "square += tl.minimum(tl.maximum(g, -1.0), 1.0) * g"),
    ("tl.minimum(tl.maximum(g, -1.0), 1.0)", "tl.maximum(g, -1.0)"),
    ("square_ptr + clip * parts + part", "square_ptr + part"),
    (", t.contiguous()", ", t"),
    ("D ** -0.5", "1 / D"),
    ('1.0 if norm == "l2"', '1.0 if norm == "rms"'),
    ("(unit * size + c)", "(unit * size)"),
    ("if part == 0:", "if part == 1:"),
    ("square_ptr + clip * parts + i", "square_ptr + i"),
    ("at, mask = clip * D + col, col < D\n        tl.store", "at, mask = col, col < D\n        tl.store"),
    ("tl.num_programs(1) - 1 - tl.program_id(1)", "tl.num_programs(1) - tl.program_id(1)"),
    ("        rt = r * tl.load(t_ptr + clip)", "        rt = r * tl.load(t_ptr)"),
    ("None if clamp else g, square", "g, square"),
    ("(v, F, dF), t = contiguous", "(_, F, dF), t = contiguous"),
]
