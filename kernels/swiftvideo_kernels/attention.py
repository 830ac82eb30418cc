"""Primal attention by the fastest forward installed, and its backward from the saved (o, lse).

    flash-attn 3    Hopper, where `flash_attn_interface` is installed
    flash-attn 2    elsewhere, where `flash_attn` is installed
    aten flash      the copy of flash-attn 2 inside torch
    aten efficient  float32, and causal with N != M, where the flash kernels align the mask bottom-right

Each way is a pair (forward, backward).  lse is the natural log of the softmax's denominator in all four, so
the backward accepts the (o, lse) of attention_jvp.py as well as its own. Shapes: q o dq (B, H, N, D)   k v
dk dv (B, G, M, D)   lse (B, H, N) fp32.  Outputs lie in memory as (B, N, H, D).
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

aten = torch.ops.aten


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """(o, lse)."""
    forward, _ = _way(q, k, causal)
    o, lse = forward(q, k, v, scale, causal)
    return _token_major(o), lse


def attention_backward(do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float,
                       causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) from the cotangent of o."""
    _, backward = _way(q, k, causal)
    do = do if do.stride(3) == 1 else do.contiguous()           # of a sum it is one number, expanded
    return tuple(_token_major(dx) for dx in backward(do, q, k, v, o, lse, scale, causal))


def _way(q: Tensor, k: Tensor, causal: bool) -> tuple[Callable, Callable]:
    if q.dtype == torch.float64:
        raise ValueError("attention: float64 on a GPU; want float32, bfloat16 or float16")
    if q.dtype == torch.float32 or causal and q.shape[2] != k.shape[2]:
        return _efficient, _efficient_backward
    if _installed("flash_attn_interface") and torch.cuda.get_device_capability(q.device)[0] == 9:
        return _flash_3, _flash_3_backward
    if _installed("flash_attn"):
        return _flash_2, _flash_2_backward
    return _flash, _flash_backward


@cache
def _installed(module: str) -> bool:
    return find_spec(module) is not None


def _token_major(x: Tensor) -> Tensor:
    """(B, H, N, D) lying in memory as (B, N, H, D); a copy only where it does not already."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _flash_3(q, k, v, scale, causal):
    from flash_attn_interface import _flash_attn_forward

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o, lse, *_ = _flash_attn_forward(q, k, v, softmax_scale=scale, causal=causal)
    return o.transpose(1, 2), lse


def _flash_3_backward(do, q, k, v, o, lse, scale, causal):
    from flash_attn_interface import _flash_attn_backward

    do, q, k, v, o = (x.transpose(1, 2) for x in (do, q, k, v, o))
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    _flash_attn_backward(do, q, k, v, o, lse, dq=dq, dk=dk, dv=dv, softmax_scale=scale, is_causal=causal)
    return tuple(x.transpose(1, 2) for x in (dq, dk, dv))


def _flash_2(q, k, v, scale, causal):
    from flash_attn.flash_attn_interface import _flash_attn_forward

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o, lse, *_ = _flash_attn_forward(q, k, v, dropout_p=0.0, softmax_scale=scale, causal=causal,
                                     window_size_left=-1, window_size_right=-1, softcap=0.0,
                                     alibi_slopes=None, return_softmax=False)
    return o.transpose(1, 2), lse


def _flash_2_backward(do, q, k, v, o, lse, scale, causal):
    from flash_attn.flash_attn_interface import _flash_attn_backward

    do, q, k, v, o = (x.transpose(1, 2) for x in (do, q, k, v, o))
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    _flash_attn_backward(do, q, k, v, o, lse, dq, dk, dv, dropout_p=0.0, softmax_scale=scale, causal=causal,
                         window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None,
                         deterministic=False, rng_state=None)
    return tuple(x.transpose(1, 2) for x in (dq, dk, dv))


def _flash(q, k, v, scale, causal):
    o, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)
    return o, lse


def _flash_backward(do, q, k, v, o, lse, scale, causal):
    no_dropout = torch.empty(2, dtype=torch.uint64, device=q.device)
    return aten._scaled_dot_product_flash_attention_backward(
        do, q, k, v, o, lse, None, None, q.shape[2], k.shape[2], 0.0, causal, no_dropout, no_dropout,
        scale=scale)


def _efficient(q, k, v, scale, causal):
    share = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(share, 1) for x in (k, v))
    o, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal, scale=scale)
    return o, lse[..., :q.shape[2]].contiguous()


def _efficient_backward(do, q, k, v, o, lse, scale, causal):
    (B, G, M, D), share = k.shape, q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(share, 1) for x in (k, v))
    lse = torch.nn.functional.pad(lse, (0, -lse.shape[2] % 32), value=torch.inf)       # its rows come by 32
    no_dropout = torch.zeros((), dtype=torch.int64)
    wanted = [True, True, True, False]
    dq, dk, dv, _ = aten._scaled_dot_product_efficient_attention_backward(
        do, q, k, v, None, o, lse, no_dropout, no_dropout, 0.0, wanted, causal, scale=scale)
    return dq, *(dx.view(B, G, share, M, D).sum(2) for dx in (dk, dv))
