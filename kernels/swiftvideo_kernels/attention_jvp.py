"""Softmax attention and its tangent in one pass over the keys.

    S  = c q k'         tS = c (tq k' + q tk')
    o  = P v            P  = softmax S
    to = P tv + (P∘tS) v - diag(rowsum(P∘tS)) o                                                    (1)

Per query row, with running max m, p = exp(S - m) and h = p∘tS, one pass keeps

    l = Σ p    r = Σ h    O = Σ p v    A = Σ h v + p tv        O, A, l, r all times exp(m - m') when m grows
    o = O/l    to = (A - (r/l) O)/l    lse = m + log l                                             (2)

tS is not exponentiated, so m cancels exactly in (2) and counts as a constant.  Both terms of A go into one
accumulator by two dots.  Six matrix products where the primal has two; terms without a tangent are compiled out.
p and h enter the products rounded to the storage dtype, and (2) divides by the sums of the *rounded* p and h: a mean
offset in v then cancels exactly (kernels/README.md).  lse takes the unrounded sum.

Flops: 12 B H N M D.  Arithmetic fp32; m and S in base 2 inside.
Shapes: B clips, H query heads, G key heads (H % G == 0), N queries, M keys, D head width.
    q tq (B, H, N, D)   k tk v tv (B, G, M, D)   any strides, the last one 1   ->   o to (B, H, N, D)   lse (B, H, N)
Packed sequences: B = 1, and sequence i owns queries cu_q[i]:cu_q[i+1] and keys cu_k[i]:cu_k[i+1].
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swiftvideo_kernels.tiles import Tile, tile

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def source(x_ptr, base, rows, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
           TMA: tl.constexpr):
    """One head of x, [rows, WIDTH], as something `block_of` reads: a tensor descriptor, or a pointer."""
    if x_ptr is None:
        x = None
    elif TMA:
        x = tl.make_tensor_descriptor(x_ptr + base, [rows, WIDTH], [stride, 1], [BLOCK, BLOCK_D])
    else:
        x = x_ptr + base
    return x


@triton.jit
def block_of(x, first, rows, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
             TMA: tl.constexpr):
    """Rows first .. first + BLOCK of a source: [BLOCK, BLOCK_D], zero past the last row and column."""
    if TMA:
        block = x.load([first, 0])
    else:
        row = tl.arange(0, BLOCK)
        col = tl.arange(0, BLOCK_D)
        at = x + tl.cast(first, tl.int64) * stride + (row * stride)[:, None] + col[None, :]
        mask = (first + row < rows)[:, None]
        if WIDTH < BLOCK_D:
            mask = mask & (col < WIDTH)[None, :]
        block = tl.load(at, mask, 0.0)
    return block


@triton.jit
def scores(q, tq, k, tk):
    """S / c and tS / c: [BLOCK_M, BLOCK_N].  tS is None where neither q nor k has a tangent."""
    s = tl.dot(q, k.T, input_precision="ieee")
    ts = None
    if tq is not None:
        ts = tl.dot(tq, k.T, input_precision="ieee")
        if tk is not None:
            ts = tl.dot(q, tk.T, ts, input_precision="ieee")
    elif tk is not None:
        ts = tl.dot(q, tk.T, input_precision="ieee")
    return s, ts


@triton.jit
def masked(s, row, col, M, CAUSAL: tl.constexpr):
    """s, with -inf where column `col` is past the last key or, if CAUSAL, past row `row`."""
    keep = (col < M)[None, :]
    if CAUSAL:
        keep = keep & (col[None, :] <= row[:, None])
    return tl.where(keep, s, -float("inf"))


@triton.jit(do_not_specialize=["N", "M"])
def _attention_jvp_kernel(
    q_ptr, tq_ptr, k_ptr, tk_ptr, v_ptr, tv_ptr,                # a tangent may be None
    o_ptr, to_ptr,                                              # [B, N, H, D]
    lse_ptr,                                                    # [B, H, N]
    cu_q_ptr, cu_k_ptr,                                         # [sequences + 1] int32, or None
    q_clip, q_head, q_row, k_clip, k_head, k_row, v_clip, v_head, v_row,        # strides
    H, GROUP, N, M, scale,                                      # GROUP query heads share a key head
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr, TMA: tl.constexpr, SPECIALISED: tl.constexpr,
):
    block = tl.program_id(0)
    head, clip = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    group = head // GROUP
    if CAUSAL:
        block = tl.num_programs(0) - 1 - block                  # the longest rows first
    if cu_q_ptr is None:
        token, lse_base = clip * N, (clip * H + head) * N       # where o's rows and lse's begin
        q_base, k_base, v_base = clip * q_clip, clip * k_clip, clip * v_clip
    else:
        start_q, start_k = tl.load(cu_q_ptr + clip).to(tl.int64), tl.load(cu_k_ptr + clip).to(tl.int64)
        token, lse_base = start_q, head * N + start_q
        q_base, k_base, v_base = start_q * q_row, start_k * k_row, start_k * v_row
        N = (tl.load(cu_q_ptr + clip + 1) - start_q).to(tl.int32)
        M = (tl.load(cu_k_ptr + clip + 1) - start_k).to(tl.int32)
        if block * BLOCK_M >= N:
            return

    q_src = source(q_ptr, q_base + head * q_head, N, q_row, WIDTH, BLOCK_M, BLOCK_D, TMA)
    tq_src = source(tq_ptr, q_base + head * q_head, N, q_row, WIDTH, BLOCK_M, BLOCK_D, TMA)
    k_src = source(k_ptr, k_base + group * k_head, M, k_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
    tk_src = source(tk_ptr, k_base + group * k_head, M, k_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
    v_src = source(v_ptr, v_base + group * v_head, M, v_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
    tv_src = source(tv_ptr, v_base + group * v_head, M, v_row, WIDTH, BLOCK_N, BLOCK_D, TMA)

    first_row = block * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    q = block_of(q_src, first_row, N, q_row, WIDTH, BLOCK_M, BLOCK_D, TMA)
    tq = None
    if tq_src is not None:
        tq = block_of(tq_src, first_row, N, q_row, WIDTH, BLOCK_M, BLOCK_D, TMA)
    acc_o = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    acc_to = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    m = tl.full([BLOCK_M], -float("inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    l_rounded = tl.zeros([BLOCK_M], tl.float32)
    r = tl.zeros([BLOCK_M], tl.float32)

    end, whole = M, M // BLOCK_N * BLOCK_N                      # keys before `whole` need no mask
    if CAUSAL:
        end = tl.minimum(M, first_row + BLOCK_M)
        whole = tl.minimum(M, first_row) // BLOCK_N * BLOCK_N
    for first in tl.range(0, end, BLOCK_N, warp_specialize=SPECIALISED):
        k = block_of(k_src, first, M, k_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
        tk = None
        if tk_src is not None:
            tk = block_of(tk_src, first, M, k_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
        s, ts = scores(q, tq, k, tk)
        if SPECIALISED:                                         # triton does not specialise a loop with a branch
            s = masked(s, row, first + tl.arange(0, BLOCK_N), M, CAUSAL)
        elif first >= whole:
            s = masked(s, row, first + tl.arange(0, BLOCK_N), M, CAUSAL)

        m_new = tl.maximum(m, tl.max(s, 1) * (scale * LOG2E))
        alpha = tl.exp2(m - m_new)
        p = tl.exp2(s * (scale * LOG2E) - m_new[:, None])
        m = m_new
        p_rounded = p.to(q.dtype)
        l_rounded = l_rounded * alpha + tl.sum(p_rounded.to(tl.float32), 1)
        l = l * alpha + tl.sum(p, 1)
        if ts is not None:
            h_rounded = (p * (ts * scale)).to(q.dtype)
            r = r * alpha + tl.sum(h_rounded.to(tl.float32), 1)
        acc_o = acc_o * alpha[:, None]
        acc_to = acc_to * alpha[:, None]

        v = block_of(v_src, first, M, v_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
        acc_o = tl.dot(p_rounded, v, acc_o, input_precision="ieee")
        if ts is not None:
            acc_to = tl.dot(h_rounded, v, acc_to, input_precision="ieee")
        if tv_src is not None:
            tv = block_of(tv_src, first, M, v_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
            acc_to = tl.dot(p_rounded, tv, acc_to, input_precision="ieee")

    some = l > 0                                                # no keys at all: o = to = 0, lse = -inf
    inverse = 1 / tl.where(some, l_rounded, 1.0)
    o = acc_o * inverse[:, None]
    to = (acc_to - (r * inverse)[:, None] * acc_o) * inverse[:, None]
    col = tl.arange(0, BLOCK_D)
    at = ((token + row) * H + head)[:, None] * WIDTH + col[None, :]
    mask = (row < N)[:, None] & (col < WIDTH)[None, :]
    tl.store(o_ptr + at, o.to(o_ptr.dtype.element_ty), mask)
    tl.store(to_ptr + at, to.to(to_ptr.dtype.element_ty), mask)
    tl.store(lse_ptr + lse_base + row, (m + tl.log2(tl.where(some, l, 1.0))) / LOG2E, row < N)


def attention_jvp(q: Tensor, tq: Tensor | None, k: Tensor, tk: Tensor | None, v: Tensor, tv: Tensor | None,
                  scale: float, causal: bool, *, cu_q: Tensor | None = None, cu_k: Tensor | None = None,
                  max_q: int | None = None, at: Tile | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(o, to, lse).  o and to lie in memory as (B, N, H, D) and are returned as (B, H, N, D) views.

    A tangent with other strides than its primal is copied.  max_q: the longest packed sequence, N if not known.
    at: a tile other than the table's.  Shapes and dtypes are checked by the op.
    """
    at, (tq, tk, tv), shape, options = layout("attention_jvp", q, tq, k, tk, v, tv, causal, at)
    B, H, N, D = q.shape
    o, to = (torch.empty(B, N, H, D, dtype=q.dtype, device=q.device).transpose(1, 2) for _ in range(2))
    lse = torch.empty(B, H, N, dtype=torch.float32, device=q.device)
    grid = triton.cdiv(N if max_q is None else max_q, at.block_m), H, B if cu_q is None else len(cu_q) - 1
    _attention_jvp_kernel[grid](
        q, tq, k, tk, v, tv, o, to, lse, cu_q, cu_k, *shape, scale, **options)
    return o, to, lse


def layout(kernel: str, q: Tensor, tq: Tensor | None, k: Tensor, tk: Tensor | None, v: Tensor, tv: Tensor | None,
           causal: bool, at: Tile | None) -> tuple[Tile, tuple[Tensor | None, ...], tuple[int, ...], dict]:
    """What both attention kernels are launched with: tile, tangents in their primals' layout, strides and sizes,
    options."""
    block_d = max(16, triton.next_power_of_2(q.shape[-1]))
    tq, tk, tv = _like(tq, q), _like(tk, k), _like(tv, v)
    at = at or tile(kernel, q.dtype, q.device, block_d, all(_tma_reads(x) for x in (q, tq, k, tk, v, tv)))
    if at.descriptors and q.is_cuda:
        triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=q.device))
    (_, H, N, D), (G, M) = q.shape, k.shape[1:3]
    shape = *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], H, H // G, N, M
    options = dict(
        WIDTH=D, BLOCK_M=at.block_m, BLOCK_N=at.block_n, BLOCK_D=block_d, CAUSAL=causal, TMA=at.descriptors,
        SPECIALISED=at.specialised, num_warps=at.warps, num_stages=at.stages)
    return at, (tq, tk, tv), shape, options


def _tma_reads(x: Tensor | None) -> bool:
    """Whether x's base and rows are on the 16-byte grid of the copy engine."""
    return x is None or x.data_ptr() % 16 == 0 and all(
        size == 1 or stride * x.element_size() % 16 == 0 for size, stride in zip(x.shape[:-1], x.stride()))


def _like(tx: Tensor | None, x: Tensor) -> Tensor | None:
    """tx in x's memory layout, so that one set of strides serves both.  A copy only where they differ."""
    if tx is None or all(size == 1 or a == b for size, a, b in zip(x.shape, tx.stride(), x.stride(), strict=True)):
        return tx
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(tx)
