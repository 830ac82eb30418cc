"""How the elementwise kernels want their tensors, and how they cut rows into tiles."""

import torch
import triton
from torch import Tensor


def contiguous(op: str, *tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors, copied where they are not contiguous.  float64 has no kernel: the CPU room has."""
    for x in tensors:
        if x is not None and x.dtype == torch.float64:
            raise ValueError(f"{op}: float64 on {x.device}; want float32, bfloat16 or float16")
    return [x if x is None else x.contiguous() for x in tensors]


def whole_rows(C: int, values: int = 16) -> dict[str, int]:
    """The tile of a kernel that needs whole rows of C channels: about 4096 values, so many a thread."""
    block_c = triton.next_power_of_2(C)
    rows = max(1, 4096 // max(block_c, 512))
    return {"ROWS": rows, "BLOCK_C": block_c, "num_warps": min(32, max(1, rows * block_c // (32 * values)))}


def part_rows(C: int) -> dict[str, int]:
    """The tile of a kernel that may cut a row: about 4096 values, 16 a thread."""
    block_c = min(512, triton.next_power_of_2(C))
    return {"ROWS": 8, "BLOCK_C": block_c, "num_warps": max(1, block_c // 64)}
