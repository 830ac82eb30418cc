"""CCD's distillation gradient g (eq. 8 of the SwiftVideo paper): swiftvideo_fast::ccd_gradient.

    g = v - F - r t dF        then, per clip,   l2:   g / (||g|| + c)
                                                rms:  g / (||g|| / sqrt D + c)
                                                clip: g clamped to [-1, 1]
g is not differentiable (the paper's stop-gradient).  It is float32 (float64 for float64 F): bfloat16 would
round away the differences.
"""

import torch
from torch import Tensor

from swiftvideo_fast.ops import check, cpu

NORMS = ("l2", "rms", "clip")


def ccd_gradient(v: Tensor, F: Tensor, dF: Tensor, t: Tensor, r: float, *, norm: str = "l2",
                 c: float = 0.1) -> tuple[Tensor, Tensor]:
    """Returns (g (B, ...), ||g|| before normalisation (B,)), detached.

    v: the teacher's velocity; F: the network's; dF: its total time derivative; all (B, ...), promoted to one
    dtype.  t: (B,) in [0, 1].  r: warm-up in [0, 1].  norm: one of NORMS.  c: added to the norm.
    Raises ValueError for mismatched shapes or an unknown norm.
    """
    dtype = torch.promote_types(torch.promote_types(v.dtype, F.dtype), dF.dtype)
    v, F, dF = (x.detach().to(dtype) for x in (v, F, dF))
    return ccd_gradient_op(v, F, dF, t.detach(), float(r), norm, c)


@torch.library.custom_op("swiftvideo_fast::ccd_gradient", mutates_args=(), device_types="cpu")
def ccd_gradient_op(v: Tensor, F: Tensor, dF: Tensor, t: Tensor, r: float, norm: str,
                    c: float) -> tuple[Tensor, Tensor]:
    """Returns (g, ||g||)."""
    _check(v, F, dF, t, norm)
    return cpu.ccd_gradient(v, F, dF, t, r, norm, c)


@ccd_gradient_op.register_kernel("cuda")
def _(v, F, dF, t, r, norm, c):
    from swiftvideo_kernels.ccd_gradient import ccd_gradient as launch

    _check(v, F, dF, t, norm)
    return launch(v, F, dF, t, r, norm, c)


@ccd_gradient_op.register_fake
def _(v, F, dF, t, r, norm, c):
    dtype = check.compute_dtype(F.dtype)
    return F.new_empty(F.shape, dtype=dtype), F.new_empty(F.shape[:1], dtype=dtype)


def _check(v: Tensor, F: Tensor, dF: Tensor, t: Tensor, norm: str) -> None:
    if F.dim() == 0:
        raise ValueError("ccd_gradient: F is (); want (B, ...)")
    check.shape("ccd_gradient", "B, ...", F.shape, v=v, dF=dF)
    check.shape("ccd_gradient", "B", F.shape[:1], t=t)
    check.dtype("ccd_gradient", F.dtype, v=v, F=F, dF=dF)
    if norm not in NORMS:
        raise ValueError(f"ccd_gradient: norm is {norm!r}; want one of {', '.join(NORMS)}")
