"""gelu_jvp against torch's forward mode of the reference.  Memory-bound: read the share of a copy."""

import torch

from bench.harness import Case, case
from swiftvideo_fast.ops import reference
from swiftvideo_fast.ops.gelu import gelu_jvp


@case("gelu_jvp", cpu=(1, 1024, 4096), cpu_demo=(32, 80, 512), wan_1_3b=(1, 24960, 8960),
      wan_14b=(1, 32760, 13824))
def build(B: int, N: int, C: int, device: str, dtype: torch.dtype) -> Case:
    x, tx = (torch.randn(B, N, C, device=device, dtype=dtype) for _ in range(2))
    return Case(
        ours=lambda: gelu_jvp(x, tx),
        torch=lambda: reference.jvp(reference.gelu, (x,), (tx,)),
        bytes_moved=4 * x.numel() * x.element_size(),         # read x, tx; write y, ty
    )
