"""Exponential moving average and its low-precision copy in one pass.

    average <- decay average + (1 - decay) master        copy <- average

Traffic: reads average and master, writes average and copy: 4 + 4 + 4 + 2 bytes per parameter, bf16 copy.
One launch per tensor: under ZeRO the shards are few and long.  Arithmetic fp32.  8 values per thread, so that
all 64 warps of a multiprocessor fit; the copy is stored in groups of four, in the average's layout.
"""

import triton
import triton.language as tl
from torch import Tensor

from swiftvideo_kernels.storage import contiguous

BLOCK = 1024


@triton.jit
def _ema_kernel(average_ptr, master_ptr, copy_ptr, decay, rest, numel, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < numel
    average = tl.load(average_ptr + at, mask, 0.0)
    average = decay * average + rest * tl.load(master_ptr + at, mask, 0.0)
    tl.store(average_ptr + at, average, mask)
    if copy_ptr is not None:
        tl.store(copy_ptr + tl.max_contiguous(at, 4), average, mask)


def ema_(average: list[Tensor], master: list[Tensor], decay: float, copy: list[Tensor] | None = None) -> None:
    """Updates average and copy in place.  average, copy: contiguous; average, master: float32."""
    for a, m, c in zip(average, contiguous("ema_", *master), copy or [None] * len(average), strict=True):
        _ema_kernel[(triton.cdiv(a.numel(), BLOCK),)](a, m, c, decay, 1 - decay, a.numel(), BLOCK=BLOCK)
