"""CCD's distillation gradient g and its norm (eq. 8 of the SwiftVideo paper).

    g = v - F - r t dF,   then, per clip,   g / (||g|| + c),  g / (||g|| / sqrt D + c)  or  clamp(g, -1, 1)

Two launches read v, F, dF.  The first sums squares (and writes a clamped g); the second adds the sums in a
fixed order and writes g.  At bf16 they move 16 bytes per value; writing g and then dividing it would move 18.
The second starts with the last clip, still in L2.  A single launch would need a grid-wide barrier.
Arithmetic fp32, g fp32.  At most 1024 partial sums per clip.
Shapes: v F dF g (B, ...), D values a clip.  t size (B).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swiftvideo_kernels.storage import contiguous, partial_sums

BLOCK = 2048


@triton.jit
def _difference(v_ptr, f_ptr, df_ptr, rt, at, mask):
    """Returns g before normalisation, zero past the clip's end."""
    v = tl.load(v_ptr + at, mask, 0.0).to(tl.float32)
    f = tl.load(f_ptr + at, mask, 0.0).to(tl.float32)
    df = tl.load(df_ptr + at, mask, 0.0).to(tl.float32)
    return v - f - rt * df


@triton.jit
def _square_kernel(
    v_ptr, f_ptr, df_ptr,       # [B, D]
    t_ptr,                      # [B]
    g_ptr,                      # [B, D] fp32, the clamped g, or None
    square_ptr,                 # [B, programs] fp32
    r, D,
    BLOCK: tl.constexpr,
):
    part, parts, clip = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    rt = r * tl.load(t_ptr + clip).to(tl.float32)
    square = tl.zeros([BLOCK], tl.float32)
    for first in range(part * BLOCK, D, parts * BLOCK):
        col = first + tl.arange(0, BLOCK)
        at, mask = clip * D + col, col < D
        g = _difference(v_ptr, f_ptr, df_ptr, rt, at, mask)
        square += g * g
        if g_ptr is not None:
            tl.store(g_ptr + at, tl.minimum(tl.maximum(g, -1.0), 1.0), mask)
    tl.store(square_ptr + clip * parts + part, tl.sum(square, 0))


@triton.jit
def _divide_kernel(
    v_ptr, f_ptr, df_ptr,       # [B, D]
    t_ptr,                      # [B]
    g_ptr,                      # [B, D] fp32, or None: only the size
    square_ptr,                 # [B, parts] fp32
    size_ptr,                   # [B] fp32
    r, unit, c, D, parts,       # g / (unit ||g|| + c)
    PARTS: tl.constexpr, BLOCK: tl.constexpr,
):
    part, clip = tl.program_id(0), (tl.num_programs(1) - 1 - tl.program_id(1)).to(tl.int64)
    i = tl.arange(0, PARTS)
    size = tl.sqrt(tl.sum(tl.load(square_ptr + clip * parts + i, i < parts, 0.0), 0))
    if part == 0:
        tl.store(size_ptr + clip, size)
    if g_ptr is not None:
        rt = r * tl.load(t_ptr + clip).to(tl.float32)
        col = part * BLOCK + tl.arange(0, BLOCK)
        at, mask = clip * D + col, col < D
        tl.store(g_ptr + at, _difference(v_ptr, f_ptr, df_ptr, rt, at, mask) / (unit * size + c), mask)


def ccd_gradient(v: Tensor, F: Tensor, dF: Tensor, t: Tensor, r: float, norm: str,
                 c: float) -> tuple[Tensor, Tensor]:
    """Returns (g (B, ...), ||g|| before normalisation (B,)), float32."""
    (v, F, dF), t = contiguous("ccd_gradient", v, F, dF), t.contiguous()
    B, D, clamp = len(F), F.shape[1:].numel(), norm == "clip"
    g, square = torch.empty_like(F, dtype=torch.float32), partial_sums(F, BLOCK)
    size = torch.empty(B, dtype=torch.float32, device=F.device)
    parts = square.shape[1]
    _square_kernel[parts, B](v, F, dF, t, g if clamp else None, square, r, D, BLOCK=BLOCK)
    _divide_kernel[1 if clamp else triton.cdiv(D, BLOCK), B](
        v, F, dF, t, None if clamp else g, square, size, r, 1.0 if norm == "l2" else D ** -0.5, c, D, parts,
        PARTS=triton.next_power_of_2(parts), BLOCK=BLOCK)
    return g, size
