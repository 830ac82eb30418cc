"""What the two attention kernels share: blocks of rows, the scores and their tangent, the mask, the launch.

A head is read through a tensor descriptor (TMA) or a pointer.  Both stop at the head's last row and column,
and return zero beyond, so a ragged tail needs care only in the scores.
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
    """One head of x, [rows, WIDTH], as something `block_of` reads: a tensor descriptor, or a pointer.

    A descriptor has a row at least: with none it has no end.
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
    """x in the dtype of `like`, and that value in float32.

    PAIRS: bf16 two at a time, by F2FP.  Left to LLVM, a value that is used in both forms takes an F2F, which
    Hopper is slow at (triton #4563), a pair takes a PRMT, and the kernel 20 registers more.
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
    """Scores of rows from `first_row` and keys from `first`; -inf past the last key and, if CAUSAL, row."""
    col = first + tl.arange(0, s.shape[1])
    keep = (col < M)[None, :]
    if CAUSAL:
        row = first_row + tl.arange(0, s.shape[0])
        keep = keep & (col[None, :] <= row[:, None])
    return tl.where(keep, s, -float("inf"))


def layout(kernel: str, q: Tensor, tq: Tensor | None, k: Tensor, tk: Tensor | None, v: Tensor,
           tv: Tensor | None, scale: float, causal: bool,
           tile: Tile | None) -> tuple[Tile, tuple, tuple, dict] | None:
    """What both kernels are launched with: tile, the six tensors, strides, sizes and scale, options.

    Primal and tangent come back with one set of strides, which TMA can read if the tile asks for that.
    None: the table has no tile for this width.
    """
    (_, H, N, D), (G, M) = q.shape, k.shape[1:3]
    if scale < 0:
        raise ValueError(f"{kernel}: scale is {scale}; want 0 or more")
    tile = tile or tile_for(kernel, q.dtype, q.device, D)
    if tile is None:
        return None
    if tile.descriptors:
        q, tq, k, tk, v, tv = (on_grid(x) for x in (q, tq, k, tk, v, tv))
        if q.is_cuda:
            triton.set_allocator(lambda size, *_: torch.empty(size, dtype=torch.int8, device=q.device))
    (q, tq), (k, tk), (v, tv) = alike(q, tq), alike(k, tk), alike(v, tv)
    sizes = *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], H, H // G, N, M, scale
    options = dict(
        WIDTH=D, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=max(16, triton.next_power_of_2(D)),
        CAUSAL=causal, TMA=tile.descriptors, PAIRS=q.device.type != "cpu",
        num_warps=tile.warps, num_stages=tile.stages)
    return tile, (q, tq, k, tk, v, tv), sizes, options


def on_grid(x: Tensor | None) -> Tensor | None:
    """x, its base and rows on the 16-byte grid of the copy engine.  A copy only where they are not."""
    if x is None:
        return None
    grid, width = 16 // x.element_size(), x.shape[-1]
    if x.data_ptr() % 16 == 0 and all(n == 1 or at % grid == 0 for n, at in zip(x.shape[:-1], x.stride())):
        return x
    return x.new_empty(*x.shape[:-1], width + -width % grid)[..., :width].copy_(x)


def alike(x: Tensor, tx: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x and tx with the same strides.  A copy only where they differ."""
    if tx is None or all(size == 1 or a == b for size, a, b in zip(x.shape, tx.stride(), x.stride())):
        return x, tx
    if 0 in x.stride():
        x = x.contiguous()
    return x, torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(tx)
