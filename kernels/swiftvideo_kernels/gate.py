"""Gated residual, its tangent and its gradient, each in one pass.

    z  = x + g y
    tz = tx + g ty + tg y
    dx = dz,   dy = g dz,   dg = Σ_N dz y

Traffic: jvp reads x, tx, y, ty, writes z, tz; backward reads dz, y, writes dy.  None is not read.
Arithmetic fp32.  dg: partial sums of CHUNK rows, added in a fixed order.
Shapes: x tx y ty z tz (B, N, C), one dtype.  g tg (B, C), any dtype.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swiftvideo_kernels.storage import block_tile, contiguous

CHUNK = 64          # rows summed into dg by one program


@triton.jit(do_not_specialize=["N"])
def _gate_kernel(
    x_ptr, tx_ptr, y_ptr, ty_ptr,       # [B * N, C]; any tangent may be None
    g_ptr, tg_ptr,                      # [B, C]
    z_ptr, tz_ptr,                      # [B * N, C]; tz None: primal only
    N, C,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    clip = tl.program_id(2).to(tl.int64)
    at = (clip * N + row)[:, None] * C + col[None, :]
    mask = (row < N)[:, None] & (col < C)[None, :]

    g = tl.load(g_ptr + clip * C + col, col < C, 0.0).to(tl.float32)[None, :]
    y = tl.load(y_ptr + at, mask, 0.0).to(tl.float32)
    z = tl.load(x_ptr + at, mask, 0.0).to(tl.float32) + g * y
    if tz_ptr is not None:                                      # stores last: no load waits for them
        tz = tl.zeros([ROWS, BLOCK_C], tl.float32)
        if tx_ptr is not None:
            tz += tl.load(tx_ptr + at, mask, 0.0).to(tl.float32)
        if ty_ptr is not None:
            tz += g * tl.load(ty_ptr + at, mask, 0.0).to(tl.float32)
        if tg_ptr is not None:
            tz += y * tl.load(tg_ptr + clip * C + col, col < C, 0.0).to(tl.float32)[None, :]
        tl.store(tz_ptr + at, tz, mask)
    tl.store(z_ptr + at, z, mask)


@triton.jit(do_not_specialize=["N"])
def _gate_backward_kernel(
    dz_ptr, y_ptr,              # [B * N, C]
    g_ptr,                      # [B, C]
    dy_ptr,                     # [B * N, C]
    dg_ptr,                     # [B, N / CHUNK, C] fp32
    N, C,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):
    chunk, clip = tl.program_id(0), tl.program_id(2).to(tl.int64)
    col = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    g = tl.load(g_ptr + clip * C + col, col < C, 0.0).to(tl.float32)[None, :]
    dg = tl.zeros([ROWS, BLOCK_C], tl.float32)
    for first in tl.range(chunk * CHUNK, tl.minimum(N, (chunk + 1) * CHUNK), ROWS, num_stages=2):
        row = first + tl.arange(0, ROWS)
        at = (clip * N + row)[:, None] * C + col[None, :]
        mask = (row < N)[:, None] & (col < C)[None, :]
        dz = tl.load(dz_ptr + at, mask, 0.0).to(tl.float32)
        dg += dz * tl.load(y_ptr + at, mask, 0.0).to(tl.float32)
        tl.store(dy_ptr + at, g * dz, mask)
    tl.store(dg_ptr + (clip * tl.num_programs(0) + chunk) * C + col, tl.sum(dg, 0), col < C)


def gate(x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    """Returns z, contiguous, in x's dtype."""
    x, y, g = contiguous("gate", x, y, g)
    z = torch.empty_like(x)
    _launch(x, None, y, None, g, None, z, None)
    return z


def gate_jvp(x: Tensor, tx: Tensor | None, y: Tensor, ty: Tensor | None, g: Tensor,
             tg: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns (z, tz), contiguous, in x's dtype.  A tangent of None is zero."""
    x, tx, y, ty, g, tg = contiguous("gate_jvp", x, tx, y, ty, g, tg)
    z, tz = torch.empty_like(x), torch.empty_like(x)
    _launch(x, tx, y, ty, g, tg, z, tz)
    return z, tz


def _launch(x, tx, y, ty, g, tg, z, tz) -> None:
    B, N, C = x.shape
    tile = block_tile(C)
    grid = triton.cdiv(N, tile["ROWS"]), triton.cdiv(C, tile["BLOCK_C"]), B
    _gate_kernel[grid](x, tx, y, ty, g, tg, z, tz, N, C, **tile)


def gate_backward(dz: Tensor, y: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (dy, dg) from dz, the cotangent of z; dg in g's dtype.  dx is dz."""
    dz, y, g = contiguous("gate_backward", dz, y, g)
    B, N, C = y.shape
    tile = block_tile(C)
    dy = torch.empty_like(y)
    dg = torch.empty(B, triton.cdiv(N, CHUNK), C, dtype=torch.float32, device=y.device)
    grid = triton.cdiv(N, CHUNK), triton.cdiv(C, tile["BLOCK_C"]), B
    _gate_backward_kernel[grid](dz, y, g, dy, dg, N, C, CHUNK=CHUNK, **tile)
    return dy, dg.sum(1).to(g.dtype)
