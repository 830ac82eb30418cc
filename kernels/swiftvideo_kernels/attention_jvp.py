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
from triton.tools.tensor_descriptor import TensorDescriptor

from swiftvideo_kernels.tiles import Tile, tile

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def rows_of(x, clip, head, first, end, base, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
            BLOCK_D: tl.constexpr, WHOLE: tl.constexpr, TMA: tl.constexpr):
    """Rows first..first + BLOCK of one head, [BLOCK, BLOCK_D], zero at and past row `end` and column WIDTH.

    x is a descriptor of (B, H, N, D) if TMA, else a pointer with the head at `base`.  WHOLE: no row is past the end.
    """
    if TMA:
        return x.load([clip, head, first, 0]).reshape(BLOCK, BLOCK_D)
    row = tl.arange(0, BLOCK)
    col = tl.arange(0, BLOCK_D)
    at = x + (base + tl.cast(first, tl.int64) * stride) + (row * stride)[:, None] + col[None, :]
    if WHOLE and WIDTH == BLOCK_D:
        return tl.load(at)
    return tl.load(at, mask=(first + row < end)[:, None] & (col < WIDTH)[None, :], other=0.0)


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
def kept(row, col, M, CAUSAL: tl.constexpr):
    """Which scores of a ragged or diagonal block count."""
    keep = (col < M)[None, :]
    if CAUSAL:
        keep = keep & (col[None, :] <= row[:, None])
    return keep


@triton.jit
def _over_keys(
    acc_o, acc_to, m, l, l_rounded, r,                          # the running sums of (2)
    q, tq, k_src, tk_src, v_src, tv_src,
    clip, group, k_base, v_base, stride_k, stride_v,
    row, begin, end, M, scale,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr, CAUSAL: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr, SPECIALISED: tl.constexpr,
):
    """Add the key blocks begin, begin + BLOCK_N, .. < end.  WHOLE: none of them needs a mask."""
    for first in tl.range(begin, end, BLOCK_N, num_stages=STAGES, warp_specialize=SPECIALISED):
        k = rows_of(k_src, clip, group, first, M, k_base, stride_k, WIDTH, BLOCK_N, BLOCK_D, WHOLE, TMA)
        tk = None
        if tk_src is not None:
            tk = rows_of(tk_src, clip, group, first, M, k_base, stride_k, WIDTH, BLOCK_N, BLOCK_D, WHOLE, TMA)
        s, ts = scores(q, tq, k, tk)
        if not WHOLE:
            s = tl.where(kept(row, first + tl.arange(0, BLOCK_N), M, CAUSAL), s, -float("inf"))

        m_new = tl.maximum(m, tl.max(s, 1) * (scale * LOG2E))
        alpha = tl.exp2(m - m_new)
        p = tl.exp2(s * (scale * LOG2E) - m_new[:, None])
        p_rounded = p.to(q.dtype)
        l = l * alpha + tl.sum(p, 1)
        l_rounded = l_rounded * alpha + tl.sum(p_rounded.to(tl.float32), 1)
        m = m_new

        v = rows_of(v_src, clip, group, first, M, v_base, stride_v, WIDTH, BLOCK_N, BLOCK_D, WHOLE, TMA)
        acc_o = tl.dot(p_rounded, v, acc_o * alpha[:, None], input_precision="ieee")
        acc_to = acc_to * alpha[:, None]
        if ts is not None:
            h = (p * (ts * scale)).to(q.dtype)
            r = r * alpha + tl.sum(h.to(tl.float32), 1)
            acc_to = tl.dot(h, v, acc_to, input_precision="ieee")
        if tv_src is not None:
            tv = rows_of(tv_src, clip, group, first, M, v_base, stride_v, WIDTH, BLOCK_N, BLOCK_D, WHOLE, TMA)
            acc_to = tl.dot(p_rounded, tv, acc_to, input_precision="ieee")
    return acc_o, acc_to, m, l, l_rounded, r


@triton.jit(do_not_specialize=["N", "M"])
def _attention_jvp_kernel(
    q_src, tq_src, k_src, tk_src, v_src, tv_src,                # pointers, or descriptors if TMA; a tangent may be None
    o_ptr, to_ptr,                                              # [B, N, H, D]
    lse_ptr,                                                    # [B, H, N]
    cu_q_ptr, cu_k_ptr,                                         # [sequences + 1] int32, or None
    q_clip, q_head, q_row, k_clip, k_head, k_row, v_clip, v_head, v_row,        # strides
    H, GROUP, N, M, scale,                                      # GROUP query heads share a key head
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr, SPECIALISED: tl.constexpr,
):
    block, head = tl.program_id(0), tl.program_id(1)
    clip, group = tl.program_id(2), tl.program_id(1) // GROUP
    if CAUSAL:
        block = tl.num_programs(0) - 1 - block                  # the longest rows first
    q_base = clip.to(tl.int64) * q_clip + head.to(tl.int64) * q_head
    k_base = clip.to(tl.int64) * k_clip + group.to(tl.int64) * k_head
    v_base = clip.to(tl.int64) * v_clip + group.to(tl.int64) * v_head
    token = clip.to(tl.int64) * N                               # this sequence's first row in o
    lse_base = (clip.to(tl.int64) * H + head) * N
    if cu_q_ptr is not None:
        start_q, start_k = tl.load(cu_q_ptr + clip), tl.load(cu_k_ptr + clip)
        token = start_q.to(tl.int64)
        lse_base = head.to(tl.int64) * N + token
        N = tl.load(cu_q_ptr + clip + 1) - start_q
        M = tl.load(cu_k_ptr + clip + 1) - start_k
        q_base = token * q_row + head.to(tl.int64) * q_head
        k_base = start_k.to(tl.int64) * k_row + group.to(tl.int64) * k_head
        v_base = start_k.to(tl.int64) * v_row + group.to(tl.int64) * v_head
        if block * BLOCK_M >= N:
            return

    first = block * BLOCK_M
    row = first + tl.arange(0, BLOCK_M)
    q = rows_of(q_src, clip, head, first, N, q_base, q_row, WIDTH, BLOCK_M, BLOCK_D, False, TMA)
    tq = None
    if tq_src is not None:
        tq = rows_of(tq_src, clip, head, first, N, q_base, q_row, WIDTH, BLOCK_M, BLOCK_D, False, TMA)
    acc_o = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    acc_to = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    m = tl.full([BLOCK_M], -float("inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    l_rounded = tl.zeros([BLOCK_M], tl.float32)
    r = tl.zeros([BLOCK_M], tl.float32)

    end = M
    whole = M // BLOCK_N * BLOCK_N
    if CAUSAL:
        end = tl.minimum(M, first + BLOCK_M)
        whole = tl.minimum(M, first) // BLOCK_N * BLOCK_N
    acc_o, acc_to, m, l, l_rounded, r = _over_keys(
        acc_o, acc_to, m, l, l_rounded, r, q, tq, k_src, tk_src, v_src, tv_src,
        clip, group, k_base, v_base, k_row, v_row, row, 0, whole, M, scale,
        WIDTH, BLOCK_N, BLOCK_D, True, CAUSAL, TMA, STAGES, SPECIALISED)
    acc_o, acc_to, m, l, l_rounded, r = _over_keys(
        acc_o, acc_to, m, l, l_rounded, r, q, tq, k_src, tk_src, v_src, tv_src,
        clip, group, k_base, v_base, k_row, v_row, row, whole, end, M, scale,
        WIDTH, BLOCK_N, BLOCK_D, False, CAUSAL, TMA, 1, False)

    some = l > 0                                                # no keys at all: o = to = 0, lse = -inf
    inverse = 1 / tl.where(some, l_rounded, 1.0)
    o = acc_o * inverse[:, None]
    to = (acc_to - (r * inverse)[:, None] * acc_o) * inverse[:, None]
    col = tl.arange(0, BLOCK_D)
    at = ((token + row) * H + head)[:, None] * WIDTH + col[None, :]
    mask = (row < N)[:, None] & (col < WIDTH)[None, :]
    tl.store(o_ptr + at, o.to(o_ptr.dtype.element_ty), mask)
    tl.store(to_ptr + at, to.to(to_ptr.dtype.element_ty), mask)
    lse = (m + tl.log2(tl.where(some, l, 1.0))) / LOG2E
    tl.store(lse_ptr + lse_base + row, lse, row < N)


def attention_jvp(q: Tensor, tq: Tensor | None, k: Tensor, tk: Tensor | None, v: Tensor, tv: Tensor | None,
                  scale: float, causal: bool, *, cu_q: Tensor | None = None, cu_k: Tensor | None = None,
                  max_q: int | None = None, at: Tile | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(o, to, lse).  o and to lie in memory as (B, N, H, D) and are returned as (B, H, N, D) views.

    A tangent with other strides than its primal is copied.  max_q: the longest packed sequence, N if not known.
    at: a tile other than the table's.  Shapes and dtypes are checked by the op.
    """
    B, H, N, D = q.shape
    G, M = k.shape[1:3]
    at = at or tile("attention_jvp", q, max(16, triton.next_power_of_2(D)))
    block_d = max(16, triton.next_power_of_2(D))
    tq, tk, v, tv = like(tq, q), like(tk, k), v, like(tv, v)
    o, to = (torch.empty(B, N, H, D, dtype=q.dtype, device=q.device).transpose(1, 2) for _ in range(2))
    lse = torch.empty(B, H, N, dtype=torch.float32, device=q.device)
    grid = triton.cdiv(N if max_q is None else max_q, at.block_m), H, B if cu_q is None else len(cu_q) - 1
    sources = [described(x, at.block_m if x is q or x is tq else at.block_n, block_d) if at.descriptors else x
               for x in (q, tq, k, tk, v, tv)]
    _attention_jvp_kernel[grid](
        *sources, o, to, lse, cu_q, cu_k, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], H, H // G, N, M, scale,
        WIDTH=D, BLOCK_M=at.block_m, BLOCK_N=at.block_n, BLOCK_D=block_d, CAUSAL=causal, TMA=at.descriptors,
        STAGES=at.stages, SPECIALISED=at.specialised, num_warps=at.warps, num_stages=at.stages)
    return o, to, lse


def like(tx: Tensor | None, x: Tensor) -> Tensor | None:
    """tx in x's memory layout, so that one set of strides serves both.  A copy only where they differ."""
    if tx is None or all(size == 1 or a == b for size, a, b in zip(x.shape, tx.stride(), x.stride(), strict=True)):
        return tx
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(tx)


def described(x: Tensor | None, block: int, block_d: int) -> TensorDescriptor | None:
    """A TMA view of x in blocks of `block` rows of one head."""
    return x if x is None else TensorDescriptor(x, x.shape, x.stride(), [1, 1, block, block_d])
