"""Plain attention by the fastest measured way that is installed and right here; forward and backward apart.

ORDER lists the ways by capability, the fastest first, with the record it rests on.  The first that is
installed and passes `fits` runs: o, lse and gradients have to be within the bars of the precision, the
backward's from another kernel's (o, lse).  The choice is logged once and shown by `swiftvideo doctor`.

Under torch.use_deterministic_algorithms, warn_only or not, the backward is the fastest that repeats to the
bit: cuDNN's and the plain flash backwards add with atomics.  (engine.deterministic sets that switch.)
Shapes: q o dq (B, H, N, D)   k v dk dv (B, G, M, D)   lse (B, H, N) fp32.  Outputs lie as (B, N, H, D).
"""

import logging
from functools import cache

import torch
from torch import Tensor

from swiftvideo_kernels.attention_ways import WAYS, installed

FLASH = "flash-attn 2", "torch's flash-attn 2"
# {(direction, major compute capability): ways}; other capabilities take FLASH.  TFLOP/s (4 and 10 B H N M D)
# on an H100 80GB HBM3, 2026-11-27, torch 2.11.0+cu130, bf16, (1, 12, 24960, 128), cuDNN and torch's flash:
#   forward  611, 361       backward  561, 304       deterministic backward  -, 265
# and 574, 354 and 512, 310 at (1, 40, 32760, 128).  flash-attn 4 and 3 were not installed there: after cuDNN.
ORDER = {
    ("forward", 9): ("cuDNN", "flash-attn 4", "flash-attn 3", *FLASH),
    ("backward", 9): ("cuDNN", "flash-attn 3", *FLASH),
    ("deterministic backward", 9): ("flash-attn 3", *FLASH),
    ("forward", 10): ("cuDNN", "flash-attn 4", *FLASH),
    ("backward", 10): ("cuDNN", "flash-attn 4", *FLASH),
}
SHORT = 64                          # fewer queries or keys: no kernel is busy, and cuDNN has had faults there
BARS = {torch.bfloat16: 1e-2, torch.float16: 2e-3}          # relative, of o and gradients in `fits`


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """(o, lse)."""
    forward, _ = WAYS[way("forward", q, k, causal)]
    o, lse = forward(q, k, v, scale, causal)
    return _token_major(o), lse


def attention_backward(do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float,
                       causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) from the cotangent of o."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    _, backward = WAYS[way("deterministic backward" if deterministic else "backward", q, k, causal)]
    do = do if do.stride(3) == 1 else do.contiguous()           # of a sum it is one number, expanded
    return tuple(_token_major(dx) for dx in backward(do, q, k, v, o, lse, scale, causal, deterministic))


def way(direction: str, q: Tensor, k: Tensor, causal: bool) -> str:
    """The name of the way that runs."""
    N, D, M = *q.shape[2:], k.shape[2]
    if q.dtype == torch.float64:
        raise ValueError("attention: float64 on a GPU; want float32, bfloat16 or float16")
    if q.dtype == torch.float32 or causal and N != M:           # flash kernels align the mask bottom-right
        return "torch's efficient"
    if min(N, M) < SHORT:
        return FLASH[1]
    return chosen(direction, q.device, q.dtype, D, causal)


@cache
def chosen(direction: str, device: torch.device, dtype: torch.dtype, D: int, causal: bool) -> str:
    """The first way of this card's order that is installed and right; the last is not asked."""
    *faster, last = ORDER.get((direction, torch.cuda.get_device_capability(device)[0]), FLASH)
    found = next((name for name in faster
                  if installed(name) and fits(name, direction, device, dtype, D, causal)), last)
    logging.getLogger(__name__).info("attention, %s, %s, head width %d%s: %s", direction,
                                     str(dtype).removeprefix("torch."), D, ", causal" * causal, found)
    return found


def fits(name: str, direction: str, device: torch.device, dtype: torch.dtype, D: int, causal: bool) -> bool:
    """Whether a way is right on this device, against float64; the backward, from rounded float64 (o, lse)."""
    forward, backward = WAYS[name]
    rng = torch.Generator(device).manual_seed(0)
    q, do, k, v = (torch.randn(1, 130, heads, D, generator=rng, device=device).to(dtype).transpose(1, 2)
                   for heads in (2, 2, 1, 1))
    o, lse, *grads = exact(do, q, k, v, D**-0.5, causal)
    try:
        if direction == "forward":
            got, got_lse = forward(q, k, v, D**-0.5, causal)
            return close(got, o, dtype) and bool((got_lse - lse).abs().max() < 1e-4)
        found = backward(do, q, k, v, _token_major(o.to(dtype)), lse.float(), D**-0.5, causal,
                         direction.startswith("deterministic"))
        return all(close(a, b, dtype) for a, b in zip(found, grads, strict=True))
    except Exception as error:                                  # a library that is not what it seems
        logging.getLogger(__name__).warning("attention: %s is left out: %s: %s", name, type(error).__name__,
                                            str(error).splitlines()[:1])
        return False


def exact(do: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, ...]:
    """(o, lse, dq, dk, dv) in float64."""
    do, q, k, v = (x.double() for x in (do, q, k, v))
    B, G, M, D = k.shape
    share = q.shape[1] // G
    k_, v_ = (x.repeat_interleave(share, 1) for x in (k, v))
    s = q @ k_.mT * scale
    if causal:
        s = s.masked_fill(torch.ones_like(s, dtype=torch.bool).triu(1), -torch.inf)
    lse, p = s.logsumexp(-1), s.softmax(-1)
    o = p @ v_
    ds = p * (do @ v_.mT - (do * o).sum(-1, keepdim=True)) * scale
    dk, dv = ((x.mT @ y).view(B, G, share, M, D).sum(2) for x, y in ((ds, q), (p, do)))
    return o, lse, ds @ k_, dk, dv


def close(got: Tensor, want: Tensor, dtype: torch.dtype) -> bool:
    return bool((got - want).norm() <= BARS[dtype] * want.norm())


def _token_major(x: Tensor) -> Tensor:
    """(B, H, N, D) lying in memory as (B, N, H, D); a copy only where it does not already."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)
