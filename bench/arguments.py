"""Generates arguments for any custom op of the registry, by the names in its schema.

x, y, their tangents and cotangents are (B, N, C) in storage dtype, gains and shifts (B, C) in float32.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.library import CustomOpDef

PLANES = "x tx y ty dx dy dz v F dF F_student".split()
PER_CLIP = "s ts b tb g tg".split()
HEADS = "q tq k tk v tv do o".split()
CONSTANTS = {"eps": 1e-6, "r": 0.5, "norm": "l2", "c": 0.1, "decay": 0.95, "causal": False}


def arguments(op: CustomOpDef, B: int, N: int, C: int, dtype: torch.dtype,
              new: Callable[..., Tensor]) -> dict[str, object]:
    """Returns {argument: value}; new(*shape, dtype=...) makes tensors, e.g. torch.randn or meta ones."""
    D = math.gcd(C, 128)

    def draw(name: str):
        if name in CONSTANTS:
            return CONSTANTS[name]
        if op._name.startswith("attention") and name in HEADS:
            return new(B, N, C // D, D, dtype=dtype).transpose(1, 2)
        if op._name == "ccd_loss" and name == "g":
            return new(B, N, C, dtype=torch.float32)
        if name in PLANES:
            return new(B, N, C, dtype=dtype)
        if name in PER_CLIP:
            return new(B, C, dtype=torch.float32)
        if name in ("average", "master", "copy"):
            return [new(N, C, dtype=dtype if name == "copy" else torch.float32)]
        if name == "scale":
            return D**-0.5
        shapes = {"w": (C,), "cos": (N, D // 2), "sin": (N, D // 2), "t": (B,), "lse": (B, C // D, N)}
        if name not in shapes:
            raise ValueError(f"arguments: {op._name} takes {name}, which has no shape in bench/arguments.py")
        return new(*shapes[name], dtype=torch.float32)

    return {argument.name: draw(argument.name) for argument in op._opoverload._schema.arguments}
