"""Modulated LayerNorm, its tangent and its gradient, each in one pass over the rows.

    n  = (x - mean x) r            r = 1 / sqrt(var x + eps)
    y  = n (1 + s) + b
    tn = r (tx - mean tx - n mean(n tx))                                                           (1)
    ty = tn (1 + s) + n ts + tb
    dx = r (dn - mean dn - n mean(n dn)),  dn = dy (1 + s);   ds = Σ_N dy n;   db = Σ_N dy

(1) is J tx with J = r (I - 11'/C - nn'/C).  J is symmetric, so the gradient is the same map applied to dn:
`ln_jacobian` serves both.

Traffic: jvp reads x, tx, writes y, ty; backward reads dy, x, writes dx; all else is [B, C] or N / CHUNK
times that. Arithmetic fp32.  Sums over tokens go through partial sums of CHUNK rows, added in a fixed order.
Shapes: x tx y ty (B, N, C), one dtype.  s ts b tb (B, C), any dtype.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swiftvideo_kernels.storage import contiguous, whole_row_mask, whole_rows

CHUNK = 64          # rows whose ds and db one program adds up: 3 % of the traffic at bf16


@triton.jit
def _normalise(x, C, eps, real):
    """n and r of each row; n is zero where not `real`."""
    centred = tl.where(real, x - (tl.sum(x, 1) / C)[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / C + eps)[:, None]
    return centred * rstd, rstd


@triton.jit
def ln_jacobian(u, n, rstd, C, real):
    """J u for each row, (1).  u and n are zero where not `real`: past the row's end."""
    mean_u = (tl.sum(u, 1) / C)[:, None]
    mean_nu = (tl.sum(n * u, 1) / C)[:, None]
    return tl.where(real, rstd * (u - mean_u - n * mean_nu), 0.0)


@triton.jit(do_not_specialize=["N"])
def _modulate_kernel(
    x_ptr, tx_ptr,              # [B * N, C]; any tangent may be None
    s_ptr, ts_ptr,              # [B, C]
    b_ptr, tb_ptr,              # [B, C]
    y_ptr, ty_ptr,              # [B * N, C]; ty None: the primal alone
    N, eps,
    C: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    clip = tl.program_id(1).to(tl.int64)
    col = tl.arange(0, BLOCK_C)
    at = (clip * N + row)[:, None] * C + col[None, :]
    real = (col < C)[None, :]
    mask = whole_row_mask(row, N, col, C, ROWS, BLOCK_C)
    channel = clip * C + tl.broadcast_to(col[None, :], (ROWS, BLOCK_C))

    x = tl.load(x_ptr + at, mask, 0.0).to(tl.float32)
    if tx_ptr is not None:                                      # in flight before x's sums, and any store
        tx = tl.load(tx_ptr + at, mask, 0.0).to(tl.float32)
    n, rstd = _normalise(x, C, eps, real)
    gain = 1 + tl.load(s_ptr + channel, mask, 0.0).to(tl.float32)
    b = tl.load(b_ptr + channel, mask, 0.0).to(tl.float32)
    tl.store(y_ptr + at, n * gain + b, mask)
    if ty_ptr is not None:
        ty = tl.zeros([ROWS, BLOCK_C], tl.float32)
        if tx_ptr is not None:
            ty += ln_jacobian(tx, n, rstd, C, real) * gain
        if ts_ptr is not None:
            ty += n * tl.load(ts_ptr + channel, mask, 0.0).to(tl.float32)
        if tb_ptr is not None:
            ty += tl.load(tb_ptr + channel, mask, 0.0).to(tl.float32)
        tl.store(ty_ptr + at, ty, mask)


@triton.jit(do_not_specialize=["N"])
def _modulate_backward_kernel(
    dy_ptr, x_ptr,              # [B * N, C]
    s_ptr,                      # [B, C]
    dx_ptr,                     # [B * N, C]
    ds_ptr, db_ptr,             # [B, N / CHUNK, C] fp32
    N, eps,
    C: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):
    chunk, clip = tl.program_id(0), tl.program_id(1).to(tl.int64)
    col = tl.arange(0, BLOCK_C)
    real = (col < C)[None, :]
    gain = 1 + tl.load(s_ptr + clip * C + col, col < C, 0.0).to(tl.float32)[None, :]
    ds = tl.zeros([ROWS, BLOCK_C], tl.float32)
    db = tl.zeros([ROWS, BLOCK_C], tl.float32)
    for first in tl.range(chunk * CHUNK, tl.minimum(N, (chunk + 1) * CHUNK), ROWS, num_stages=2):
        row = first + tl.arange(0, ROWS)
        at = (clip * N + row)[:, None] * C + col[None, :]
        mask = (row < N)[:, None] & real
        dy = tl.load(dy_ptr + at, mask, 0.0).to(tl.float32)
        n, rstd = _normalise(tl.load(x_ptr + at, mask, 0.0).to(tl.float32), C, eps, real)
        tl.store(dx_ptr + at, ln_jacobian(dy * gain, n, rstd, C, real), mask)
        ds += dy * n
        db += dy
    channel = (clip * tl.num_programs(0) + chunk) * C + col
    tl.store(ds_ptr + channel, tl.sum(ds, 0), col < C)
    tl.store(db_ptr + channel, tl.sum(db, 0), col < C)


def modulate(x: Tensor, s: Tensor, b: Tensor, eps: float) -> Tensor:
    """y, contiguous, in x's dtype."""
    x, s, b = contiguous("modulate", x, s, b)
    y = torch.empty_like(x)
    _launch(x, None, s, None, b, None, y, None, eps)
    return y


def modulate_jvp(x: Tensor, tx: Tensor | None, s: Tensor, ts: Tensor | None, b: Tensor, tb: Tensor | None,
                 eps: float) -> tuple[Tensor, Tensor]:
    """(y, ty), contiguous, in x's dtype.  A tangent of None is zero."""
    x, tx, s, ts, b, tb = contiguous("modulate_jvp", x, tx, s, ts, b, tb)
    y, ty = torch.empty_like(x), torch.empty_like(x)
    _launch(x, tx, s, ts, b, tb, y, ty, eps)
    return y, ty


def _launch(x, tx, s, ts, b, tb, y, ty, eps) -> None:
    B, N, C = x.shape
    tile = whole_rows(C)
    _modulate_kernel[triton.cdiv(N, tile["ROWS"]), B](x, tx, s, ts, b, tb, y, ty, N, eps, **tile)


def modulate_backward(dy: Tensor, x: Tensor, s: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, ds, db) from the cotangent of y; ds and db in s's dtype."""
    dy, x, s = contiguous("modulate_backward", dy, x, s)
    B, N, C = x.shape
    dx = torch.empty_like(x)
    chunks = triton.cdiv(N, CHUNK)
    ds, db = (torch.empty(B, chunks, C, dtype=torch.float32, device=x.device) for _ in range(2))
    _modulate_backward_kernel[chunks, B](
        dy, x, s, dx, ds, db, N, eps, CHUNK=CHUNK, **whole_rows(C, 1024))
    return dx, ds.sum(1).to(s.dtype), db.sum(1).to(s.dtype)
