"""Argument checks of the ops.  Each raises ValueError with op, argument, found, wanted."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def shape(op: str, axes: str, sizes: tuple, **tensors: Tensor | None) -> None:
    """Raises unless every tensor (None is skipped) has shape `sizes`; axes: their names, "B, C"."""
    for name, x in tensors.items():
        if x is not None and tuple(x.shape) != tuple(sizes):
            raise ValueError(f"{op}: {name} is {tuple(x.shape)}; want ({axes}) = {tuple(sizes)}")


def ndim(op: str, names: str, **tensors: Tensor) -> None:
    """Raises unless every tensor has as many axes as `names`, such as "B, N, C", lists."""
    for name, x in tensors.items():
        if x.dim() != names.count(",") + 1:
            raise ValueError(f"{op}: {name} is {tuple(x.shape)}; want ({names})")


def dtype(op: str, wanted: torch.dtype, **tensors: Tensor | None) -> None:
    """Raises unless every tensor (None is skipped) has dtype `wanted`, one of FLOATS."""
    for name, x in tensors.items():
        if x is not None and (x.dtype != wanted or wanted not in FLOATS):
            raise ValueError(f"{op}: {name} is {x.dtype}; "
                             f"want {wanted if wanted in FLOATS else 'a float dtype'}")


def compute_dtype(storage: torch.dtype) -> torch.dtype:
    """Returns the dtype of the arithmetic: float64 for float64 storage, else float32."""
    return torch.float64 if storage == torch.float64 else torch.float32
