"""GELU (tanh approximation), its tangent and its gradient, each in one pass.

    y  = x σ(2u)        u = k (x + a x³),  k = sqrt(2 / pi),  a = 0.044715     since (1 + tanh u) / 2 = σ(2u)
    ty = (σ + 2 x σ (1 - σ) k (1 + 3 a x²)) tx                  dx is ty at tx = dy

With e = exp(-|2u|), σ and 1 - σ are 1 / (1 + e) and e / (1 + e), or reversed where u < 0: one exponential,
one division, and no subtraction 1 - σ, which would cancel.

Traffic: reads x, tx; writes y, ty, each only if given.  Arithmetic fp32.  Any shape, one dtype.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swiftvideo_kernels.storage import contiguous

BLOCK = 2048


@triton.jit
def _gelu_kernel(x_ptr, tx_ptr, y_ptr, ty_ptr, numel, BLOCK: tl.constexpr):      # None: tx and ty, or y
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < numel
    x = tl.load(x_ptr + at, mask, 0.0).to(tl.float32)
    if tx_ptr is not None:
        tx = tl.load(tx_ptr + at, mask, 0.0).to(tl.float32)
    square, two_k_x = x * x, 1.5957691216057308 * x
    two_u = two_k_x * (1 + 0.044715 * square)
    e = tl.exp2(-1.4426950408889634 * tl.abs(two_u))
    larger = 1 / (1 + e)
    smaller = e * larger
    s = tl.where(x > 0, larger, smaller)
    if y_ptr is not None:
        tl.store(y_ptr + at, x * s, mask)
    if tx_ptr is not None:
        slope = two_k_x * (1 + 0.134145 * square)
        tl.store(ty_ptr + at, (s + slope * (larger * smaller)) * tx, mask)


def gelu(x: Tensor) -> Tensor:
    """Returns y, contiguous, in x's dtype."""
    x, = contiguous("gelu", x)
    return _launch(x, None, torch.empty_like(x), None)[0]


def gelu_jvp(x: Tensor, tx: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (y, ty), contiguous, in x's dtype."""
    x, tx = contiguous("gelu_jvp", x, tx)
    return _launch(x, tx, torch.empty_like(x), torch.empty_like(x))


def gelu_backward(dy: Tensor, x: Tensor) -> Tensor:
    """Returns dx from dy, the cotangent of y."""
    dy, x = contiguous("gelu_backward", dy, x)
    return _launch(x, dy, None, torch.empty_like(x))[1]


def _launch(x, tx, y, ty) -> tuple[Tensor | None, Tensor | None]:
    _gelu_kernel[(triton.cdiv(x.numel(), BLOCK),)](x, tx, y, ty, x.numel(), BLOCK=BLOCK)
    return y, ty
