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


def whole_rows(C: int, channels: int) -> dict[str, int]:
    """The tile of a kernel that sums over whole rows of C channels, a warp for about so many of them.

    A row is two parts, as a block has a power of two of lanes: BLOCK_A, the largest in C, and BLOCK_B for the
    rest (0: none): 1024 + 512, 4096 + 1024.  One block of 8192 would idle 38 % of its lanes at 5120.
    """
    block_a = triton.next_power_of_2(C + 1) // 2
    block_b = triton.next_power_of_2(C - block_a) if block_a < C else 0
    warps = min(32, triton.next_power_of_2(triton.cdiv(C, channels)))
    rows = max(1, min(8, 1024 // triton.next_power_of_2(C)))
    return {"C": C, "ROWS": rows, "BLOCK_A": block_a, "BLOCK_B": block_b, "num_warps": warps}


@triton.jit
def columns(first: tl.constexpr, row, N, C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Columns first .. first + BLOCK of some rows: (column, mask), [ROWS, BLOCK]; None for an empty part.

    A mask is of what there is; with one row a program, rows need none.
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
    """One part of rows, fp32, zero past their end; None for an empty part.  ptr: of the rows, [ROWS, 1]."""
    x = None
    if col is not None:
        x = tl.load(ptr + col, mask, 0.0).to(tl.float32)
    return x


@triton.jit
def row_sum(a, b):
    """[ROWS, 1]: the sum of each row's two parts."""
    total = tl.sum(a, 1)
    if b is not None:
        total += tl.sum(b, 1)
    return total[:, None]


@triton.jit
def row_dot(a, b, other_a, other_b):
    """[ROWS, 1]: the product of each row with another's, summed."""
    total = tl.sum(a * other_a, 1)
    if b is not None:
        total += tl.sum(b * other_b, 1)
    return total[:, None]


def part_rows(C: int) -> dict[str, int]:
    """The tile of a kernel that may cut a row: about 4096 values, 16 a thread."""
    block_c = min(512, triton.next_power_of_2(C))
    return {"ROWS": 8, "BLOCK_C": block_c, "num_warps": max(1, block_c // 64)}


def partial_sums(x: Tensor, block: int) -> Tensor:
    """[B, parts] fp32, uninitialised: a sum for each program of a kernel that reads a clip in blocks."""
    parts = min(1024, triton.cdiv(x.shape[1:].numel(), block))
    return torch.empty(len(x), parts, dtype=torch.float32, device=x.device)
