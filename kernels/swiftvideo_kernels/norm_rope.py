"""RMSNorm over all channels and rotary embedding, with tangent and gradient, each in one pass.

    n = x r,  r = 1 / sqrt(mean x² + eps)        y = R (n w)
    tn = r (tx - n mean(n tx))                   ty = R (tn w)                                     (1)
    dn = (R' dy) w,   dx = r (dn - n mean(n dn)),   dw = Σ (R' dy) n

R rotates each (even, odd) pair of a head by its token's angle; R' rotates back.  (1) is J tx with
J = r (I - nn'/C), symmetric, so the gradient is J dn: `rms_jacobian` computes both.

Traffic: jvp reads x, tx, writes y, ty; backward reads dy, x, writes dx; cos and sin once per head, from L1.
Arithmetic fp32.  dw: partial sums of CHUNK rows, added in a fixed order.
Shapes: x tx y ty (B, N, C), one dtype.  w (C).  cos sin (N, R), R = D / 2, or None: no rotation.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swiftvideo_kernels.storage import columns, contiguous, part, row_dot, row_tile

CHUNK = 64          # rows summed into dw by one program


@triton.jit
def rms_jacobian(u, n, mean_nu, rstd):
    """Returns J u of one row part, (1)."""
    return rstd * (u - n * mean_nu)


@triton.jit
def _rotate(y, cos_ptr, sin_ptr, FIRST: tl.constexpr, row, N, sign, C: tl.constexpr, R: tl.constexpr,
            ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Rotates each pair (a, b) of a row part that begins at channel FIRST: (a cos - b sin, a sin + b cos)."""
    if cos_ptr is not None:
        pair = FIRST // 2 + tl.arange(0, BLOCK // 2)
        at = row[:, None] * R + (pair % R)[None, :]
        mask = (row < N)[:, None] & (pair < C // 2)[None, :]
        cos = tl.load(cos_ptr + at, mask, 0.0).to(tl.float32)
        sin = sign * tl.load(sin_ptr + at, mask, 0.0).to(tl.float32)
        a, b = tl.split(tl.reshape(y, (ROWS, BLOCK // 2, 2)))
        y = tl.reshape(tl.join(a * cos - b * sin, a * sin + b * cos), (ROWS, BLOCK))
    return y


@triton.jit(do_not_specialize=["N"])
def _norm_rope_kernel(
    x_ptr, tx_ptr,              # [B * N, C]; tx and ty None: primal only
    w_ptr,                      # [C]
    cos_ptr, sin_ptr,           # [N, R], or None
    y_ptr, ty_ptr,              # [B * N, C]
    N, eps,
    C: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = (tl.program_id(1).to(tl.int64) * N + row)[:, None] * C
    col_a, mask_a = columns(0, row, N, C, ROWS, BLOCK_A)
    col_b, mask_b = columns(BLOCK_A, row, N, C, ROWS, BLOCK_B)

    a, b = part(x_ptr + at, col_a, mask_a), part(x_ptr + at, col_b, mask_b)
    if tx_ptr is not None:                                      # issued before x's sum and any store
        ta, tb = part(tx_ptr + at, col_a, mask_a), part(tx_ptr + at, col_b, mask_b)
    rstd = tl.rsqrt(row_dot(a, b, a, b) / C + eps)
    a = a * rstd
    y = _rotate(a * part(w_ptr, col_a, mask_a), cos_ptr, sin_ptr, 0, row, N, 1.0, C, R, ROWS, BLOCK_A)
    tl.store(y_ptr + at + col_a, y, mask_a)
    if BLOCK_B > 0:
        b = b * rstd
        y = b * part(w_ptr, col_b, mask_b)
        y = _rotate(y, cos_ptr, sin_ptr, BLOCK_A, row, N, 1.0, C, R, ROWS, BLOCK_B)
        tl.store(y_ptr + at + col_b, y, mask_b)
    if tx_ptr is not None:
        mean_nt = row_dot(ta, tb, a, b) / C
        ty = rms_jacobian(ta, a, mean_nt, rstd) * part(w_ptr, col_a, mask_a)
        ty = _rotate(ty, cos_ptr, sin_ptr, 0, row, N, 1.0, C, R, ROWS, BLOCK_A)
        tl.store(ty_ptr + at + col_a, ty, mask_a)
        if BLOCK_B > 0:
            ty = rms_jacobian(tb, b, mean_nt, rstd) * part(w_ptr, col_b, mask_b)
            ty = _rotate(ty, cos_ptr, sin_ptr, BLOCK_A, row, N, 1.0, C, R, ROWS, BLOCK_B)
            tl.store(ty_ptr + at + col_b, ty, mask_b)


@triton.jit(do_not_specialize=["N"])
def _norm_rope_backward_kernel(
    dy_ptr, x_ptr,              # [B * N, C]
    w_ptr,                      # [C]
    cos_ptr, sin_ptr,           # [N, R], or None
    dx_ptr,                     # [B * N, C]
    dw_ptr,                     # [B, N / CHUNK, C] fp32
    N, eps,
    C: tl.constexpr, R: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    chunk, clip = tl.program_id(0), tl.program_id(1).to(tl.int64)
    dw_a = tl.zeros([ROWS, BLOCK_A], tl.float32)
    if BLOCK_B > 0:
        dw_b = tl.zeros([ROWS, BLOCK_B], tl.float32)
    for first in tl.range(chunk * CHUNK, tl.minimum(N, (chunk + 1) * CHUNK), ROWS, num_stages=2):
        row = first + tl.arange(0, ROWS)
        at = (clip * N + row)[:, None] * C
        col_a, mask_a = columns(0, row, N, C, ROWS, BLOCK_A)
        col_b, mask_b = columns(BLOCK_A, row, N, C, ROWS, BLOCK_B)
        a, b = part(x_ptr + at, col_a, mask_a), part(x_ptr + at, col_b, mask_b)
        dy_a, dy_b = part(dy_ptr + at, col_a, mask_a), part(dy_ptr + at, col_b, mask_b)
        rstd = tl.rsqrt(row_dot(a, b, a, b) / C + eps)
        a = a * rstd
        dy_a = _rotate(dy_a, cos_ptr, sin_ptr, 0, row, N, -1.0, C, R, ROWS, BLOCK_A)
        dn_a = dy_a * part(w_ptr, col_a, mask_a)
        dw_a += dy_a * a
        dn_b = None
        if BLOCK_B > 0:
            b = b * rstd
            dy_b = _rotate(dy_b, cos_ptr, sin_ptr, BLOCK_A, row, N, -1.0, C, R, ROWS, BLOCK_B)
            dn_b = dy_b * part(w_ptr, col_b, mask_b)
            dw_b += dy_b * b
        mean_n = row_dot(dn_a, dn_b, a, b) / C
        tl.store(dx_ptr + at + col_a, rms_jacobian(dn_a, a, mean_n, rstd), mask_a)
        if BLOCK_B > 0:
            tl.store(dx_ptr + at + col_b, rms_jacobian(dn_b, b, mean_n, rstd), mask_b)
    out = (clip * tl.num_programs(0) + chunk) * C
    tl.store(dw_ptr + out + tl.arange(0, BLOCK_A), tl.sum(dw_a, 0))
    if BLOCK_B > 0:
        rest = BLOCK_A + tl.arange(0, BLOCK_B)
        tl.store(dw_ptr + out + rest, tl.sum(dw_b, 0), rest < C)


def norm_rope(x: Tensor, w: Tensor, cos: Tensor | None, sin: Tensor | None, eps: float) -> Tensor:
    """Returns y, contiguous, in x's dtype."""
    x, w, cos, sin = _inputs("norm_rope", x, w, cos, sin)
    y = torch.empty_like(x)
    _launch(x, None, w, cos, sin, y, None, eps)
    return y


def norm_rope_jvp(x: Tensor, tx: Tensor, w: Tensor, cos: Tensor | None, sin: Tensor | None,
                  eps: float) -> tuple[Tensor, Tensor]:
    """Returns (y, ty), contiguous, in x's dtype."""
    x, w, cos, sin, tx = _inputs("norm_rope_jvp", x, w, cos, sin, tx)
    y, ty = torch.empty_like(x), torch.empty_like(x)
    _launch(x, tx, w, cos, sin, y, ty, eps)
    return y, ty


def _inputs(op, x, w, cos, sin, *more) -> list[Tensor | None]:
    """Returns contiguous tensors, cos and sin in float32."""
    cos, sin = (None, None) if cos is None else (cos.float(), sin.float())
    return contiguous(op, x, w, cos, sin, *more)


def _launch(x, tx, w, cos, sin, y, ty, eps) -> None:
    B, N, C = x.shape
    tile = row_tile(C, 1280)
    R = 1 if cos is None else cos.shape[1]
    _norm_rope_kernel[triton.cdiv(N, tile["ROWS"]), B](x, tx, w, cos, sin, y, ty, N, eps, R=R, **tile)


def norm_rope_backward(dy: Tensor, x: Tensor, w: Tensor, cos: Tensor | None, sin: Tensor | None,
                       eps: float) -> tuple[Tensor, Tensor]:
    """Returns (dx, dw) from dy, the cotangent of y; dw in w's dtype."""
    x, w, cos, sin, dy = _inputs("norm_rope_backward", x, w, cos, sin, dy)
    B, N, C = x.shape
    R, chunks = 1 if cos is None else cos.shape[1], triton.cdiv(N, CHUNK)
    dx = torch.empty_like(x)
    dw = torch.empty(B, chunks, C, dtype=torch.float32, device=x.device)
    _norm_rope_backward_kernel[chunks, B](
        dy, x, w, cos, sin, dx, dw, N, eps, R=R, CHUNK=CHUNK, **row_tile(C, 1024))
    return dx, dw.sum((0, 1)).to(w.dtype)
