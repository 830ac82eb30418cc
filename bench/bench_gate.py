"""gate_jvp against torch's forward mode of the reference.  Memory-bound: read the share of a copy."""

import torch

from bench.harness import Case, case
from swiftvideo_fast.ops import reference
from swiftvideo_fast.ops.gate import gate_jvp


@case("gate_jvp", cpu=(1, 2048, 1536), cpu_demo=(32, 80, 128), wan_1_3b=(1, 24960, 1536),
      wan_14b=(1, 32760, 5120))
def build(B: int, N: int, C: int, device: str, dtype: torch.dtype) -> Case:
    x, tx, y, ty = (torch.randn(B, N, C, device=device, dtype=dtype) for _ in range(4))
    g, tg = (torch.randn(B, C, device=device) for _ in range(2))
    return Case(
        ours=lambda: gate_jvp(x, tx, y, ty, g, tg),
        torch=lambda: reference.jvp(reference.gate, (x, y, g), (tx, ty, tg)),
        bytes_moved=6 * x.numel() * x.element_size(),         # read x, tx, y, ty; write z, tz
    )
