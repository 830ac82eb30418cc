"""Memory layout: tangents take their primals' strides, so that a view of one is a view of the other."""

import torch
from torch import Tensor


def has_internal_overlap(x: Tensor) -> bool:
    """True if two elements of x share memory (expand, unfold)."""
    end = 1
    for stride, size in sorted([(s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n > 1]):
        if stride < end:
            return True
        end += stride * (size - 1)
    return False


def same_strides(a: Tensor, b: Tensor) -> bool:
    """True if a and b, of one shape, have equal strides on every axis longer than 1."""
    return not any([m != n for m, n, size in zip(a.stride(), b.stride(), b.shape, strict=True) if size != 1])


def empty_as(p: Tensor) -> Tensor:
    """Returns uninitialised memory with p's strides, including gaps; contiguous if p overlaps itself."""
    t = torch.empty_like(p, requires_grad=False)
    if p.layout is not torch.strided or same_strides(t, p) or has_internal_overlap(p):
        return t
    return torch.empty_strided(p.shape, p.stride(), dtype=p.dtype, device=p.device)


def zeros_as(p: Tensor) -> Tensor:
    """Returns zeros with p's strides."""
    return empty_as(p).zero_()


def cast_as(t: Tensor, p: Tensor) -> Tensor:
    """Returns t in p's dtype, shape and memory layout; t itself where it already matches."""
    t = t.to(p.dtype).expand(p.shape)
    if p.layout is not torch.strided or same_strides(t, p):
        return t
    return t if has_internal_overlap(p) and not has_internal_overlap(t) else empty_as(p).copy_(t)


def copy_as(t: Tensor, p: Tensor) -> Tensor:
    """Returns a copy of t with p's strides."""
    return t.clone() if same_strides(t, p) and not has_internal_overlap(t) else empty_as(p).copy_(t)


def shares_storage(a: Tensor, b: Tensor) -> bool:
    """True if a and b share a storage; False for tensors without one."""
    try:
        return a.untyped_storage()._cdata == b.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return False
