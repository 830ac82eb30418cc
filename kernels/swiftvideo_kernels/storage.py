"""Input preparation and row tiling of the elementwise kernels."""

import torch
import triton
import triton.language as tl
from torch import Tensor


def contiguous(op: str, *tensors: Tensor | None) -> list[Tensor | None]:
    """Returns contiguous tensors, copied if needed.  ValueError for float64, which only the CPU supports."""
    for x in tensors:
        if x is not None and x.dtype == torch.float64:
            raise ValueError(f"{op}: float64 on {x.device}; want float32, bfloat16 or float16")
    return [x if x is None else x.contiguous() for x in tensors]


def row_tile(C: int, channels: int) -> dict[str, int]:
    """Returns the tile of a kernel that reduces whole rows of C channels; channels: per warp, about.

    Blocks are powers of two, so a row is two parts: BLOCK_A, the largest in C, and BLOCK_B for the rest (0:
    none): 1024 + 512, 4096 + 1024.  One block of 8192 would idle 38 % of its lanes at 5120.
    """
    block_a = triton.next_power_of_2(C + 1) // 2
    block_b = triton.next_power_of_2(C - block_a) if block_a < C else 0
    warps = min(32, triton.next_power_of_2(triton.cdiv(C, channels)))
    rows = max(1, min(8, 1024 // triton.next_power_of_2(C)))
    return {"C": C, "ROWS": rows, "BLOCK_A": block_a, "BLOCK_B": block_b, "num_warps": warps}


@triton.jit
def columns(first: tl.constexpr, row, N, C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Returns (column, mask), [ROWS, BLOCK], of columns first .. first + BLOCK; None for an empty part.

    With one row per program, the mask covers columns only.
    """
    col = None
    mask = None
    if BLOCK > 0:
        col = tl.broadcast_to((first + tl.arange(0, BLOCK))[None, :], (ROWS, BLOCK))
        mask = col < C
        if ROWS > 1:
            mask = mask & (row < N)[:, None]
    return col, mask


@triton.jit
def part(ptr, col, mask):
    """Loads one row part, fp32, zero past the end; None for an empty part.  ptr: the rows, [ROWS, 1]."""
    x = None
    if col is not None:
        x = tl.load(ptr + col, mask, 0.0).to(tl.float32)
    return x


@triton.jit
def row_sum(a, b):
    """Returns the sum of each row over its two parts, [ROWS, 1]."""
    total = tl.sum(a, 1)
    if b is not None:
        total += tl.sum(b, 1)
    return total[:, None]


@triton.jit
def row_dot(a, b, other_a, other_b):
    """Returns the dot product of each row with another, [ROWS, 1]."""
    total = tl.sum(a * other_a, 1)
    if b is not None:
        total += tl.sum(b * other_b, 1)
    return total[:, None]


def block_tile(C: int) -> dict[str, int]:
    """Returns the tile of a kernel that may split rows: about 4096 values, 16 per thread."""
    block_c = min(512, triton.next_power_of_2(C))
    return {"ROWS": 8, "BLOCK_C": block_c, "num_warps": max(1, block_c // 64)}


def partial_sums(x: Tensor, block: int) -> Tensor:
    """Returns uninitialised fp32 [B, parts]: one partial sum per program, for a clip read in blocks."""
    parts = min(1024, triton.cdiv(x.shape[1:].numel(), block))
    return torch.empty(len(x), parts, dtype=torch.float32, device=x.device)
