"""Attention backends, forward and backward, with one signature, layout and definition of lse.

forward(q, k, v, scale, causal) -> (o, lse);  backward(do, q, k, v, o, lse, scale, causal, deterministic) ->
(dq, dk, dv).  q o dq (B, H, N, D), k v dk dv (B, G, M, D).  lse (B, H, N), fp32, is the natural log of the
softmax's denominator, so every backward accepts (o, lse) of every forward and of attention_jvp.py.

flash-attn 2, 3 and 4 use (B, N, H, D).  Libraries are imported when called.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor

aten = torch.ops.aten


def installed(name: str) -> bool:
    """True if the backend's library is installed."""
    module = {"flash-attn 4": "flash_attn.cute", "flash-attn 3": "flash_attn_interface",
              "flash-attn 2": "flash_attn"}.get(name)
    try:
        return module is None or find_spec(module) is not None
    except ModuleNotFoundError:                                     # the parent package is missing
        return False


def cudnn(q, k, v, scale, causal):
    o, lse, *_ = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal, scale=scale)
    return o, lse.reshape(q.shape[:3])


def cudnn_backward(do, q, k, v, o, lse, scale, causal, deterministic):
    no_dropout = torch.empty((), dtype=torch.int64, device=q.device)
    return aten._scaled_dot_product_cudnn_attention_backward(
        do, q, k, v, o, lse.unsqueeze(3), no_dropout, no_dropout, None, None, None, q.shape[2], k.shape[2],
        0.0, causal, scale=scale)


def flash_4(q, k, v, scale, causal):
    from flash_attn.cute.interface import _flash_attn_fwd

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o, lse, *_ = _flash_attn_fwd(q, k, v, softmax_scale=scale, causal=causal, return_lse=True)
    return o.transpose(1, 2), lse


def flash_4_backward(do, q, k, v, o, lse, scale, causal, deterministic):
    from flash_attn.cute.interface import _flash_attn_bwd

    do, q, k, v, o = (x.transpose(1, 2) for x in (do, q, k, v, o))
    grads = _flash_attn_bwd(q, k, v, o, do, lse, softmax_scale=scale, causal=causal,
                            deterministic=deterministic)
    return tuple(x.transpose(1, 2) for x in grads[:3])


def flash_3(q, k, v, scale, causal):
    from flash_attn_interface import _flash_attn_forward

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o, lse, *_ = _flash_attn_forward(q, k, v, softmax_scale=scale, causal=causal)
    return o.transpose(1, 2), lse


def flash_3_backward(do, q, k, v, o, lse, scale, causal, deterministic):
    from flash_attn_interface import _flash_attn_backward

    do, q, k, v, o = (x.transpose(1, 2) for x in (do, q, k, v, o))
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    _flash_attn_backward(do, q, k, v, o, lse, dq=dq, dk=dk, dv=dv, softmax_scale=scale, is_causal=causal,
                         deterministic=deterministic)
    return tuple(x.transpose(1, 2) for x in (dq, dk, dv))


def flash_2(q, k, v, scale, causal):
    from flash_attn.flash_attn_interface import _flash_attn_forward

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o, lse, *_ = _flash_attn_forward(q, k, v, dropout_p=0.0, softmax_scale=scale, causal=causal,
                                     window_size_left=-1, window_size_right=-1, softcap=0.0,
                                     alibi_slopes=None, return_softmax=False)
    return o.transpose(1, 2), lse


def flash_2_backward(do, q, k, v, o, lse, scale, causal, deterministic):
    from flash_attn.flash_attn_interface import _flash_attn_backward

    do, q, k, v, o = (x.transpose(1, 2) for x in (do, q, k, v, o))
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    _flash_attn_backward(do, q, k, v, o, lse, dq, dk, dv, dropout_p=0.0, softmax_scale=scale, causal=causal,
                         window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None,
                         deterministic=deterministic, rng_state=None)
    return tuple(x.transpose(1, 2) for x in (dq, dk, dv))


def torch_flash(q, k, v, scale, causal):
    o, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)
    return o, lse


def torch_flash_backward(do, q, k, v, o, lse, scale, causal, deterministic):
    no_dropout = torch.empty(2, dtype=torch.uint64, device=q.device)
    with deterministic_algorithms(deterministic):
        return aten._scaled_dot_product_flash_attention_backward(
            do, q, k, v, o, lse, None, None, q.shape[2], k.shape[2], 0.0, causal, no_dropout, no_dropout,
            scale=scale)


@contextmanager
def deterministic_algorithms(on: bool) -> Generator[None]:
    """Context with torch.use_deterministic_algorithms(on).  torch's flash backward has no argument for it and
    ignores warn_only=True (attention_backward.cu)."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def torch_efficient(q, k, v, scale, causal):
    share = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(share, 1) for x in (k, v))
    o, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal, scale=scale)
    return o, lse[..., :q.shape[2]].contiguous()


def torch_efficient_backward(do, q, k, v, o, lse, scale, causal, deterministic):
    (B, G, M, D), share = k.shape, q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(share, 1) for x in (k, v))
    lse = torch.nn.functional.pad(lse, (0, -lse.shape[2] % 32), value=torch.inf)       # rows are padded to 32
    no_dropout = torch.zeros((), dtype=torch.int64)
    wanted = [True, True, True, False]
    dq, dk, dv, _ = aten._scaled_dot_product_efficient_attention_backward(
        do, q, k, v, None, o, lse, no_dropout, no_dropout, 0.0, wanted, causal, scale=scale)
    return dq, *(dx.view(B, G, share, M, D).sum(2) for dx in (dk, dv))


Forward, Backward = Callable[..., tuple[Tensor, Tensor]], Callable[..., tuple[Tensor, Tensor, Tensor]]
BACKENDS: dict[str, tuple[Forward, Backward]] = {
    "cuDNN": (cudnn, cudnn_backward),
    "flash-attn 4": (flash_4, flash_4_backward),
    "flash-attn 3": (flash_3, flash_3_backward),
    "flash-attn 2": (flash_2, flash_2_backward),
    "torch's flash-attn 2": (torch_flash, torch_flash_backward),
    "torch's efficient": (torch_efficient, torch_efficient_backward),
}
