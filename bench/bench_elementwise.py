"""Every op with a tangent except attention, against torch's forward mode of its reference.

Memory-bound: compare with a copy.  Ops, arguments and bytes come from the registry.
"""

import inspect
from functools import partial

import torch
from torch import Tensor

from bench.arguments import arguments
from bench.harness import Case, case
from swiftvideo_fast import ops
from swiftvideo_fast.ops import reference

# (B, N, C) of the residual stream and of the MLP
STREAM = dict(cpu=(1, 2048, 1536), cpu_demo=(32, 80, 128),
              wan_1_3b=(1, 24960, 1536), wan_14b=(1, 32760, 5120))
MLP = dict(cpu=(1, 1024, 4096), cpu_demo=(32, 80, 512), wan_1_3b=(1, 24960, 8960), wan_14b=(1, 32760, 13824))


def build(name: str, B: int, N: int, C: int, device: str, dtype: torch.dtype) -> Case:
    op = ops.custom_ops(name)[f"{name}_jvp"]
    given = arguments(op, B, N, C, dtype, partial(torch.randn, device=device))
    pairs = [x for x in given if f"t{x}" in given]
    meaning = getattr(reference, name)
    order = [parameter.partition("_")[0] for parameter in inspect.signature(meaning).parameters]

    def primal(*primals: Tensor) -> Tensor:
        known = given | dict(zip(pairs, primals, strict=True))
        return meaning(*(known[x] for x in order if x in known))

    planes = sum(isinstance(x, Tensor) and x.shape == (B, N, C) for x in given.values()) + 2     # y, ty
    return Case(
        ours=lambda: op(*given.values()),
        torch=lambda: reference.jvp(primal, *(tuple(given[f"{t}{x}"] for x in pairs) for t in ("", "t"))),
        bytes_moved=planes * B * N * C * dtype.itemsize)


for name in ops.OPS:
    if name != "attention" and f"{name}_jvp" in ops.custom_ops(name):
        case(f"{name}_jvp", **(MLP if name == "gelu" else STREAM))(partial(build, name))
