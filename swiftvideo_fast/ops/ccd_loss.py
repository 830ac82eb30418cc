"""The CCD loss and its gradient (eq. 9 of the SwiftVideo paper): swiftvideo_fast::ccd_loss.

    loss = sum_D (F_student - F - g)^2           dF_student = 2 (F_student - F - g) dloss
The forward saves the residual; the backward reads nothing else, in one pass.
Differentiable in F_student only: F and g are under the paper's stop-gradient.
"""

import torch
from torch import Tensor

from swiftvideo_fast.ops import check, cpu


def ccd_loss(F_student: Tensor, F: Tensor, g: Tensor) -> Tensor:
    """Returns |F_student - F - g|^2 summed over each clip, (B,), float32 (float64 for float64 inputs).

    F_student, F: (B, ...) of one dtype; g: the same shape, float32, as `ccd_gradient` returns it.
    Raises ValueError for mismatched shapes or dtypes.
    """
    return ccd_loss_op(F_student, F.detach(), g.detach())[0]


@torch.library.custom_op("swiftvideo_fast::ccd_loss", mutates_args=(), device_types="cpu")
def ccd_loss_op(F_student: Tensor, F: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (loss, residual), the residual in F_student's dtype."""
    _check(F_student, F, g)
    return cpu.ccd_loss(F_student, F, g)


@ccd_loss_op.register_kernel("cuda")
def _(F_student, F, g):
    from swiftvideo_kernels.ccd_loss import ccd_loss as launch

    _check(F_student, F, g)
    return launch(F_student, F, g)


@ccd_loss_op.register_fake
def _(F_student, F, g):
    return F.new_empty(F.shape[:1], dtype=check.compute_dtype(F.dtype)), F.new_empty(F.shape)


def _check(F_student: Tensor, F: Tensor, g: Tensor) -> None:
    if F.dim() == 0:
        raise ValueError("ccd_loss: F is (); want (B, ...)")
    check.shape("ccd_loss", "B, ...", F.shape, F_student=F_student, g=g)
    check.dtype("ccd_loss", F.dtype, F_student=F_student, F=F)
    check.dtype("ccd_loss", check.compute_dtype(F.dtype), g=g)


def _save(ctx, inputs, output):
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, dloss, _):
    residual, = ctx.saved_tensors
    return residual * (2 * dloss).view(-1, *[1] * (residual.dim() - 1)).to(residual.dtype), None, None


ccd_loss_op.register_autograd(_backward, setup_context=_save)
