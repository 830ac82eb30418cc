"""Memory that lies as another tensor's does: a view of a primal must be a view of its tangent."""

import torch
from torch import Tensor


def overlaps(x: Tensor) -> bool:
    """Do two elements of x share memory (expand, unfold)?"""
    end = 1
    for stride, size in sorted([(s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n > 1]):
        if stride < end:
            return True
        end += stride * (size - 1)
    return False


def alike(a: Tensor, b: Tensor) -> bool:
    """Have a and b, of one shape, the same strides, where strides matter?"""
    return not any([m != n for m, n, size in zip(a.stride(), b.stride(), b.shape, strict=True) if size != 1])


def empty_as(p: Tensor) -> Tensor:
    """Uninitialised memory with p's strides, gaps too; contiguous where p overlaps itself."""
    t = torch.empty_like(p, requires_grad=False)
    if p.layout is not torch.strided or alike(t, p) or overlaps(p):
        return t
    return torch.empty_strided(p.shape, p.stride(), dtype=p.dtype, device=p.device)


def zeros_as(p: Tensor) -> Tensor:
    """Zeros with p's strides."""
    return empty_as(p).zero_()


def like(t: Tensor, p: Tensor) -> Tensor:
    """t in p's dtype, shape and memory layout."""
    t = t.to(p.dtype).expand(p.shape)
    if p.layout is not torch.strided or alike(t, p):
        return t
    return t if overlaps(p) and not overlaps(t) else empty_as(p).copy_(t)


def copied(t: Tensor, p: Tensor) -> Tensor:
    """A copy of t that lies as p does."""
    return t.clone() if alike(t, p) and not overlaps(t) else empty_as(p).copy_(t)


def shares(a: Tensor, b: Tensor) -> bool:
    """Does a lie in b's storage?  Tensors without a storage share nothing."""
    try:
        return a.untyped_storage()._cdata == b.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return False
