"""GELU (tanh) and its tangent in one pass: swiftvideo_fast::gelu_jvp.  The plain op is torch's own.

y is differentiable in x; ty is not: the losses stop the gradient there.
Any shape; outputs are contiguous, in x's dtype.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from swiftvideo_fast import _C
from swiftvideo_fast.dual import Dual, parts, torch_tangents
from swiftvideo_fast.ops import check


@torch_tangents
def gelu(x: Tensor | Dual) -> Tensor | Dual:
    """The tanh-approximated GELU."""
    x, tx = parts(x)
    return F.gelu(x, approximate="tanh") if tx is None else Dual(*gelu_jvp(x, tx))


@torch.library.custom_op("swiftvideo_fast::gelu_jvp", mutates_args=(), device_types="cpu")
def gelu_jvp(x: Tensor, tx: Tensor) -> tuple[Tensor, Tensor]:
    """(gelu(x), gelu'(x) tx)."""
    _check(x, tx)
    return _C.gelu_jvp(x, tx)


@gelu_jvp.register_kernel("cuda")
def _(x, tx):
    from swiftvideo_kernels.gelu import gelu_jvp as launch

    _check(x, tx)
    return launch(x, tx)


@gelu_jvp.register_fake
def _(x, tx):
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _check(x: Tensor, tx: Tensor) -> None:
    check.shaped("gelu_jvp", "x's axes", x.shape, tx=tx)
    check.stored("gelu_jvp", x.dtype, x=x, tx=tx)


def _save(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, dy, _):
    return torch.ops.aten.gelu_backward(dy, *ctx.saved_tensors, approximate="tanh"), None


gelu_jvp.register_autograd(_backward, setup_context=_save)
