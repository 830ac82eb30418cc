"""The tangent of softmax attention from the primal's output and log-sum-exp: the two-pass form.

    P  = exp(S - lse)           final at once: no running max, no rescaling
    to = (P∘tS) v + P tv - rowsum(P∘tS) o                                                          (1)

Five matrix products after the forward's two, against six in one pass (attention_jvp.py): faster only where
the one-pass kernel runs below about 6/7 of the two passes' rate.  One accumulator instead of two leaves
registers for a deeper pipeline.  As in one pass, products and row sum use P and P∘tS in the storage dtype.

`python -m bench gpu` times both forms.
Flops: 10 B H N M D.  Shapes and letters as in attention_jvp.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swiftvideo_kernels.blocks import LOG2E, launch_arguments, load_block, masked, rounded, scores, source
from swiftvideo_kernels.tiles import Tile


@triton.jit(do_not_specialize=["N", "M"])
def _attention_tangent_kernel(
    q_ptr, tq_ptr, k_ptr, tk_ptr, v_ptr, tv_ptr,                # a tangent may be None
    o_ptr, to_ptr,                                              # [B, N, H, D]
    lse_ptr,                                                    # [B, H, N]
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
    q_base = clip * q_clip + head * q_head
    k_base, v_base = clip * k_clip + group * k_head, clip * v_clip + group * v_head
    q_src = source(q_ptr, q_base, N, q_row, WIDTH, BLOCK_M, BLOCK_D, TMA)
    tq_src = source(tq_ptr, q_base, N, q_row, WIDTH, BLOCK_M, BLOCK_D, TMA)
    k_src = source(k_ptr, k_base, M, k_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
    tk_src = source(tk_ptr, k_base, M, k_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
    v_src = source(v_ptr, v_base, M, v_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
    tv_src = source(tv_ptr, v_base, M, v_row, WIDTH, BLOCK_N, BLOCK_D, TMA)

    first_row = block * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    q = load_block(q_src, first_row, N, q_row, WIDTH, BLOCK_M, BLOCK_D, TMA)
    tq = None
    if tq_src is not None:
        tq = load_block(tq_src, first_row, N, q_row, WIDTH, BLOCK_M, BLOCK_D, TMA)
    lse = tl.load(lse_ptr + (clip * H + head) * N + row, row < N, 0.0) * LOG2E
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    mu = tl.zeros([BLOCK_M], tl.float32)

    end, whole = M, M // BLOCK_N * BLOCK_N                      # keys before `whole` need no mask
    if CAUSAL:
        end = tl.minimum(M, first_row + BLOCK_M)
        whole = tl.minimum(M, first_row) // BLOCK_N * BLOCK_N
    for first in range(0, end, BLOCK_N):
        k = load_block(k_src, first, M, k_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
        tk = None
        if tk_src is not None:
            tk = load_block(tk_src, first, M, k_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
        s, ts = scores(q, tq, k, tk)
        if first >= whole:
            s = masked(s, first_row, first, M, CAUSAL)

        p = tl.exp2(s * (scale * LOG2E) - lse[:, None])
        v = load_block(v_src, first, M, v_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
        if ts is not None:
            h_rounded, h_used = rounded(p * (ts * scale), q, PAIRS)
            mu += tl.sum(h_used, 1)
            acc = tl.dot(h_rounded, v, acc, input_precision="tf32x3")
        if tv_src is not None:
            tv = load_block(tv_src, first, M, v_row, WIDTH, BLOCK_N, BLOCK_D, TMA)
            acc = tl.dot(p.to(q.dtype), tv, acc, input_precision="tf32x3")

    col = tl.arange(0, BLOCK_D)
    at = ((clip * N + row) * H + head)[:, None] * WIDTH + col[None, :]
    mask = (row < N)[:, None] & (col < WIDTH)[None, :]
    o = tl.load(o_ptr + at, mask, 0.0).to(tl.float32)
    tl.store(to_ptr + at, (acc - mu[:, None] * o).to(to_ptr.dtype.element_ty), mask)


def attention_tangent(q: Tensor, tq: Tensor | None, k: Tensor, tk: Tensor | None, v: Tensor,
                      tv: Tensor | None, o: Tensor, lse: Tensor, scale: float, causal: bool, *,
                      tile: Tile | None = None) -> Tensor:
    """Returns to, given (o, lse) of attention(q, k, v); layout and None tangents as in attention_jvp."""
    tile, tensors, sizes, options = launch_arguments(
        "attention_tangent", q, tq, k, tk, v, tv, scale, causal, tile)
    B, H, N, _ = q.shape
    o_BNHD = o.transpose(1, 2).contiguous()
    to = torch.empty_like(o_BNHD).transpose(1, 2)
    grid = triton.cdiv(N, tile.block_m), H, B
    _attention_tangent_kernel[grid](*tensors, o_BNHD, to, lse.contiguous(), *sizes, **options)
    return to
