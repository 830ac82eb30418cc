"""Launch of attention_jvp_hopper's kernel: TMA requirements, descriptors, grid."""

from functools import cache

import torch
import triton
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from swiftvideo_kernels.attention_jvp_hopper import attention_jvp_hopper_kernel
from swiftvideo_kernels.blocks import match_strides
from swiftvideo_kernels.tiles import Tile

DTYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}


@cache
def _layout(rows: int, width: int, dtype: torch.dtype) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout.get_default_for([1, 1, rows, width], DTYPES[dtype])


def tma_readable(x: Tensor | None) -> bool:
    """True if TMA can read x: 16-byte aligned base and strides, no expanded axis, not empty."""
    return x is None or (x.numel() > 0 and x.data_ptr() % 16 == 0 and x.stride(-1) == 1 and all(
        n == 1 or (at > 0 and at % 8 == 0) for n, at in zip(x.shape[:-1], x.stride())))


def attention_jvp_hopper(q: Tensor, tq: Tensor | None, k: Tensor, tk: Tensor | None, v: Tensor,
                         tv: Tensor | None, scale: float, causal: bool, tile: Tile,
                         cu_q: Tensor | None = None, cu_k: Tensor | None = None,
                         max_q: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (o, to, lse) as attention_jvp.  Inputs must be `tma_readable`, with at least one tangent."""
    (B, H, N, D), (G, M) = q.shape, k.shape[1:3]
    width = max(64, triton.next_power_of_2(D))
    o, to = (torch.empty(B, N, H, D, dtype=q.dtype, device=q.device).transpose(1, 2) for _ in range(2))
    lse = torch.empty(B, H, N, dtype=torch.float32, device=q.device)
    q_layout, k_layout = _layout(64, width, q.dtype), _layout(tile.block_n, width, q.dtype)

    def described(x, rows, layout):
        if x is None:
            return None
        strides = [64 if n == 1 else at for n, at in zip(x.shape, x.stride())]         # any, for size 1
        return TensorDescriptor(x, list(x.shape), [*strides[:3], 1], [1, 1, rows, width], layout)

    written = None, None
    if cu_q is None:
        sources = [described(x, 64, q_layout) for x in (q, tq)]
        sources += [described(x, tile.block_n, k_layout) for x in (k, tk, v, tv)]
        if D % 8 == 0:
            written = described(o, 64, q_layout), described(to, 64, q_layout)
    else:
        (q, tq), (k, tk), (v, tv) = match_strides(q, tq), match_strides(k, tk), match_strides(v, tv)
        sources = [q, tq, k, tk, v, tv]
        if q.is_cuda:
            triton.set_allocator(lambda size, *_: torch.empty(size, dtype=torch.int8, device=q.device))
    grid = triton.cdiv(N if max_q is None else max_q, 128), H, B if cu_q is None else len(cu_q) - 1
    strides = [64 if n == 1 else at for x in (q, k, v) for n, at in zip(x.shape[1:3], x.stride()[1:3])]
    attention_jvp_hopper_kernel[grid](
        *sources, o, to, *written, lse, cu_q, cu_k, *strides, H, H // G, N, M, scale,
        WIDTH=D, BLOCK_D=width, BLOCK_N=tile.block_n, STAGES=tile.stages, CAUSAL=causal, H_FIRST=tile.h_first,
        REGISTERS=tile.hopper, Q_LAYOUT=q_layout, K_LAYOUT=k_layout,
        num_warps=4, enable_fp_fusion=True)                     # off by default in 3.9
    return o, to, lse
