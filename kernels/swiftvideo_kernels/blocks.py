"""Shared by the two Triton attention kernels: block loads, scores and their tangent, mask, launch arguments.

A head is read through a tensor descriptor (TMA) or a pointer.  Both return zero beyond the head's last row
and column, so only the scores need a mask for ragged tails.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swiftvideo_kernels.tiles import Tile, tile_for

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def source(x_ptr, base, rows, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
           TMA: tl.constexpr):
    """Returns a tensor descriptor or a pointer of one head of x, [rows, WIDTH], for `load_block`.

    A descriptor needs at least one row: with none its bounds are undefined.
    """
    if x_ptr is None:
        x = None
    elif TMA:
        size = [tl.maximum(rows, 1), WIDTH]
        x = tl.make_tensor_descriptor(x_ptr + base, size, [stride, 1], [BLOCK, BLOCK_D])
    else:
        x = x_ptr + base
    return x


@triton.jit
def load_block(x, first, rows, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
             TMA: tl.constexpr):
    """Returns rows first .. first + BLOCK of a source, [BLOCK, BLOCK_D], zero past the last row, column."""
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
    """Returns S / c and tS / c, [BLOCK_M, BLOCK_N]; tS None if neither q nor k has a tangent."""
    s = tl.dot(q, k.T, input_precision="tf32x3")
    ts = None
    if tq is not None:
        ts = tl.dot(tq, k.T, input_precision="tf32x3")
        if tk is not None:
            ts = tl.dot(q, tk.T, ts, input_precision="tf32x3")
    elif tk is not None:
        ts = tl.dot(q, tk.T, input_precision="tf32x3")
    return s, ts


@triton.jit
def rounded(x, like, PAIRS: tl.constexpr):
    """Returns x in the dtype of `like`, and that value in float32.

    PAIRS: converts bf16 in pairs by F2FP.  LLVM converts a value used in both forms by F2F, slow on Hopper
    (triton #4563), plus a PRMT per pair and 20 more registers in all.
    """
    if PAIRS and like.dtype == tl.bfloat16:
        narrow = tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=tl.bfloat16, is_pure=True, pack=2)
        wide = tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=&r,=r,r", [narrow], dtype=tl.float32,
            is_pure=True, pack=2)
    else:
        narrow = x.to(like.dtype)
        wide = narrow.to(tl.float32)
    return narrow, wide


@triton.jit
def masked(s, first_row, first, M, CAUSAL: tl.constexpr):
    """Returns scores, from (first_row, first), with -inf past key M and, if CAUSAL, above the diagonal."""
    col = first + tl.arange(0, s.shape[1])
    keep = (col < M)[None, :]
    if CAUSAL:
        row = first_row + tl.arange(0, s.shape[0])
        keep = keep & (col[None, :] <= row[:, None])
    return tl.where(keep, s, -float("inf"))


def launch_arguments(kernel: str, q: Tensor, tq: Tensor | None, k: Tensor, tk: Tensor | None, v: Tensor,
                     tv: Tensor | None, scale: float, causal: bool,
                     tile: Tile | None) -> tuple[Tile, tuple, tuple, dict] | None:
    """Returns (tile, six tensors, (strides, sizes, scale), options) of a launch; None without a tile.

    Primal and tangent get equal strides, readable by TMA if the tile uses it.  ValueError for scale < 0.
    """
    (_, H, N, D), (G, M) = q.shape, k.shape[1:3]
    if scale < 0:
        raise ValueError(f"{kernel}: scale is {scale}; want 0 or more")
    tile = tile or tile_for(kernel, q.dtype, q.device, D)
    if tile is None:
        return None
    if tile.descriptors:
        q, tq, k, tk, v, tv = (tma_aligned(x) for x in (q, tq, k, tk, v, tv))
        if q.is_cuda:
            triton.set_allocator(lambda size, *_: torch.empty(size, dtype=torch.int8, device=q.device))
    (q, tq), (k, tk), (v, tv) = match_strides(q, tq), match_strides(k, tk), match_strides(v, tv)
    sizes = *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], H, H // G, N, M, scale
    options = dict(
        WIDTH=D, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=max(16, triton.next_power_of_2(D)),
        CAUSAL=causal, TMA=tile.descriptors, PAIRS=q.device.type != "cpu",
        num_warps=tile.warps, num_stages=tile.stages)
    return tile, (q, tq, k, tk, v, tv), sizes, options


def tma_aligned(x: Tensor | None) -> Tensor | None:
    """Returns x with base and rows aligned to 16 bytes, as TMA requires; copies only if needed."""
    if x is None:
        return None
    grid, width = 16 // x.element_size(), x.shape[-1]
    if x.data_ptr() % 16 == 0 and all(n == 1 or at % grid == 0 for n, at in zip(x.shape[:-1], x.stride())):
        return x
    return x.new_empty(*x.shape[:-1], width + -width % grid)[..., :width].copy_(x)


def match_strides(x: Tensor, tx: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Returns x and tx with equal strides; copies only if they differ."""
    if tx is None or all(size == 1 or a == b for size, a, b in zip(x.shape, tx.stride(), x.stride())):
        return x, tx
    if 0 in x.stride():
        x = x.contiguous()
    return x, torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(tx)
