"""RMSNorm over all channels, then rotary embedding; its tangent and its gradient, each in one pass.

    n = x r,  r = 1 / sqrt(mean x² + eps)        y = R (n w)
    tn = r (tx - n mean(n tx))                   ty = R (tn w)                                     (1)
    dn = (R' dy) w,   dx = r (dn - n mean(n dn)),   dw = Σ (R' dy) n

R turns each (even, odd) pair of a head by its token's angle; R' turns it back.  (1) is J tx with
J = r (I - nn'/C), symmetric, so the gradient is the same map: `rms_jacobian` serves both.

Traffic: jvp reads x, tx, writes y, ty; backward reads dy, x, writes dx.  cos and sin are read once a head,
from L1. Arithmetic fp32.  dw goes through partial sums of CHUNK rows, added in a fixed order. Shapes: x tx y
ty (B, N, C), one dtype.  w (C).  cos sin (N, R), R = D / 2, or None: no rotation.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swiftvideo_kernels.storage import contiguous, whole_row_mask, whole_rows

CHUNK = 64          # rows whose dw one program adds up


@triton.jit
def rms_jacobian(u, n, rstd, C):
    """J u for each row, (1)."""
    return rstd * (u - n * (tl.sum(n * u, 1) / C)[:, None])


@triton.jit
def _angles(cos_ptr, sin_ptr, row, N, C: tl.constexpr, R: tl.constexpr, BLOCK_C: tl.constexpr):
    """cos and sin of every pair of the rows: [ROWS, BLOCK_C / 2]."""
    pair = tl.arange(0, BLOCK_C // 2)
    at = row[:, None] * R + (pair % R)[None, :]
    mask = (row < N)[:, None] & (pair < C // 2)[None, :]
    return tl.load(cos_ptr + at, mask, 0.0).to(tl.float32), tl.load(sin_ptr + at, mask, 0.0).to(tl.float32)


@triton.jit
def _turn(y, cos, sin, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Each pair (a, b) of y to (a cos - b sin, a sin + b cos)."""
    a, b = tl.split(tl.reshape(y, (ROWS, BLOCK_C // 2, 2)))
    return tl.reshape(tl.join(a * cos - b * sin, a * sin + b * cos), (ROWS, BLOCK_C))


@triton.jit(do_not_specialize=["N"])
def _norm_rope_kernel(
    x_ptr, tx_ptr,              # [B * N, C]; tx and ty None: the primal alone
    w_ptr,                      # [C]
    cos_ptr, sin_ptr,           # [N, R], or None
    y_ptr, ty_ptr,              # [B * N, C]
    N, eps,
    C: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    clip = tl.program_id(1).to(tl.int64)
    col = tl.arange(0, BLOCK_C)
    at = (clip * N + row)[:, None] * C + col[None, :]
    mask = whole_row_mask(row, N, col, C, ROWS, BLOCK_C)

    x = tl.load(x_ptr + at, mask, 0.0).to(tl.float32)
    if tx_ptr is not None:                                      # in flight before x's sum, and any store
        tx = tl.load(tx_ptr + at, mask, 0.0).to(tl.float32)
    w = tl.load(w_ptr + tl.broadcast_to(col[None, :], (ROWS, BLOCK_C)), mask, 0.0).to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, 1) / C + eps)[:, None]
    n = x * rstd
    y = n * w
    if cos_ptr is not None:
        cos, sin = _angles(cos_ptr, sin_ptr, row, N, C, R, BLOCK_C)
        y = _turn(y, cos, sin, ROWS, BLOCK_C)
    tl.store(y_ptr + at, y, mask)
    if tx_ptr is not None:
        ty = rms_jacobian(tx, n, rstd, C) * w
        if cos_ptr is not None:
            ty = _turn(ty, cos, sin, ROWS, BLOCK_C)
        tl.store(ty_ptr + at, ty, mask)


@triton.jit(do_not_specialize=["N"])
def _norm_rope_backward_kernel(
    dy_ptr, x_ptr,              # [B * N, C]
    w_ptr,                      # [C]
    cos_ptr, sin_ptr,           # [N, R], or None
    dx_ptr,                     # [B * N, C]
    dw_ptr,                     # [B, N / CHUNK, C] fp32
    N, eps,
    C: tl.constexpr, R: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):
    chunk, clip = tl.program_id(0), tl.program_id(1).to(tl.int64)
    col = tl.arange(0, BLOCK_C)
    w = tl.load(w_ptr + col, col < C, 0.0).to(tl.float32)[None, :]
    dw = tl.zeros([ROWS, BLOCK_C], tl.float32)
    for first in tl.range(chunk * CHUNK, tl.minimum(N, (chunk + 1) * CHUNK), ROWS, num_stages=2):
        row = first + tl.arange(0, ROWS)
        at = (clip * N + row)[:, None] * C + col[None, :]
        mask = (row < N)[:, None] & (col < C)[None, :]
        x = tl.load(x_ptr + at, mask, 0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask, 0.0).to(tl.float32)
        if cos_ptr is not None:
            cos, sin = _angles(cos_ptr, sin_ptr, row, N, C, R, BLOCK_C)
            dy = _turn(dy, cos, -sin, ROWS, BLOCK_C)
        rstd = tl.rsqrt(tl.sum(x * x, 1) / C + eps)[:, None]
        n = x * rstd
        tl.store(dx_ptr + at, rms_jacobian(dy * w, n, rstd, C), mask)
        dw += dy * n
    tl.store(dw_ptr + (clip * tl.num_programs(0) + chunk) * C + col, tl.sum(dw, 0), col < C)


def norm_rope(x: Tensor, w: Tensor, cos: Tensor | None, sin: Tensor | None, eps: float) -> Tensor:
    """y, contiguous, in x's dtype."""
    x, w, cos, sin = _inputs("norm_rope", x, w, cos, sin)
    y = torch.empty_like(x)
    _launch(x, None, w, cos, sin, y, None, eps)
    return y


def norm_rope_jvp(x: Tensor, tx: Tensor, w: Tensor, cos: Tensor | None, sin: Tensor | None,
                  eps: float) -> tuple[Tensor, Tensor]:
    """(y, ty), contiguous, in x's dtype."""
    x, w, cos, sin, tx = _inputs("norm_rope_jvp", x, w, cos, sin, tx)
    y, ty = torch.empty_like(x), torch.empty_like(x)
    _launch(x, tx, w, cos, sin, y, ty, eps)
    return y, ty


def _inputs(op, x, w, cos, sin, *more) -> list[Tensor | None]:
    """Contiguous; float64 tables become float32."""
    cos, sin = (None, None) if cos is None else (cos.float(), sin.float())
    return contiguous(op, x, w, cos, sin, *more)


def _launch(x, tx, w, cos, sin, y, ty, eps) -> None:
    B, N, C = x.shape
    tile = whole_rows(C)
    R = 1 if cos is None else cos.shape[1]
    _norm_rope_kernel[triton.cdiv(N, tile["ROWS"]), B](x, tx, w, cos, sin, y, ty, N, eps, R=R, **tile)


def norm_rope_backward(dy: Tensor, x: Tensor, w: Tensor, cos: Tensor | None, sin: Tensor | None,
                       eps: float) -> tuple[Tensor, Tensor]:
    """(dx, dw) from the cotangent of y; dw in w's dtype."""
    x, w, cos, sin, dy = _inputs("norm_rope_backward", x, w, cos, sin, dy)
    B, N, C = x.shape
    R, chunks = 1 if cos is None else cos.shape[1], triton.cdiv(N, CHUNK)
    dx = torch.empty_like(x)
    dw = torch.empty(B, chunks, C, dtype=torch.float32, device=x.device)
    _norm_rope_backward_kernel[chunks, B](
        dy, x, w, cos, sin, dx, dw, N, eps, R=R, CHUNK=CHUNK, **whole_rows(C, 1024))
    return dx, dw.sum((0, 1)).to(w.dtype)
