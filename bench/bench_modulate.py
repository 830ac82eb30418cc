"""modulate_jvp against torch's forward mode of the reference.  Memory-bound: read the share of a copy."""

import torch

from bench.harness import Case, case
from swiftvideo_fast.ops import reference
from swiftvideo_fast.ops.modulate import modulate_jvp


@case("modulate_jvp", cpu=(1, 2048, 1536), cpu_demo=(32, 80, 128), wan_1_3b=(1, 24960, 1536),
      wan_14b=(1, 32760, 5120))
def build(B: int, N: int, C: int, device: str, dtype: torch.dtype) -> Case:
    x, tx = (torch.randn(B, N, C, device=device, dtype=dtype) for _ in range(2))
    s, ts, b, tb = (torch.randn(B, C, device=device) for _ in range(4))
    return Case(
        ours=lambda: modulate_jvp(x, tx, s, ts, b, tb, 1e-6),
        torch=lambda: reference.jvp(reference.modulate, (x, s, b), (tx, ts, tb)),
        bytes_moved=4 * x.numel() * x.element_size(),         # read x, tx; write y, ty
    )
