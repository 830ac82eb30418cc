"""How the elementwise kernels want their tensors, and how they cut rows into tiles."""

import torch
import triton
import triton.language as tl
from torch import Tensor


def contiguous(op: str, *tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors, copied where they are not contiguous.  float64 has a kernel on the CPU only."""
    for x in tensors:
        if x is not None and x.dtype == torch.float64:
            raise ValueError(f"{op}: float64 on {x.device}; want float32, bfloat16 or float16")
    return [x if x is None else x.contiguous() for x in tensors]


def whole_rows(C: int, channels: int = 2048) -> dict[str, int]:
    """The tile of a kernel that sums over whole rows of C channels: a warp for so many, so that most rows are
    summed with little or no shared memory.  The compiler knows C and drops what lies past it.

    What belongs to channels is loaded as [ROWS, BLOCK_C] too: in a layout of its own it would have to be
    moved between threads.
    """
    block_c = triton.next_power_of_2(C)
    warps = min(32, triton.next_power_of_2(triton.cdiv(C, channels)))
    return {"C": C, "ROWS": max(1, min(8, 1024 // block_c)), "BLOCK_C": block_c, "num_warps": warps}


@triton.jit
def whole_row_mask(row, N, col, C: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """What there is of [ROWS, BLOCK_C].  A program with one row has a real one: its mask is a constant."""
    mask = tl.broadcast_to((col < C)[None, :], (ROWS, BLOCK_C))
    if ROWS > 1:
        mask = mask & (row < N)[:, None]
    return mask


def part_rows(C: int) -> dict[str, int]:
    """The tile of a kernel that may cut a row: about 4096 values, 16 a thread."""
    block_c = min(512, triton.next_power_of_2(C))
    return {"ROWS": 8, "BLOCK_C": block_c, "num_warps": max(1, block_c // 64)}


def partial_sums(x: Tensor, block: int) -> Tensor:
    """[B, parts] fp32, uninitialised: a sum for each program of a kernel that reads a clip in blocks."""
    parts = min(1024, triton.cdiv(x.shape[1:].numel(), block))
    return torch.empty(len(x), parts, dtype=torch.float32, device=x.device)
