"""The CCD loss and its gradient (eq. 9 of the paper): swiftvideo_fast::ccd_loss.

    loss = sum_D (F_student - F - g)^2           dF_student = 2 (F_student - F - g) dloss
The forward keeps the residual, so the backward is one pass and touches nothing else.
Differentiable in F_student only; F and g are under the paper's stop-gradient.
"""

import torch
from torch import Tensor

from swiftvideo_fast.ops import check, cpu


def ccd_loss(F_student: Tensor, F: Tensor, g: Tensor) -> Tensor:
    """Squared distance of F_student to F + g, summed over each clip -> (B,), float32 (float64 for float64).

    F_student, F: (B, ...) of one dtype; g: the same shape, as `ccd_gradient` returns it.
    """
    return ccd_loss_op(F_student, F.detach(), g.detach())[0]


@torch.library.custom_op("swiftvideo_fast::ccd_loss", mutates_args=(), device_types="cpu")
def ccd_loss_op(F_student: Tensor, F: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, residual); the residual in F_student's dtype."""
    _check(F_student, F, g)
    return cpu.ccd_loss(F_student, F, g)


@ccd_loss_op.register_kernel("cuda")
def _(F_student, F, g):
    from swiftvideo_kernels.ccd_loss import ccd_loss as launch

    _check(F_student, F, g)
    return launch(F_student, F, g)


@ccd_loss_op.register_fake
def _(F_student, F, g):
    return F.new_empty(F.shape[:1], dtype=check.wide(F.dtype)), F.new_empty(F.shape)


def _check(F_student: Tensor, F: Tensor, g: Tensor) -> None:
    if F.dim() == 0:
        raise ValueError("ccd_loss: F is (); want (B, ...)")
    check.shaped("ccd_loss", "B, ...", F.shape, F_student=F_student, g=g)
    check.stored("ccd_loss", F.dtype, F_student=F_student, F=F)
    check.stored("ccd_loss", check.wide(F.dtype), g=g)


def _save(ctx, inputs, output):
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, dloss, _):
    residual, = ctx.saved_tensors
    return residual * (2 * dloss).view(-1, *[1] * (residual.dim() - 1)).to(residual.dtype), None, None


ccd_loss_op.register_autograd(_backward, setup_context=_save)
