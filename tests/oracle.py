"""Shared by the op tests: unusual layouts, vector widths, torch's forward and reverse mode as oracles."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from closeness import assert_no_worse
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from swiftvideo_fast import _C

ISAS = st.sampled_from(_C.isas())
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
TAILS = st.sampled_from([63, 64, 65, 127, 128, 129, 257, 515])      # around attention's block sizes
LENGTHS = st.one_of(st.integers(0, 20), TAILS, st.integers(1, 700))


@contextmanager
def with_isa(isa: str) -> Generator[None]:
    """Runs the CPU backend with this instruction set."""
    before = _C.use_isa(isa)
    try:
        yield
    finally:
        _C.use_isa(before)


def normal(rng: torch.Generator, *shape: int, dtype=torch.float64, strided: bool = False) -> Tensor:
    """Standard normal; strided: a view with gaps after its rows, its first and last but one axis swapped."""
    if not strided:
        return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)
    *outer, width = shape
    swapped = outer[-1:] + outer[1:-1] + outer[:1] if len(outer) > 1 else outer
    return normal(rng, *swapped, width + 3, dtype=dtype).transpose(0, len(outer) - 1)[..., 1:-2]


def wider(x):
    return tree_map(lambda a: a.double() if isinstance(a, Tensor) and a.is_floating_point() else a, x)


def forward_mode(fn: Callable, pairs, *constants):
    """(fn, its tangent) for pairs (primal, tangent or None)."""
    tangents = tuple(torch.zeros_like(p) if t is None else t.to(p.dtype) for p, t in pairs)
    return torch.func.jvp(lambda *p: fn(*p, *constants), tuple(p for p, _ in pairs), tangents)


def gradients(fn: Callable, inputs, cotangent: Tensor) -> tuple[Tensor, ...]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(fn(*inputs), inputs, cotangent)


def assert_as_good_as_torch(names: str, got, meaning: Callable, *args, inside: float = 0.0) -> None:
    """`got` errs at most twice as much as `meaning(*args)` does in the same dtypes, against float64.
    inside: as in closeness.assert_no_worse."""
    results = (tree_leaves(result) for result in (got, meaning(*args), meaning(*wider(args))))
    for name, one, same, exact in zip(names.split(), *results, strict=True):
        assert one.shape == exact.shape, f"{name}: {tuple(one.shape)}, want {tuple(exact.shape)}"
        if one.numel():
            assert_no_worse(name, one, same, exact, inside)


def assert_adjoint(op: Callable, primals, tangents, jvp_tangent: Tensor, rng: torch.Generator) -> None:
    """<w, J t> = <J' w, t>, in float64: the backward is the transpose of the tangent."""
    w = normal(rng, *jvp_tangent.shape)
    back = gradients(op, primals, w)
    inner = sum((g * t).sum() for g, t in zip(back, tangents, strict=True))
    torch.testing.assert_close((w * jvp_tangent).sum(), inner)
