"""Modulated LayerNorm, its tangent and its gradient, each in one pass over the rows.

    n  = (x - mean x) r            r = 1 / sqrt(var x + eps)
    y  = n (1 + s) + b
    tn = r (tx - mean tx - n mean(n tx))                                                           (1)
    ty = tn (1 + s) + n ts + tb
    dx = r (dn - mean dn - n mean(n dn)),  dn = dy (1 + s);   ds = Σ_N dy n;   db = Σ_N dy

(1) is J tx with J = r (I - 11'/C - nn'/C).  J is symmetric, so the gradient is J dn: `ln_jacobian` computes
both.

Traffic: jvp reads x, tx, writes y, ty; backward reads dy, x, writes dx; the rest is [B, C] or N / CHUNK
times that.  Arithmetic fp32.  Sums over tokens: partial sums of CHUNK rows, added in a fixed order.
Shapes: x tx y ty (B, N, C), one dtype.  s ts b tb (B, C), any dtype.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swiftvideo_kernels.storage import columns, contiguous, part, row_dot, row_sum, row_tile

CHUNK = 64          # rows summed into ds, db by one program: 3 % of the traffic at bf16


@triton.jit
def _normalise(a, b, mask_b, C, eps):
    """Returns n of both row parts and r, per row; n is zero past the row's end."""
    mean = row_sum(a, b) / C
    a = a - mean
    if b is not None:
        b = tl.where(mask_b, b - mean, 0.0)
    rstd = tl.rsqrt(row_dot(a, b, a, b) / C + eps)
    a = a * rstd
    if b is not None:
        b = b * rstd
    return a, b, rstd


@triton.jit
def ln_jacobian(u, n, mean_u, mean_nu, rstd):
    """Returns J u of one row part, (1)."""
    return rstd * (u - mean_u - n * mean_nu)


@triton.jit
def _tangent(tx, n, mean_tx, mean_ntx, rstd, s_ptr, ts_ptr, tb_ptr, col, mask):
    """Returns ty of one row part; a tangent of None is zero."""
    ty = tl.zeros(n.shape, tl.float32)
    if tx is not None:
        ty += ln_jacobian(tx, n, mean_tx, mean_ntx, rstd) * (1 + part(s_ptr, col, mask))
    if ts_ptr is not None:
        ty += n * part(ts_ptr, col, mask)
    if tb_ptr is not None:
        ty += part(tb_ptr, col, mask)
    return ty


@triton.jit(do_not_specialize=["N"])
def _modulate_kernel(
    x_ptr, tx_ptr,              # [B * N, C]; any tangent may be None
    s_ptr, ts_ptr,              # [B, C]
    b_ptr, tb_ptr,              # [B, C]
    y_ptr, ty_ptr,              # [B * N, C]; ty None: primal only
    N, eps,
    C: tl.constexpr, ROWS: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    clip = tl.program_id(1).to(tl.int64)
    at = (clip * N + row)[:, None] * C
    channel = clip * C
    col_a, mask_a = columns(0, row, N, C, ROWS, BLOCK_A)
    col_b, mask_b = columns(BLOCK_A, row, N, C, ROWS, BLOCK_B)

    a, b = part(x_ptr + at, col_a, mask_a), part(x_ptr + at, col_b, mask_b)
    ta = None
    tb = None
    if tx_ptr is not None:                                      # issued before x's sums and any store
        ta, tb = part(tx_ptr + at, col_a, mask_a), part(tx_ptr + at, col_b, mask_b)
    a, b, rstd = _normalise(a, b, mask_b, C, eps)
    y = a * (1 + part(s_ptr + channel, col_a, mask_a)) + part(b_ptr + channel, col_a, mask_a)
    tl.store(y_ptr + at + col_a, y, mask_a)
    if BLOCK_B > 0:
        y = b * (1 + part(s_ptr + channel, col_b, mask_b)) + part(b_ptr + channel, col_b, mask_b)
        tl.store(y_ptr + at + col_b, y, mask_b)
    if ty_ptr is not None:
        mean_t = 0.0
        mean_nt = 0.0
        if tx_ptr is not None:
            mean_t, mean_nt = row_sum(ta, tb) / C, row_dot(ta, tb, a, b) / C
        s_row = s_ptr + channel
        tb_row = None
        ts_row = None
        if ts_ptr is not None:
            ts_row = ts_ptr + channel
        if tb_ptr is not None:
            tb_row = tb_ptr + channel
        ty = _tangent(ta, a, mean_t, mean_nt, rstd, s_row, ts_row, tb_row, col_a, mask_a)
        tl.store(ty_ptr + at + col_a, ty, mask_a)
        if BLOCK_B > 0:
            ty = _tangent(tb, b, mean_t, mean_nt, rstd, s_row, ts_row, tb_row, col_b, mask_b)
            tl.store(ty_ptr + at + col_b, ty, mask_b)


@triton.jit(do_not_specialize=["N"])
def _modulate_backward_kernel(
    dy_ptr, x_ptr,              # [B * N, C]
    s_ptr,                      # [B, C]
    dx_ptr,                     # [B * N, C]
    ds_ptr, db_ptr,             # [B, N / CHUNK, C] fp32
    N, eps,
    C: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
):
    chunk, clip = tl.program_id(0), tl.program_id(1).to(tl.int64)
    ds_a = tl.zeros([ROWS, BLOCK_A], tl.float32)
    db_a = tl.zeros([ROWS, BLOCK_A], tl.float32)
    if BLOCK_B > 0:
        ds_b = tl.zeros([ROWS, BLOCK_B], tl.float32)
        db_b = tl.zeros([ROWS, BLOCK_B], tl.float32)
    for first in tl.range(chunk * CHUNK, tl.minimum(N, (chunk + 1) * CHUNK), ROWS, num_stages=2):
        row = first + tl.arange(0, ROWS)
        at = (clip * N + row)[:, None] * C
        col_a, mask_a = columns(0, row, N, C, ROWS, BLOCK_A)
        col_b, mask_b = columns(BLOCK_A, row, N, C, ROWS, BLOCK_B)
        dy_a, dy_b = part(dy_ptr + at, col_a, mask_a), part(dy_ptr + at, col_b, mask_b)
        a, b = part(x_ptr + at, col_a, mask_a), part(x_ptr + at, col_b, mask_b)
        a, b, rstd = _normalise(a, b, mask_b, C, eps)
        dn_a = dy_a * (1 + part(s_ptr + clip * C, col_a, mask_a))
        ds_a += dy_a * a
        db_a += dy_a
        dn_b = None
        if BLOCK_B > 0:
            dn_b = dy_b * (1 + part(s_ptr + clip * C, col_b, mask_b))
            ds_b += dy_b * b
            db_b += dy_b
        mean, mean_n = row_sum(dn_a, dn_b) / C, row_dot(dn_a, dn_b, a, b) / C
        tl.store(dx_ptr + at + col_a, ln_jacobian(dn_a, a, mean, mean_n, rstd), mask_a)
        if BLOCK_B > 0:
            tl.store(dx_ptr + at + col_b, ln_jacobian(dn_b, b, mean, mean_n, rstd), mask_b)
    channel = (clip * tl.num_programs(0) + chunk) * C + tl.arange(0, BLOCK_A)
    tl.store(ds_ptr + channel, tl.sum(ds_a, 0))
    tl.store(db_ptr + channel, tl.sum(db_a, 0))
    if BLOCK_B > 0:
        rest = BLOCK_A + tl.arange(0, BLOCK_B)
        channel = (clip * tl.num_programs(0) + chunk) * C + rest
        tl.store(ds_ptr + channel, tl.sum(ds_b, 0), rest < C)
        tl.store(db_ptr + channel, tl.sum(db_b, 0), rest < C)


def modulate(x: Tensor, s: Tensor, b: Tensor, eps: float) -> Tensor:
    """Returns y, contiguous, in x's dtype."""
    x, s, b = contiguous("modulate", x, s, b)
    y = torch.empty_like(x)
    _launch(x, None, s, None, b, None, y, None, eps)
    return y


def modulate_jvp(x: Tensor, tx: Tensor | None, s: Tensor, ts: Tensor | None, b: Tensor, tb: Tensor | None,
                 eps: float) -> tuple[Tensor, Tensor]:
    """Returns (y, ty), contiguous, in x's dtype.  A tangent of None is zero."""
    x, tx, s, ts, b, tb = contiguous("modulate_jvp", x, tx, s, ts, b, tb)
    y, ty = torch.empty_like(x), torch.empty_like(x)
    _launch(x, tx, s, ts, b, tb, y, ty, eps)
    return y, ty


def _launch(x, tx, s, ts, b, tb, y, ty, eps) -> None:
    B, N, C = x.shape
    tile = row_tile(C, 1280)
    _modulate_kernel[triton.cdiv(N, tile["ROWS"]), B](x, tx, s, ts, b, tb, y, ty, N, eps, **tile)


def modulate_backward(dy: Tensor, x: Tensor, s: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (dx, ds, db) from dy, the cotangent of y; ds and db in s's dtype."""
    dy, x, s = contiguous("modulate_backward", dy, x, s)
    B, N, C = x.shape
    dx = torch.empty_like(x)
    chunks = triton.cdiv(N, CHUNK)
    ds, db = (torch.empty(B, chunks, C, dtype=torch.float32, device=x.device) for _ in range(2))
    _modulate_backward_kernel[chunks, B](
        dy, x, s, dx, ds, db, N, eps, CHUNK=CHUNK, **row_tile(C, 1024))
    return dx, ds.sum(1).to(s.dtype), db.sum(1).to(s.dtype)
