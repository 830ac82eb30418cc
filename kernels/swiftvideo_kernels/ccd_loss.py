"""The CCD loss and its residual (eq. 9 of the SwiftVideo paper).

    residual = F_student - F - g            loss = Σ_D residual²

Traffic: reads F_student, F, g; writes the residual, the only input of the backward.
Arithmetic fp32.  At most 1024 partial sums per clip, added in a fixed order.
Shapes: F_student F g residual (B, ...), D values a clip.  loss (B).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swiftvideo_kernels.storage import contiguous, partial_sums

BLOCK = 2048


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


def ccd_loss(F_student: Tensor, F: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (loss (B,) float32, residual in F_student's dtype)."""
    F_student, F, g = contiguous("ccd_loss", F_student, F, g)
    residual, square = torch.empty_like(F), partial_sums(F, BLOCK)
    _ccd_loss_kernel[square.shape[::-1]](F_student, F, g, residual, square, F.shape[1:].numel(), BLOCK=BLOCK)
    return square.sum(1), residual
