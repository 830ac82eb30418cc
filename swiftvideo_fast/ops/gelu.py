"""GELU (tanh approximation) and its tangent: swiftvideo_fast::gelu, ::gelu_jvp, ::gelu_backward.

y is differentiable in x.  ty is not: the losses stop the gradient there.
Any shape; outputs are contiguous, in x's dtype.
"""

import torch
from torch import Tensor

from swiftvideo_fast.dual import Dual, accepts_forward_ad, parts
from swiftvideo_fast.ops import check, cpu


@accepts_forward_ad
def gelu(x: Tensor | Dual) -> Tensor | Dual:
    """Returns the tanh-approximated GELU of x, of any shape; a Dual if x is."""
    x, tx = parts(x)
    return gelu_op(x) if tx is None else Dual(*gelu_jvp(x, tx))


@torch.library.custom_op("swiftvideo_fast::gelu", mutates_args=(), device_types="cpu")
def gelu_op(x: Tensor) -> Tensor:
    """Returns gelu(x)."""
    check.dtype("gelu", x.dtype, x=x)
    return cpu.gelu(x)


@gelu_op.register_kernel("cuda")
def _(x):
    from swiftvideo_kernels.gelu import gelu as launch

    check.dtype("gelu", x.dtype, x=x)
    return launch(x)


@gelu_op.register_fake
def _(x):
    return x.new_empty(x.shape)


@torch.library.custom_op("swiftvideo_fast::gelu_jvp", mutates_args=(), device_types="cpu")
def gelu_jvp(x: Tensor, tx: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (gelu(x), gelu'(x) tx)."""
    _check(x, tx)
    return cpu.gelu_jvp(x, tx)


@gelu_jvp.register_kernel("cuda")
def _(x, tx):
    from swiftvideo_kernels.gelu import gelu_jvp as launch

    _check(x, tx)
    return launch(x, tx)


@gelu_jvp.register_fake
def _(x, tx):
    return x.new_empty(x.shape), x.new_empty(x.shape)


@torch.library.custom_op("swiftvideo_fast::gelu_backward", mutates_args=(), device_types="cpu")
def gelu_backward(dy: Tensor, x: Tensor) -> Tensor:
    """Returns dx = gelu'(x) dy."""
    return cpu.gelu_backward(dy, x)


@gelu_backward.register_kernel("cuda")
def _(dy, x):
    from swiftvideo_kernels.gelu import gelu_backward as launch

    return launch(dy, x)


@gelu_backward.register_fake
def _(dy, x):
    return x.new_empty(x.shape)


def _check(x: Tensor, tx: Tensor) -> None:
    check.shape("gelu_jvp", "x's axes", x.shape, tx=tx)
    check.dtype("gelu_jvp", x.dtype, x=x, tx=tx)


def _save(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])


def _save_jvp(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])
    ctx.mark_non_differentiable(output[1])


gelu_op.register_autograd(lambda ctx, dy: gelu_backward(dy, *ctx.saved_tensors), setup_context=_save)
gelu_jvp.register_autograd(lambda ctx, dy, _: (gelu_backward(dy, *ctx.saved_tensors), None),
                           setup_context=_save_jvp)
