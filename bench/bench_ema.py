"""EMA with a bfloat16 copy in one pass, against torch._foreach_lerp_ and a cast."""

import torch

from bench.harness import Case, case
from swiftvideo_fast.ops import ema_


@case("ema", cpu=(24, 1536, 1536), cpu_demo=(60, 128, 128), wan_1_3b=(200, 1536, 5120))
def build(count: int, rows: int, columns: int, device: str, dtype: torch.dtype) -> Case:
    shards = [[torch.randn(rows, columns, device=device) for _ in range(count)] for _ in range(2)]
    average, master, other = *shards, [x.clone() for x in shards[0]]
    copy, other_copy = ([x.bfloat16() for x in average] for _ in range(2))

    def by_torch():
        torch._foreach_lerp_(other, master, 0.05)
        torch._foreach_copy_(other_copy, other)

    return Case(ours=lambda: ema_(average, master, 0.95, copy), torch=by_torch,
                bytes_moved=14 * count * rows * columns)      # average in and out, master in, copy out
