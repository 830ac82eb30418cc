"""Modulated LayerNorm and its tangent: swiftvideo_fast::modulate, ::modulate_jvp, ::modulate_backward.

y is differentiable in x, s and b.  ty is not: the losses stop the gradient there.
x (B, N, C); s, b (B, C), of one float dtype.  Outputs are contiguous, in x's dtype.
"""

import torch
from torch import Tensor

from swiftvideo_fast.dual import Dual, accepts_forward_ad, parts
from swiftvideo_fast.ops import check, cpu


@accepts_forward_ad
def modulate(x: Tensor | Dual, s: Tensor | Dual, b: Tensor | Dual, eps: float = 1e-6) -> Tensor | Dual:
    """Returns layer_norm(x) (1 + s) + b, (B, N, C), over channels; a Dual if any input is.

    x (B, N, C); s, b (B, C): scale and shift per clip.  Raises ValueError for mismatched shapes or dtypes.
    """
    (x, tx), (s, ts), (b, tb) = parts(x), parts(s), parts(b)
    if tx is None and ts is None and tb is None:
        return modulate_op(x, s, b, eps)
    return Dual(*modulate_jvp(x, tx, s, ts, b, tb, eps))


@torch.library.custom_op("swiftvideo_fast::modulate", mutates_args=(), device_types="cpu")
def modulate_op(x: Tensor, s: Tensor, b: Tensor, eps: float) -> Tensor:
    """Returns layer_norm(x) (1 + s) + b."""
    _check("modulate", x, s, b)
    return cpu.modulate(x, s, b, eps)


@modulate_op.register_kernel("cuda")
def _(x, s, b, eps):
    from swiftvideo_kernels.modulate import modulate as launch

    _check("modulate", x, s, b)
    return launch(x, s, b, eps)


@modulate_op.register_fake
def _(x, s, b, eps):
    return x.new_empty(x.shape)


@torch.library.custom_op("swiftvideo_fast::modulate_jvp", mutates_args=(), device_types="cpu")
def modulate_jvp(x: Tensor, tx: Tensor | None, s: Tensor, ts: Tensor | None, b: Tensor, tb: Tensor | None,
                 eps: float) -> tuple[Tensor, Tensor]:
    """Returns (modulate(x, s, b), its tangent).  A tangent of None is zero."""
    _check("modulate_jvp", x, s, b, tx, ts, tb)
    return cpu.modulate_jvp(x, tx, s, ts, b, tb, eps)


@modulate_jvp.register_kernel("cuda")
def _(x, tx, s, ts, b, tb, eps):
    from swiftvideo_kernels.modulate import modulate_jvp as launch

    _check("modulate_jvp", x, s, b, tx, ts, tb)
    return launch(x, tx, s, ts, b, tb, eps)


@modulate_jvp.register_fake
def _(x, tx, s, ts, b, tb, eps):
    return x.new_empty(x.shape), x.new_empty(x.shape)


@torch.library.custom_op("swiftvideo_fast::modulate_backward", mutates_args=(), device_types="cpu")
def modulate_backward(dy: Tensor, x: Tensor, s: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (dx, ds, db), the last two in s's dtype.  LayerNorm's Jacobian is symmetric: dx = J dn."""
    return cpu.modulate_backward(dy, x, s, eps)


@modulate_backward.register_kernel("cuda")
def _(dy, x, s, eps):
    from swiftvideo_kernels.modulate import modulate_backward as launch

    return launch(dy, x, s, eps)


@modulate_backward.register_fake
def _(dy, x, s, eps):
    return x.new_empty(x.shape), s.new_empty(s.shape), s.new_empty(s.shape)


def _check(op: str, x: Tensor, s: Tensor, b: Tensor, tx: Tensor | None = None, ts: Tensor | None = None,
           tb: Tensor | None = None) -> None:
    check.ndim(op, "B, N, C", x=x)
    B, _, C = x.shape
    check.shape(op, "B, N, C", x.shape, tx=tx)
    check.shape(op, "B, C", (B, C), s=s, ts=ts, b=b, tb=tb)
    check.dtype(op, x.dtype, x=x, tx=tx)
    check.dtype(op, s.dtype, s=s, b=b)


def _save(ctx, inputs, output):
    x, s, _, eps = inputs
    ctx.save_for_backward(x, s)
    ctx.eps = eps


def _backward(ctx, dy):
    return *modulate_backward(dy, *ctx.saved_tensors, ctx.eps), None


def _save_jvp(ctx, inputs, output):
    x, _, s, _, _, _, eps = inputs
    ctx.save_for_backward(x, s)
    ctx.mark_non_differentiable(output[1])
    ctx.eps = eps


def _backward_jvp(ctx, dy, _):
    dx, ds, db = modulate_backward(dy, *ctx.saved_tensors, ctx.eps)
    return dx, None, ds, None, db, None, None


modulate_op.register_autograd(_backward, setup_context=_save)
modulate_jvp.register_autograd(_backward_jvp, setup_context=_save_jvp)
