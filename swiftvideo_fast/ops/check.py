"""What every op asks of its arguments, said in one form: op, argument, found, wanted."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def shaped(op: str, axes: str, sizes: tuple, **tensors: Tensor | None) -> None:
    """Raise unless each tensor given has these sizes; `axes` names them: "B, C"."""
    for name, x in tensors.items():
        if x is not None and tuple(x.shape) != tuple(sizes):
            raise ValueError(f"{op}: {name} is {tuple(x.shape)}; want ({axes}) = {tuple(sizes)}")


def axes(op: str, names: str, **tensors: Tensor) -> None:
    """Raise unless each tensor has as many axes as `names` names."""
    for name, x in tensors.items():
        if x.dim() != names.count(",") + 1:
            raise ValueError(f"{op}: {name} is {tuple(x.shape)}; want ({names})")


def stored(op: str, dtype: torch.dtype, **tensors: Tensor | None) -> None:
    """Raise unless each tensor given is stored as `dtype`, one of FLOATS."""
    for name, x in tensors.items():
        if x is not None and (x.dtype != dtype or dtype not in FLOATS):
            wanted = dtype if dtype in FLOATS else "a float dtype"
            raise ValueError(f"{op}: {name} is {x.dtype}; want {wanted}")


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype arithmetic is done in: float32, or float64 where storage is float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
