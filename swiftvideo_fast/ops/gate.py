"""Gated residual and its tangent: swiftvideo_fast::gate, ::gate_jvp, ::gate_backward.

z = x + g y is differentiable in x, y and g.  tz is not: the losses stop the gradient there.
x, y (B, N, C); g (B, C), of any float dtype.  Outputs are contiguous, in x's dtype.
"""

import torch
from torch import Tensor

from swiftvideo_fast.dual import Dual, accepts_forward_ad, parts
from swiftvideo_fast.ops import check, cpu


@accepts_forward_ad
def gate(x: Tensor | Dual, y: Tensor | Dual, g: Tensor | Dual) -> Tensor | Dual:
    """Returns x + g y, (B, N, C); a Dual if any input is.  x, y (B, N, C) of one dtype; g (B, C) per clip."""
    (x, tx), (y, ty), (g, tg) = parts(x), parts(y), parts(g)
    if tx is None and ty is None and tg is None:
        return gate_op(x, y, g)
    return Dual(*gate_jvp(x, tx, y, ty, g, tg))


@torch.library.custom_op("swiftvideo_fast::gate", mutates_args=(), device_types="cpu")
def gate_op(x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    """Returns x + g y."""
    _check("gate", x, y, g)
    return cpu.gate(x, y, g)


@gate_op.register_kernel("cuda")
def _(x, y, g):
    from swiftvideo_kernels.gate import gate as launch

    _check("gate", x, y, g)
    return launch(x, y, g)


@gate_op.register_fake
def _(x, y, g):
    return x.new_empty(x.shape)


@torch.library.custom_op("swiftvideo_fast::gate_jvp", mutates_args=(), device_types="cpu")
def gate_jvp(x: Tensor, tx: Tensor | None, y: Tensor, ty: Tensor | None, g: Tensor,
             tg: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns (x + g y, tx + g ty + tg y).  A tangent of None is zero."""
    _check("gate_jvp", x, y, g, tx, ty, tg)
    return cpu.gate_jvp(x, tx, y, ty, g, tg)


@gate_jvp.register_kernel("cuda")
def _(x, tx, y, ty, g, tg):
    from swiftvideo_kernels.gate import gate_jvp as launch

    _check("gate_jvp", x, y, g, tx, ty, tg)
    return launch(x, tx, y, ty, g, tg)


@gate_jvp.register_fake
def _(x, tx, y, ty, g, tg):
    return x.new_empty(x.shape), x.new_empty(x.shape)


@torch.library.custom_op("swiftvideo_fast::gate_backward", mutates_args=(), device_types="cpu")
def gate_backward(dz: Tensor, y: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (dy, dg) from dz, the cotangent of z; dx is dz itself."""
    return cpu.gate_backward(dz, y, g)


@gate_backward.register_kernel("cuda")
def _(dz, y, g):
    from swiftvideo_kernels.gate import gate_backward as launch

    return launch(dz, y, g)


@gate_backward.register_fake
def _(dz, y, g):
    return y.new_empty(y.shape), g.new_empty(g.shape)


def _check(op: str, x: Tensor, y: Tensor, g: Tensor, tx: Tensor | None = None, ty: Tensor | None = None,
           tg: Tensor | None = None) -> None:
    check.ndim(op, "B, N, C", x=x)
    B, _, C = x.shape
    check.shape(op, "B, N, C", x.shape, tx=tx, y=y, ty=ty)
    check.shape(op, "B, C", (B, C), g=g, tg=tg)
    check.dtype(op, x.dtype, x=x, tx=tx, y=y, ty=ty)
    check.dtype(op, g.dtype, g=g)


def _save(ctx, inputs, output):
    _, y, g = inputs
    ctx.save_for_backward(y, g)


def _backward(ctx, dz):
    return dz, *gate_backward(dz, *ctx.saved_tensors)


def _save_jvp(ctx, inputs, output):
    _, _, y, _, g, _ = inputs
    ctx.save_for_backward(y, g)
    ctx.mark_non_differentiable(output[1])


def _backward_jvp(ctx, dz, _):
    dy, dg = gate_backward(dz, *ctx.saved_tensors)
    return dz, None, dy, None, dg, None


gate_op.register_autograd(_backward, setup_context=_save)
gate_jvp.register_autograd(_backward_jvp, setup_context=_save_jvp)
