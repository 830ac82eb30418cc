"""Elementwise functions: y' = sum over arguments of df/dx x'."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from swiftvideo_fast.dispatch import rule, tangent
from swiftvideo_fast.dual import parts

aten = torch.ops.aten

UNARY = {                                    # name: t -> tangent, given y = f(x)
    "exp": lambda y, x, t: t * y,
    "exp2": lambda y, x, t: t * y * math.log(2),
    "expm1": lambda y, x, t: t * (y + 1),
    "log": lambda y, x, t: t / x,
    "log2": lambda y, x, t: t / (x * math.log(2)),
    "log10": lambda y, x, t: t / (x * math.log(10)),
    "log1p": lambda y, x, t: t / (x + 1),
    "sqrt": lambda y, x, t: t / (2 * y),
    "rsqrt": lambda y, x, t: -0.5 * t * y**3,
    "reciprocal": lambda y, x, t: -t * (y * y),
    "square": lambda y, x, t: 2 * t * x,
    "sin": lambda y, x, t: t * x.cos(),
    "cos": lambda y, x, t: -t * x.sin(),
    "tan": lambda y, x, t: t * (1 + y * y),
    "sinh": lambda y, x, t: t * x.cosh(),
    "cosh": lambda y, x, t: t * x.sinh(),
    "tanh": lambda y, x, t: aten.tanh_backward(t, y.conj()),
    "atan": lambda y, x, t: t / (1 + x * x),
    "arctan": lambda y, x, t: t / (1 + x * x),
    "sigmoid": lambda y, x, t: aten.sigmoid_backward(t, y.conj()),
    "expit": lambda y, x, t: aten.sigmoid_backward(t, y.conj()),
    "erf": lambda y, x, t: (-(x**2)).exp() * (2 / math.sqrt(math.pi)) * t,
    "relu": lambda y, x, t: t * (x > 0),
    "relu6": lambda y, x, t: t * ((x > 0) & (x < 6)),
    "log_sigmoid": lambda y, x, t: aten.log_sigmoid_backward(t, x, aten.log_sigmoid_forward(x)[1]),
}

BY_BACKWARD = {           # elementwise: the backward applied to t is the tangent
    "silu": aten.silu_backward,
    "mish": aten.mish_backward,
    "hardswish": aten.hardswish_backward,
    "hardsigmoid": aten.hardsigmoid_backward,
}


def _compute_dtype(y: Tensor) -> torch.dtype:
    """Returns the dtype in which torch's kernels compute."""
    return torch.promote_types(y.dtype, torch.float32)


def _unary(formula, y, input):
    return formula(y, *parts(input))


def _by_backward(backward, y, input, inplace=False):
    x, t = parts(input)
    return backward(t.to(y.dtype), x.to(y.dtype))


for _name, _formula in UNARY.items():
    tangent(_name)(partial(_unary, _formula))
for _name, _backward in BY_BACKWARD.items():
    tangent(_name)(partial(_by_backward, _backward))


@tangent("gelu")
def gelu(y, input, *, approximate="none"):
    x, t = parts(input)
    return aten.gelu_backward(t.to(y.dtype), x.to(y.dtype), approximate=approximate)


def sum_terms(terms) -> Tensor | None:
    """Returns the sum of the terms that are not None; None if all are."""
    terms = [term for term in terms if term is not None]
    return sum(terms[1:], terms[0]) if terms else None


def _scaled(t, factor):
    return None if t is None else t * factor


@tangent("add", "__add__", "__radd__")
def add(y, input, other, *, alpha=1):
    (_, ta), (_, tb) = parts(input), parts(other)
    tb = tb if alpha == 1 else _scaled(tb, alpha)
    if ta is None or tb is None:
        return copied(tb if ta is None else ta)
    return ta + tb


@tangent("sub", "subtract", "__sub__")
def sub(y, input, other, *, alpha=1):
    (_, ta), (_, tb) = parts(input), parts(other)
    tb = tb if alpha == 1 else _scaled(tb, alpha)
    if ta is None or tb is None:
        return -tb if ta is None else copied(ta)
    return ta - tb


def copied(t: Tensor | None) -> Tensor | None:
    """Returns a copy of t: the result does not alias x, so its tangent must not alias x's tangent."""
    return None if t is None else t.clone()


@tangent("rsub", "__rsub__")
def rsub(y, input, other, *, alpha=1):
    return sub(y, other, input, alpha=alpha)


@tangent("mul", "multiply", "__mul__", "__rmul__")
def mul(y, input, other):
    (a, ta), (b, tb) = parts(input), parts(other)
    return sum_terms([_scaled(ta, b), _scaled(tb, a)])


@tangent("div", "divide", "true_divide", "__truediv__", "__div__")
def div(y, input, other, *, rounding_mode=None):
    if rounding_mode is not None:
        return None
    (_, ta), (b, tb) = parts(input), parts(other)
    if tb is None:
        return ta / b
    return ((0 if ta is None else ta) - y * tb) / b


@rule(Tensor.__rtruediv__, Tensor.__rdiv__)
def rdiv(input, other):
    return torch.div(other, input)


@tangent("pow", "float_power", "__pow__")
def power(y, input, exponent):
    (a, ta), (b, tb) = parts(input), parts(exponent)
    by_base = by_exponent = None
    if ta is not None:
        by_base = ta * (b * a ** (b - 1)) if isinstance(b, Tensor) or b != 0 else torch.zeros_like(ta)
        by_base = torch.where(b == 0, 0, by_base) if isinstance(b, Tensor) else by_base
    if tb is not None:
        a, b = torch.as_tensor(a, device=y.device), torch.as_tensor(b, device=y.device)
        by_exponent = tb * torch.where((a == 0) & (b.real >= 0), 0, y * a.to(y.dtype).log())
    return sum_terms([by_base, by_exponent])


@rule(Tensor.__rpow__)
def rpow(input, other):
    return torch.pow(other, input)


@tangent("abs", "absolute", "__abs__")
def absolute(y, input):
    x, t = parts(input)
    return (t.conj() * x.sgn()).real if x.is_complex() else t * x.sgn()


@tangent("softplus")
def softplus(y, input, beta=1, threshold=20):
    x, t = parts(input)
    return aten.softplus_backward(t, x, beta, threshold)


@tangent(F.elu)
def elu(y, input, alpha=1.0, inplace=False):
    x, t = parts(input)
    return aten.elu_backward(t, alpha, 1.0, 1.0, False, x)


@tangent(torch._C._nn.elu)
def native_elu(y, input, alpha=1, scale=1, input_scale=1):
    x, t = parts(input)
    return aten.elu_backward(t, alpha, scale, input_scale, False, x)


@tangent("leaky_relu")
def leaky_relu(y, input, negative_slope=0.01, inplace=False):
    x, t = parts(input)
    return aten.leaky_relu_backward(t, x, negative_slope, False)


@tangent("glu")
def glu(y, input, dim=-1):
    (a, b), (ta, tb) = (x.to(_compute_dtype(y)).chunk(2, dim) for x in parts(input))
    s = b.sigmoid()
    return s * (ta + a * (1 - s) * tb)


@tangent("addcmul")
def addcmul(y, input, tensor1, tensor2, *, value=1):
    (_, t), (a, ta), (b, tb) = map(parts, (input, tensor1, tensor2))
    return sum_terms([copied(t), _scaled(_scaled(ta, b), value), _scaled(_scaled(tb, a), value)])


@tangent("lerp")
def lerp(y, input, end, weight):
    (a, ta), (b, tb), (w, tw) = map(parts, (input, end, weight))
    ta, tb = (torch.zeros_like(y) if t is None else t for t in (ta, tb))
    return sum_terms([torch.lerp(ta, tb, w), _scaled(tw, b - a)])
