"""norm_rope_jvp against torch's forward mode of the reference.  Memory-bound: read the share of a copy."""

import torch

from bench.harness import Case, case
from swiftvideo_fast.ops import reference
from swiftvideo_fast.ops.norm_rope import norm_rope_jvp


@case("norm_rope_jvp", cpu=(1, 2048, 1536, 128), cpu_demo=(32, 80, 128, 32), wan_1_3b=(1, 24960, 1536, 128),
      wan_14b=(1, 32760, 5120, 128))
def build(B: int, N: int, C: int, D: int, device: str, dtype: torch.dtype) -> Case:
    x, tx = (torch.randn(B, N, C, device=device, dtype=dtype) for _ in range(2))
    w, angle = torch.randn(C, device=device), torch.randn(N, D // 2, device=device)
    cos, sin = angle.cos(), angle.sin()
    return Case(
        ours=lambda: norm_rope_jvp(x, tx, w, cos, sin, 1e-6),
        torch=lambda: reference.jvp(lambda x: reference.norm_rope(x, w, cos, sin), (x,), (tx,)),
        bytes_moved=4 * x.numel() * x.element_size(),         # read x, tx; write y, ty
    )
