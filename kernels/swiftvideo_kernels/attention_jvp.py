"""Softmax attention and its tangent in one pass over the keys.

    S  = c q k'         tS = c (tq k' + q tk')
    o  = P v            P  = softmax S
    to = P tv + (P∘tS) v - diag(rowsum(P∘tS)) o                                                    (1)

Per query row, with running max m, p = exp(S - m) and h = p∘tS, one pass keeps

    l = Σ p    r = Σ h    O = Σ p v    A = Σ h v + p tv        scaled by exp(m - m') when m grows to m'
    o = O/l    to = (A - (r/l) O)/l    lse = m + log l                                             (2)

tS is not exponentiated, so m cancels exactly in (2) and is treated as a constant.  The two terms of A share
one accumulator.  Six matrix products, where the primal has two; terms without a tangent are compiled out.
The products use p and h rounded to the storage dtype, and (2) divides by sums of the *rounded* p and h: a
mean offset in v then cancels exactly (kernels/README.md).  lse uses the unrounded sum.

Flops: 12 B H N M D.  Arithmetic fp32; m and S in base 2 inside.
Shapes: B clips, H query heads, G key heads (H % G == 0), N queries, M keys, D head width.
    q tq (B, H, N, D)   k tk v tv (B, G, M, D)   ->   o to (B, H, N, D)   lse (B, H, N)      unit last strides
Packed sequences: B = 1, and sequence i owns queries cu_q[i]:cu_q[i+1] and keys cu_k[i]:cu_k[i+1].
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swiftvideo_kernels.attention import attention
from swiftvideo_kernels.attention_tangent import attention_tangent
from swiftvideo_kernels.blocks import (
    LOG2E,
    launch_arguments,
    load_block,
    masked,
    rounded,
    scores,
    source,
    tma_aligned,
)
from swiftvideo_kernels.tiles import Tile, tile_for


@triton.jit(do_not_specialize=["N", "M"])
def _attention_jvp_kernel(
    q_ptr, tq_ptr, k_ptr, tk_ptr, v_ptr, tv_ptr,                # a tangent may be None
    o_ptr, to_ptr,                                              # [B, N, H, D]
    lse_ptr,                                                    # [B, H, N]
    cu_q_ptr, cu_k_ptr,                                         # [sequences + 1] int32, or None
    q_clip, q_head, q_row, k_clip, k_head, k_row, v_clip, v_head, v_row,        # strides
    H, GROUP, N, M, scale,                                      # GROUP query heads share a key head
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr, TMA: tl.constexpr, PAIRS: tl.constexpr,
):
    block = tl.program_id(0)
    head, clip = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    group = head // GROUP
    if CAUSAL:
        block = tl.num_programs(0) - 1 - block                  # the longest rows first
    if cu_q_ptr is None:
        token, lse_base = clip * N, (clip * H + head) * N       # first row of o and of lse
        q_base, k_base, v_base = clip * q_clip, clip * k_clip, clip * v_clip
    else:
        start_q, start_k = tl.load(cu_q_ptr + clip).to(tl.int64), tl.load(cu_k_ptr + clip).to(tl.int64)
        token, lse_base = start_q, head * N + start_q
        N = (tl.load(cu_q_ptr + clip + 1) - start_q).to(tl.int32)
        M = (tl.load(cu_k_ptr + clip + 1) - start_k).to(tl.int32)
        q_base, k_base, v_base = tl.where(N > 0, start_q, 0) * q_row, start_k * k_row, start_k * v_row

    q_src = source(q_ptr, q_base + head * q_head, N, q_row, WIDTH, BLOCK_M, BLOCK_D, TMA)
    tq_src = source(tq_ptr, q_base + head * q_head, N, q_row, WIDTH, BLOCK_M, BLOCK_D, TMA)
    k_src = source(k_ptr, k_base + group * k_head, M, k_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
    tk_src = source(tk_ptr, k_base + group * k_head, M, k_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
    v_src = source(v_ptr, v_base + group * v_head, M, v_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
    tv_src = source(tv_ptr, v_base + group * v_head, M, v_row, WIDTH, BLOCK_N, BLOCK_D, TMA)

    first_row = block * BLOCK_M
    q = load_block(q_src, first_row, N, q_row, WIDTH, BLOCK_M, BLOCK_D, TMA)
    tq = None
    if tq_src is not None:
        tq = load_block(tq_src, first_row, N, q_row, WIDTH, BLOCK_M, BLOCK_D, TMA)
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
    if cu_q_ptr is not None:
        end = tl.where(first_row < N, end, 0)                   # the program is past its sequence's end
    for first in range(0, end, BLOCK_N):
        k = load_block(k_src, first, M, k_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
        tk = None
        if tk_src is not None:
            tk = load_block(tk_src, first, M, k_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
        s, ts = scores(q, tq, k, tk)
        if first >= whole:
            s = masked(s, first_row, first, M, CAUSAL)

        m_new = tl.maximum(m, tl.max(s, 1) * (scale * LOG2E))
        alpha = tl.exp2(m - m_new)
        p = tl.exp2(s * (scale * LOG2E) - m_new[:, None])
        m = m_new
        p_rounded, p_used = rounded(p, q, PAIRS)
        l_rounded = l_rounded * alpha + tl.sum(p_used, 1)
        l = l * alpha + tl.sum(p, 1)
        if ts is not None:
            h_rounded, h_used = rounded(p * (ts * scale), q, PAIRS)
            r = r * alpha + tl.sum(h_used, 1)
        acc_o = acc_o * alpha[:, None]
        acc_to = acc_to * alpha[:, None]

        v = load_block(v_src, first, M, v_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
        acc_o = tl.dot(p_rounded, v, acc_o, input_precision="tf32x3")
        if ts is not None:
            acc_to = tl.dot(h_rounded, v, acc_to, input_precision="tf32x3")
        if tv_src is not None:
            tv = load_block(tv_src, first, M, v_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
            acc_to = tl.dot(p_rounded, tv, acc_to, input_precision="tf32x3")

    some = l > 0                                                # without keys o = to = 0, lse = -inf
    inverse = 1 / tl.where(some, l_rounded, 1.0)
    o = acc_o * inverse[:, None]
    to = (acc_to - (r * inverse)[:, None] * acc_o) * inverse[:, None]
    row = first_row + tl.arange(0, BLOCK_M)
    col = tl.arange(0, BLOCK_D)
    at = ((token + row) * H + head)[:, None] * WIDTH + col[None, :]
    mask = (row < N)[:, None] & (col < WIDTH)[None, :]
    tl.store(o_ptr + at, o.to(o_ptr.dtype.element_ty), mask)
    tl.store(to_ptr + at, to.to(to_ptr.dtype.element_ty), mask)
    tl.store(lse_ptr + lse_base + row, (m + tl.log2(tl.where(some, l, 1.0))) / LOG2E, row < N)


def attention_jvp(q: Tensor, tq: Tensor | None, k: Tensor, tk: Tensor | None, v: Tensor, tv: Tensor | None,
                  scale: float, causal: bool, *, cu_q: Tensor | None = None, cu_k: Tensor | None = None,
                  max_q: int | None = None, tile: Tile | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (o, to, lse); o and to are (B, H, N, D) views of memory (B, N, H, D).

    On sm_90 the table selects attention_jvp_hopper's kernel, except for empty or expanded tensors and calls
    without a tangent.  Tensors that TMA cannot read are copied, and so are tangents whose strides differ from
    their primal's (this file's kernel, packed sequences).  max_q: longest packed sequence; None: N.  tile:
    overrides the table.  The op checks shapes and dtypes; ValueError for an unsupported packed head width.
    """
    tile = tile or tile_for("attention_jvp", q.dtype, q.device, q.shape[-1])
    if tile is not None and tile.hopper:
        from swiftvideo_kernels import hopper  # Gluon: imported only where it is launched

        inputs = [tma_aligned(x) for x in (q, tq, k, tk, v, tv)]
        given = tq is not None or tk is not None or tv is not None
        if scale >= 0 and given and all(map(hopper.tma_readable, inputs)):
            return hopper.attention_jvp_hopper(*inputs, scale, causal, tile, cu_q, cu_k, max_q)
        tile = tile_for("attention_jvp", q.dtype, q.device, q.shape[-1], by_hand=False)
    how = launch_arguments("attention_jvp", q, tq, k, tk, v, tv, scale, causal, tile)
    if how is None:
        if cu_q is not None:
            raise ValueError(f"attention_jvp: packed head width {q.shape[-1]}; want at most 128 on this card")
        o, lse = attention(q, k, v, scale, causal)
        return o, attention_tangent(q, tq, k, tk, v, tv, o, lse, scale, causal), lse
    tile, tensors, sizes, options = how
    B, H, N, D = q.shape
    o, to = (torch.empty(B, N, H, D, dtype=q.dtype, device=q.device).transpose(1, 2) for _ in range(2))
    lse = torch.empty(B, H, N, dtype=torch.float32, device=q.device)
    grid = triton.cdiv(N if max_q is None else max_q, tile.block_m), H, B if cu_q is None else len(cu_q) - 1
    _attention_jvp_kernel[grid](*tensors, o, to, lse, cu_q, cu_k, *sizes, **options)
    return o, to, lse
