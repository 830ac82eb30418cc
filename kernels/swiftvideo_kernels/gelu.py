"""GELU (tanh approximation) and its tangent in one pass.

    y  = x σ(2u)        u = k (x + a x³),  k = sqrt(2 / pi),  a = 0.044715     since (1 + tanh u) / 2 = σ(2u)
    ty = (σ + 2 x σ (1 - σ) k (1 + 3 a x²)) tx

Traffic: read x, tx, write y, ty.  Arithmetic fp32.  Any shape, one dtype.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swiftvideo_kernels.storage import contiguous

BLOCK = 2048


@triton.jit
def _gelu_jvp_kernel(x_ptr, tx_ptr, y_ptr, ty_ptr, numel, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < numel
    x = tl.load(x_ptr + at, mask, 0.0).to(tl.float32)
    tx = tl.load(tx_ptr + at, mask, 0.0).to(tl.float32)
    k = 0.7978845608028654
    u = k * x * (1 + 0.044715 * x * x)
    s, rest = tl.sigmoid(2 * u), tl.sigmoid(-2 * u)             # 1 - s would cancel
    tl.store(y_ptr + at, x * s, mask)
    tl.store(ty_ptr + at, (s + 2 * k * x * s * rest * (1 + 0.134145 * x * x)) * tx, mask)


def gelu_jvp(x: Tensor, tx: Tensor) -> tuple[Tensor, Tensor]:
    """(y, ty), contiguous, in x's dtype."""
    x, tx = contiguous("gelu_jvp", x, tx)
    y, ty = torch.empty_like(x), torch.empty_like(x)
    _gelu_jvp_kernel[(triton.cdiv(x.numel(), BLOCK),)](x, tx, y, ty, x.numel(), BLOCK=BLOCK)
    return y, ty
