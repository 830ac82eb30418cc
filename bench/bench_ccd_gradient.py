"""CCD's distillation gradient against the reference.  Memory-bound: compare with a copy."""

import torch

from bench.harness import Case, case
from swiftvideo_fast.ops import reference
from swiftvideo_fast.ops.ccd_gradient import ccd_gradient_op

SHAPES = dict(cpu=(4, 16, 16, 60, 104), cpu_demo=(32, 16, 5, 8, 8), wan=(1, 16, 16, 60, 104),
              wan_batch=(16, 16, 16, 60, 104))


def draw(planes: int, shape: tuple, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.randn(shape, device=device, dtype=dtype) for _ in range(planes)]


@case("ccd_gradient", **SHAPES)
def build(*shape: int, device: str, dtype: torch.dtype) -> Case:
    v, F, dF = draw(3, shape, device, dtype)
    t = torch.rand(shape[0], device=device)
    return Case(
        ours=lambda: ccd_gradient_op(v, F, dF, t, 0.5, "l2", 0.1),
        torch=lambda: reference.ccd_gradient(v.float(), F.float(), dF.float(), t, 0.5),
        # v, F, dF are read twice, for the norm and for g: g depends on its norm
        bytes_moved=F.numel() * (6 * F.element_size() + 4),
    )
