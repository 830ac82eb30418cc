"""Attention and its tangent: swiftvideo_fast::attention, ::attention_jvp, ::attention_backward.

o is differentiable in q, k, v by the flash backward, from the saved (o, lse).  The tangent to is not
differentiable: the losses stop the gradient there, so a second-order rule would have no caller.

Shapes are scaled_dot_product_attention's: q o (B, H, N, D), k v (B, G, M, D), G a divisor of H, any strides
with unit last stride.  o has the memory layout (B, N, H, D) of the next projection.
lse (B, H, N) is the natural log of the softmax's denominator, float32 (float64 for float64 inputs).
"""

import torch
from torch import Tensor

from swiftvideo_fast.dual import Dual, accepts_forward_ad, parts
from swiftvideo_fast.ops import check, cpu


@accepts_forward_ad
def attention(q: Tensor | Dual, k: Tensor | Dual, v: Tensor | Dual, *, scale: float | None = None,
              causal: bool = False) -> Tensor | Dual:
    """Returns softmax(scale q k') v, (B, H, N, D); a Dual if any input is.  Missing tangents cost nothing.

    q (B, H, N, D); k, v (B, G, M, D), G a divisor of H.  scale: 1 / sqrt D if None.
    causal: top-left aligned, as in sdpa.  Raises ValueError for mismatched shapes or dtypes.
    """
    (q, tq), (k, tk), (v, tv) = parts(q), parts(k), parts(v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if tq is None and tk is None and tv is None:
        return attention_op(q, k, v, scale, causal)[0]
    o, to, _ = attention_jvp(q, tq, k, tk, v, tv, scale, causal)
    return Dual(o, to)


@torch.library.custom_op("swiftvideo_fast::attention", mutates_args=(), device_types="cpu")
def attention_op(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Returns (o, lse)."""
    _check("attention", q, k, v)
    return cpu.attention(q, k, v, scale, causal)


@attention_op.register_kernel("cuda")
def _(q, k, v, scale, causal):
    from swiftvideo_kernels.attention import attention as launch

    _check("attention", q, k, v)
    return launch(q, k, v, scale, causal)


@attention_op.register_fake
def _(q, k, v, scale, causal):
    return _empty_o(q), _empty_lse(q)


@torch.library.custom_op("swiftvideo_fast::attention_jvp", mutates_args=(), device_types="cpu")
def attention_jvp(q: Tensor, tq: Tensor | None, k: Tensor, tk: Tensor | None, v: Tensor, tv: Tensor | None,
                  scale: float, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (o, to, lse).  A tangent of None is zero; its products are not computed."""
    _check("attention_jvp", q, k, v, tq, tk, tv)
    return cpu.attention_jvp(q, tq, k, tk, v, tv, scale, causal)


@attention_jvp.register_kernel("cuda")
def _(q, tq, k, tk, v, tv, scale, causal):
    from swiftvideo_kernels.attention_jvp import attention_jvp as launch

    _check("attention_jvp", q, k, v, tq, tk, tv)
    return launch(q, tq, k, tk, v, tv, scale, causal)


@attention_jvp.register_fake
def _(q, tq, k, tk, v, tv, scale, causal):
    return _empty_o(q), _empty_o(q), _empty_lse(q)


@torch.library.custom_op("swiftvideo_fast::attention_backward", mutates_args=(), device_types="cpu")
def attention_backward(do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float,
                       causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (dq, dk, dv) from do, the cotangent of o, and the saved (o, lse)."""
    if q.numel() == 0 or k.numel() == 0:                 # torch's kernel would divide by zero
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        do, q, k, v, o, lse, 0.0, causal, scale=scale)


@attention_backward.register_kernel("cuda")
def _(do, q, k, v, o, lse, scale, causal):
    from swiftvideo_kernels.attention import attention_backward as launch

    return launch(do, q, k, v, o, lse, scale, causal)


@attention_backward.register_fake
def _(do, q, k, v, o, lse, scale, causal):
    return _empty_o(q), _empty_o(k), _empty_o(v)


def _empty_o(q: Tensor) -> Tensor:
    B, H, N, D = q.shape
    return q.new_empty(B, N, H, D).transpose(1, 2)


def _empty_lse(q: Tensor) -> Tensor:
    return q.new_empty(q.shape[:3], dtype=check.compute_dtype(q.dtype))


def _check(op: str, q: Tensor, k: Tensor, v: Tensor, tq: Tensor | None = None, tk: Tensor | None = None,
           tv: Tensor | None = None) -> None:
    check.ndim(op, "B, H, N, D", q=q, k=k)
    (B, H, _, D), (G, M) = q.shape, k.shape[1:3]
    check.shape(op, "B, G, M, D", (B, G, M, D), k=k, v=v, tk=tk, tv=tv)
    check.shape(op, "B, H, N, D", q.shape, tq=tq)
    if G == 0 or H % G:
        raise ValueError(f"{op}: k has {G} heads; want a divisor of q's {H}")
    check.dtype(op, q.dtype, q=q, k=k, v=v, tq=tq, tk=tk, tv=tv)


def _save(ctx, inputs, output):
    q, k, v, scale, causal = inputs
    o, lse = output
    ctx.save_for_backward(q, k, v, o, lse)
    ctx.mark_non_differentiable(lse)
    ctx.constants = scale, causal


def _backward(ctx, do, _):
    return *attention_backward(do, *ctx.saved_tensors, *ctx.constants), None, None


def _save_jvp(ctx, inputs, output):
    q, _, k, _, v, _, scale, causal = inputs
    o, to, lse = output
    ctx.save_for_backward(q, k, v, o, lse)
    ctx.mark_non_differentiable(to, lse)
    ctx.constants = scale, causal


def _backward_jvp(ctx, do, *_):
    dq, dk, dv = attention_backward(do, *ctx.saved_tensors, *ctx.constants)
    return dq, None, dk, None, dv, None, None, None


attention_op.register_autograd(_backward, setup_context=_save)
attention_jvp.register_autograd(_backward_jvp, setup_context=_save_jvp)
