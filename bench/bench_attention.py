"""Forward-mode attention against torch.func.jvp of math attention and against sdpa's forward (ideal: 3)."""

import torch

from bench.harness import Case, case
from swiftvideo_fast.ops import reference
from swiftvideo_fast.ops.attention import attention_jvp, attention_op

SHAPES = dict(cpu=(1, 4, 4096, 64), cpu_demo=(32, 4, 80, 32),
              wan_1_3b=(1, 12, 24960, 128), wan_14b=(1, 40, 32760, 128))


def sdpa(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


@case("attention_jvp", **SHAPES)
def build_jvp(B: int, H: int, N: int, D: int, device: str, dtype: torch.dtype) -> Case:
    q, k, v, tq, tk, tv = (torch.randn(B, H, N, D, device=device, dtype=dtype) for _ in range(6))
    fits = device == "cpu" or N * N * H * 2 < 2**32           # math attention keeps several (H, N, N)
    return Case(
        ours=lambda: attention_jvp(q, tq, k, tk, v, tv, D**-0.5, False)[:2],
        torch=(lambda: reference.jvp(reference.attention, (q, k, v), (tq, tk, tv))) if fits else lambda: None,
        flops=12 * B * H * N * N * D,
        peers={"sdpa": lambda: sdpa(q, k, v)},
    )


@case("attention", **SHAPES)
def build(B: int, H: int, N: int, D: int, device: str, dtype: torch.dtype) -> Case:
    q, k, v = (torch.randn(B, H, N, D, device=device, dtype=dtype) for _ in range(3))
    return Case(ours=lambda: attention_op(q, k, v, D**-0.5, False)[0], torch=lambda: sdpa(q, k, v),
                flops=4 * B * H * N * N * D)
