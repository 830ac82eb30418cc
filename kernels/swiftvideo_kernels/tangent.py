"""The distillation gradient g, its norm, and the loss built on it (eq. 8 and 9 of the paper).

    g = v - F - r t dF,   then, per clip,   g / (||g|| + c),  g / (||g|| / sqrt D + c)  or  clamp(g, -1, 1)
    residual = F_student - F - g            loss = Σ_D residual²

`tangent` reads v, F, dF and writes g once; a second pass over g divides it (6 MB at 480p: from L2).
`ccd_loss` reads F_student, F, g and writes the residual, which is all that its backward needs.
Arithmetic fp32, g fp32.  Sums go through at most 1024 partial sums a clip, added in a fixed order.
Shapes: v F dF F_student g (B, ...), D values a clip.  t size loss (B).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swiftvideo_kernels.storage import contiguous

BLOCK = 2048


@triton.jit
def _tangent_kernel(
    v_ptr, f_ptr, df_ptr,       # [B, D]
    t_ptr,                      # [B]
    g_ptr,                      # [B, D] fp32
    square_ptr,                 # [B, programs] fp32
    r, D,
    CLIP: tl.constexpr, BLOCK: tl.constexpr,
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
        if CLIP:
            g = tl.minimum(tl.maximum(g, -1.0), 1.0)
        tl.store(g_ptr + at, g, mask)
    tl.store(square_ptr + clip * parts + part, tl.sum(square, 0))


@triton.jit
def _ccd_loss_kernel(
    student_ptr, f_ptr, g_ptr,  # [B, D]
    residual_ptr,               # [B, D]
    square_ptr,                 # [B, programs] fp32
    D,
    BLOCK: tl.constexpr,
):
    part, parts, clip = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    square = tl.zeros([BLOCK], tl.float32)
    for first in range(part * BLOCK, D, parts * BLOCK):
        col = first + tl.arange(0, BLOCK)
        at, mask = clip * D + col, col < D
        student = tl.load(student_ptr + at, mask, 0.0).to(tl.float32)
        f = tl.load(f_ptr + at, mask, 0.0).to(tl.float32)
        residual = student - f - tl.load(g_ptr + at, mask, 0.0).to(tl.float32)
        square += residual * residual
        tl.store(residual_ptr + at, residual, mask)
    tl.store(square_ptr + clip * parts + part, tl.sum(square, 0))


def tangent(v: Tensor, F: Tensor, dF: Tensor, t: Tensor, r: float, norm: str,
            c: float) -> tuple[Tensor, Tensor]:
    """(g, ||g|| before normalisation), float32."""
    v, F, dF = contiguous("tangent", v, F, dF)
    g, square, D = *_outputs(F, torch.float32), F.shape[1:].numel()
    _tangent_kernel[square.shape[::-1]](
        v, F, dF, t.contiguous(), g, square, r, D, CLIP=norm == "clip", BLOCK=BLOCK)
    size = square.sum(1).sqrt()
    if norm != "clip":
        width = size if norm == "l2" else size / D ** 0.5
        g.div_((width + c).view(-1, *[1] * (g.dim() - 1)))
    return g, size


def ccd_loss(F_student: Tensor, F: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, residual): float32, and F_student's dtype."""
    F_student, F, g = contiguous("ccd_loss", F_student, F, g)
    residual, square = _outputs(F, F.dtype)
    _ccd_loss_kernel[square.shape[::-1]](F_student, F, g, residual, square, F.shape[1:].numel(), BLOCK=BLOCK)
    return square.sum(1), residual


def _outputs(F: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Something shaped like F, and the partial sums of each clip."""
    parts = min(1024, triton.cdiv(F.shape[1:].numel(), BLOCK))
    return torch.empty_like(F, dtype=dtype), torch.empty(len(F), parts, dtype=torch.float32, device=F.device)
