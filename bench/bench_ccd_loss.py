"""The CCD loss against the reference.  Memory-bound: compare with a copy."""

import torch

from bench.bench_ccd_gradient import SHAPES, draw
from bench.harness import Case, case
from swiftvideo_fast.ops import reference
from swiftvideo_fast.ops.ccd_loss import ccd_loss_op


@case("ccd_loss", **SHAPES)
def build(*shape: int, device: str, dtype: torch.dtype) -> Case:
    (F_student, F), g = draw(2, shape, device, dtype), torch.randn(shape, device=device)
    return Case(
        ours=lambda: ccd_loss_op(F_student, F, g)[0],
        torch=lambda: reference.ccd_loss(F_student.float(), F.float(), g),
        bytes_moved=F.numel() * (3 * F.element_size() + 4),   # read F_student, F, g; write the residual
    )
