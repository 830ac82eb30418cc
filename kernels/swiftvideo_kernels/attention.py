"""Attention without tangents: selects the fastest installed and accurate backend, per direction.

ORDER lists the backends by compute capability, fastest first, with the measurements behind it.  The first one
installed that passes `is_accurate` runs: o, lse and gradients within MAX_ERROR of float64, the backward
starting from rounded float64 (o, lse).  The choice is logged once and shown by `swiftvideo doctor`.

Under torch.use_deterministic_algorithms, warn_only or not (engine.deterministic sets it), the fastest bitwise
reproducible backward runs: cuDNN's and the default flash backwards use atomics.
Shapes: q o dq (B, H, N, D)   k v dk dv (B, G, M, D)   lse (B, H, N) fp32.  Outputs: memory (B, N, H, D).
"""

import logging
from functools import cache

import torch
from torch import Tensor

from swiftvideo_kernels.attention_backends import BACKENDS, installed

FLASH = "flash-attn 2", "torch's flash-attn 2"
# {(direction, major compute capability): backends}; others use FLASH.  TFLOP/s (4 and 10 B H N M D)
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
MIN_LENGTH = 64                     # below, kernels are launch-bound, and cuDNN has had faults there
MAX_ERROR = {torch.bfloat16: 1e-2, torch.float16: 2e-3}     # relative Frobenius, of o and gradients


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Returns (o, lse)."""
    forward, _ = BACKENDS[backend("forward", q, k, causal)]
    o, lse = forward(q, k, v, scale, causal)
    return _token_major(o), lse


def attention_backward(do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float,
                       causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (dq, dk, dv) from do, the cotangent of o."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    _, backward = BACKENDS[backend("deterministic backward" if deterministic else "backward", q, k, causal)]
    do = do if do.stride(3) == 1 else do.contiguous()           # an expanded scalar, e.g. from sum()
    return tuple(_token_major(dx) for dx in backward(do, q, k, v, o, lse, scale, causal, deterministic))


def backend(direction: str, q: Tensor, k: Tensor, causal: bool) -> str:
    """Returns the name of the backend that runs.  Raises ValueError for float64."""
    N, D, M = *q.shape[2:], k.shape[2]
    if q.dtype == torch.float64:
        raise ValueError("attention: float64 on a GPU; want float32, bfloat16 or float16")
    if q.dtype == torch.float32 or causal and N != M:           # flash kernels align the mask bottom-right
        return "torch's efficient"
    if min(N, M) < MIN_LENGTH:
        return FLASH[1]
    return select(direction, q.device, q.dtype, D, causal)


@cache
def select(direction: str, device: torch.device, dtype: torch.dtype, D: int, causal: bool) -> str:
    """Returns the first backend of this device's ORDER that is installed and accurate; the last untested."""
    *faster, last = ORDER.get((direction, torch.cuda.get_device_capability(device)[0]), FLASH)
    found = next((name for name in faster
                  if installed(name) and is_accurate(name, direction, device, dtype, D, causal)), last)
    logging.getLogger(__name__).info("attention, %s, %s, head width %d%s: %s", direction,
                                     str(dtype).removeprefix("torch."), D, ", causal" * causal, found)
    return found


def is_accurate(name: str, direction: str, device: torch.device, dtype: torch.dtype, D: int,
                causal: bool) -> bool:
    """True if the error against float64 is within MAX_ERROR.  A backward gets rounded float64 (o, lse)."""
    forward, backward = BACKENDS[name]
    rng = torch.Generator(device).manual_seed(0)
    q, do, k, v = (torch.randn(1, 130, heads, D, generator=rng, device=device).to(dtype).transpose(1, 2)
                   for heads in (2, 2, 1, 1))
    o, lse, *grads = exact(do, q, k, v, D**-0.5, causal)
    try:
        if direction == "forward":
            got, got_lse = forward(q, k, v, D**-0.5, causal)
            return is_close(got, o, dtype) and bool((got_lse - lse).abs().max() < 1e-4)
        found = backward(do, q, k, v, _token_major(o.to(dtype)), lse.float(), D**-0.5, causal,
                         direction.startswith("deterministic"))
        return all(is_close(a, b, dtype) for a, b in zip(found, grads, strict=True))
    except Exception as error:                                  # an incompatible library version
        logging.getLogger(__name__).warning("attention: %s is left out: %s: %s", name, type(error).__name__,
                                            str(error).splitlines()[:1])
        return False


def exact(do: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, ...]:
    """Returns (o, lse, dq, dk, dv) in float64."""
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


def is_close(got: Tensor, want: Tensor, dtype: torch.dtype) -> bool:
    return bool((got - want).norm() <= MAX_ERROR[dtype] * want.norm())


def _token_major(x: Tensor) -> Tensor:
    """Returns x (B, H, N, D) with the memory layout (B, N, H, D); copies only if needed."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)
