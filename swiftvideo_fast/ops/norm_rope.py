"""RMSNorm, rotary embedding and their tangent: swiftvideo_fast::norm_rope, ::norm_rope_jvp, ::..._backward.

y is differentiable in x and w.  ty is not: the losses stop the gradient there.
x (B, N, C); w (C); cos, sin (N, D / 2), D the head width, C a multiple of D; None: no rotation.
Pairs are interleaved: channels 2i and 2i + 1 of each head.  Outputs are contiguous, in x's dtype.
"""

import torch
from torch import Tensor

from swiftvideo_fast.dual import Dual, accepts_forward_ad, parts
from swiftvideo_fast.ops import check, cpu


@accepts_forward_ad
def norm_rope(x: Tensor | Dual, w: Tensor, cos: Tensor | None, sin: Tensor | None,
              eps: float = 1e-6) -> Tensor | Dual:
    """Returns rope(x / rms(x) w), (B, N, C): RMS over all C channels, rotation per head; a Dual if x is.

    x (B, N, C); w (C); cos, sin (N, D / 2) or None.  Raises ValueError for mismatched shapes or dtypes.
    """
    x, tx = parts(x)
    if tx is None:
        return norm_rope_op(x, w, cos, sin, eps)
    return Dual(*norm_rope_jvp(x, tx, w, cos, sin, eps))


@torch.library.custom_op("swiftvideo_fast::norm_rope", mutates_args=(), device_types="cpu")
def norm_rope_op(x: Tensor, w: Tensor, cos: Tensor | None, sin: Tensor | None, eps: float) -> Tensor:
    """Returns rope(rms_norm(x) w)."""
    _check("norm_rope", x, w, cos, sin)
    return cpu.norm_rope(x, w, cos, sin, eps)


@norm_rope_op.register_kernel("cuda")
def _(x, w, cos, sin, eps):
    from swiftvideo_kernels.norm_rope import norm_rope as launch

    _check("norm_rope", x, w, cos, sin)
    return launch(x, w, cos, sin, eps)


@norm_rope_op.register_fake
def _(x, w, cos, sin, eps):
    return x.new_empty(x.shape)


@torch.library.custom_op("swiftvideo_fast::norm_rope_jvp", mutates_args=(), device_types="cpu")
def norm_rope_jvp(x: Tensor, tx: Tensor, w: Tensor, cos: Tensor | None, sin: Tensor | None,
                  eps: float) -> tuple[Tensor, Tensor]:
    """Returns (norm_rope(x, w, cos, sin), its tangent along tx)."""
    _check("norm_rope_jvp", x, w, cos, sin, tx)
    return cpu.norm_rope_jvp(x, tx, w, cos, sin, eps)


@norm_rope_jvp.register_kernel("cuda")
def _(x, tx, w, cos, sin, eps):
    from swiftvideo_kernels.norm_rope import norm_rope_jvp as launch

    _check("norm_rope_jvp", x, w, cos, sin, tx)
    return launch(x, tx, w, cos, sin, eps)


@norm_rope_jvp.register_fake
def _(x, tx, w, cos, sin, eps):
    return x.new_empty(x.shape), x.new_empty(x.shape)


@torch.library.custom_op("swiftvideo_fast::norm_rope_backward", mutates_args=(), device_types="cpu")
def norm_rope_backward(dy: Tensor, x: Tensor, w: Tensor, cos: Tensor | None, sin: Tensor | None,
                       eps: float) -> tuple[Tensor, Tensor]:
    """Returns (dx, dw): dy is rotated back, then w dy multiplied by RMSNorm's symmetric Jacobian."""
    return cpu.norm_rope_backward(dy, x, w, cos, sin, eps)


@norm_rope_backward.register_kernel("cuda")
def _(dy, x, w, cos, sin, eps):
    from swiftvideo_kernels.norm_rope import norm_rope_backward as launch

    return launch(dy, x, w, cos, sin, eps)


@norm_rope_backward.register_fake
def _(dy, x, w, cos, sin, eps):
    return x.new_empty(x.shape), w.new_empty(w.shape)


def _check(op: str, x: Tensor, w: Tensor, cos: Tensor | None, sin: Tensor | None,
           tx: Tensor | None = None) -> None:
    check.ndim(op, "B, N, C", x=x)
    _, N, C = x.shape
    check.shape(op, "B, N, C", x.shape, tx=tx)
    check.shape(op, "C", (C,), w=w)
    check.dtype(op, x.dtype, x=x, tx=tx)
    check.dtype(op, w.dtype, w=w)
    if (cos is None) != (sin is None):
        raise ValueError(f"{op}: {'cos' if cos is None else 'sin'} is None; want both or neither")
    if cos is not None:
        check.ndim(op, "N, D / 2", cos=cos)
        check.shape(op, "N, D / 2", (N, cos.shape[1]), cos=cos, sin=sin)
        if cos.shape[1] == 0 or C % (2 * cos.shape[1]):
            raise ValueError(f"{op}: cos is {tuple(cos.shape)}; want (N, D / 2) with D a divisor of {C}")


def _save(ctx, inputs, output):
    x, w, cos, sin, eps = inputs
    ctx.save_for_backward(x, w, cos, sin)
    ctx.eps = eps


def _backward(ctx, dy):
    return *norm_rope_backward(dy, *ctx.saved_tensors, ctx.eps), None, None, None


def _save_jvp(ctx, inputs, output):
    x, _, w, cos, sin, eps = inputs
    ctx.save_for_backward(x, w, cos, sin)
    ctx.mark_non_differentiable(output[1])
    ctx.eps = eps


def _backward_jvp(ctx, dy, _):
    dx, dw = norm_rope_backward(dy, *ctx.saved_tensors, ctx.eps)
    return dx, None, dw, None, None, None


norm_rope_op.register_autograd(_backward, setup_context=_save)
norm_rope_jvp.register_autograd(_backward_jvp, setup_context=_save_jvp)
