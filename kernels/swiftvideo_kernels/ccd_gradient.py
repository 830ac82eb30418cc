"""The distillation gradient g of CCD and its norm (eq. 8 of the paper).

    g = v - F - r t dF,   then, per clip,   g / (||g|| + c),  g / (||g|| / sqrt D + c)  or  clamp(g, -1, 1)

Two launches: the first writes g and partial sums of its square, the second adds these up in a fixed order and
divides g in place (6 MB a clip at 480p, from L2).  One launch would need a barrier of the whole grid.
Arithmetic fp32, g fp32.  At most 1024 partial sums a clip.
Shapes: v F dF g (B, ...), D values a clip.  t size (B).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swiftvideo_kernels.storage import contiguous, partial_sums

BLOCK = 2048


@triton.jit
def _ccd_gradient_kernel(
    v_ptr, f_ptr, df_ptr,       # [B, D]
    t_ptr,                      # [B]
    g_ptr,                      # [B, D] fp32
    square_ptr,                 # [B, programs] fp32
    r, D,
    CLAMP: tl.constexpr, BLOCK: tl.constexpr,
):
    part, parts, clip = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    rt = r * tl.load(t_ptr + clip).to(tl.float32)
    square = tl.zeros([BLOCK], tl.float32)
    for first in range(part * BLOCK, D, parts * BLOCK):
        col = first + tl.arange(0, BLOCK)
        at, mask = clip * D + col, col < D
        v = tl.load(v_ptr + at, mask, 0.0).to(tl.float32)
        f = tl.load(f_ptr + at, mask, 0.0).to(tl.float32)
        df = tl.load(df_ptr + at, mask, 0.0).to(tl.float32)
        g = v - f - rt * df
        square += g * g
        if CLAMP:
            g = tl.minimum(tl.maximum(g, -1.0), 1.0)
        tl.store(g_ptr + at, g, mask)
    tl.store(square_ptr + clip * parts + part, tl.sum(square, 0))


@triton.jit
def _divide_kernel(
    g_ptr,                      # [B, D] fp32, in place
    square_ptr,                 # [B, parts] fp32
    size_ptr,                   # [B] fp32
    unit, c, D, parts,          # g / (unit ||g|| + c)
    CLAMP: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):
    part, clip = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i = tl.arange(0, PARTS)
    size = tl.sqrt(tl.sum(tl.load(square_ptr + clip * parts + i, i < parts, 0.0), 0))
    if part == 0:
        tl.store(size_ptr + clip, size)
    if not CLAMP:
        col = part * BLOCK + tl.arange(0, BLOCK)
        at, mask = clip * D + col, col < D
        tl.store(g_ptr + at, tl.load(g_ptr + at, mask, 0.0) / (unit * size + c), mask)


def ccd_gradient(v: Tensor, F: Tensor, dF: Tensor, t: Tensor, r: float, norm: str,
                 c: float) -> tuple[Tensor, Tensor]:
    """(g, ||g|| before normalisation), float32."""
    v, F, dF = contiguous("ccd_gradient", v, F, dF)
    B, D, clamp = len(F), F.shape[1:].numel(), norm == "clip"
    g, square = torch.empty_like(F, dtype=torch.float32), partial_sums(F, BLOCK)
    size = torch.empty(B, dtype=torch.float32, device=F.device)
    parts = square.shape[1]
    _ccd_gradient_kernel[parts, B](v, F, dF, t.contiguous(), g, square, r, D, CLAMP=clamp, BLOCK=BLOCK)
    _divide_kernel[1 if clamp else triton.cdiv(D, BLOCK), B](
        g, square, size, 1.0 if norm == "l2" else D ** -0.5, c, D, parts, CLAMP=clamp,
        PARTS=triton.next_power_of_2(parts), BLOCK=BLOCK)
    return g, size
