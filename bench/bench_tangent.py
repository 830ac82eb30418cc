"""The distillation gradient and the loss against the reference.  Memory-bound: read the share of a copy."""

import torch

from bench.harness import Case, case
from swiftvideo_fast.ops import reference
from swiftvideo_fast.ops.ccd_loss import ccd_loss_op
from swiftvideo_fast.ops.tangent import tangent_op

SHAPES = dict(cpu=(4, 16, 16, 60, 104), cpu_demo=(32, 16, 5, 8, 8), wan=(1, 16, 16, 60, 104),
              wan_batch=(16, 16, 16, 60, 104))


def draw(planes: int, shape: tuple, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.randn(shape, device=device, dtype=dtype) for _ in range(planes)]


@case("tangent", **SHAPES)
def build(*shape: int, device: str, dtype: torch.dtype) -> Case:
    v, F, dF = draw(3, shape, device, dtype)
    t = torch.rand(shape[0], device=device)
    return Case(
        ours=lambda: tangent_op(v, F, dF, t, 0.5, "l2", 0.1),
        torch=lambda: reference.tangent(v.float(), F.float(), dF.float(), t, 0.5),
        # v, F, dF are read once for the norm and once for g: g cannot be written before its norm is known
        bytes_moved=F.numel() * (6 * F.element_size() + 4),
    )


@case("ccd_loss", **SHAPES)
def build_loss(*shape: int, device: str, dtype: torch.dtype) -> Case:
    (F_student, F), g = draw(2, shape, device, dtype), torch.randn(shape, device=device)
    return Case(
        ours=lambda: ccd_loss_op(F_student, F, g)[0],
        torch=lambda: reference.ccd_loss(F_student.float(), F.float(), g),
        bytes_moved=F.numel() * (3 * F.element_size() + 4),   # read F_student, F, g; write the residual
    )
