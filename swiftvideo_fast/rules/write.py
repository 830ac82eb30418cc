"""In-place functions: rules compute the result out of place, then copy it into primal and tangent.

Both keep their memory, so every view of the Dual sees the write.
"""

from contextlib import nullcontext
from functools import partial
from inspect import signature
from types import FunctionType

import torch
import torch.nn.functional as F
from torch import Tensor

from swiftvideo_fast.dispatch import (
    IN_PLACE_OPERATORS,
    NAMESPACES,
    RULES,
    by_torch,
    call,
    functions_named,
    name_of,
    rule,
)
from swiftvideo_fast.dual import Dual, NoTangent, parts, primals
from swiftvideo_fast.layout import zeros_as

FILLS = "zero_ normal_ uniform_ bernoulli_ exponential_ geometric_ cauchy_ log_normal_ random_"
RANDOM = {"dropout_", "alpha_dropout_", "feature_dropout_", "feature_alpha_dropout_", "rrelu_", "bernoulli_"}
RESHAPES = "squeeze_ unsqueeze_ transpose_ swapaxes_ swapdims_ t_ as_strided_"


def _target(function, x) -> Dual:
    if isinstance(x, Dual):
        return x
    raise NoTangent(f"{name_of(function)}: a Dual written into a plain tensor would lose its tangent; make "
                    "the buffer from a Dual (empty_like, new_zeros), or write inside jvp, uncompiled")


def _set_tangent(x: Dual, t: Tensor | None, index=...) -> None:
    if x.tangent is None and t is not None:
        x.tangent = zeros_as(x.p)
    if x.tangent is not None:
        with torch.no_grad():
            x.tangent[index] = 0 if t is None else t


def _overwrite(x: Dual, y) -> Dual:
    p, t = parts(y)
    x.p.copy_(p)
    _set_tangent(x, t)
    return x


def _in_place(function, out_of_place, x, *args, **kwargs):
    """With grad enabled, torch's own in-place function writes the primal, so that autograd records it."""
    _target(function, x)
    taped = torch.is_grad_enabled()
    with torch.no_grad(), same_draw(function, x.p.device) if taped else nullcontext():
        y = call(out_of_place, (x, *args), kwargs)
    if y.shape != x.shape:
        raise NoTangent(f"{name_of(function)}: would resize a Dual from {tuple(x.shape)} to {tuple(y.shape)}")
    if not taped:
        return _overwrite(x, y)
    function(x.p, *primals(args), **primals(kwargs))
    _set_tangent(x, parts(y)[1])
    return x


def same_draw(function, device: torch.device):
    """Context that restores the RNG state on exit: the in-place function then draws the same numbers."""
    if getattr(function, "__name__", "") not in RANDOM:
        return nullcontext()
    devices = [] if device.type == "cpu" else [device]
    return torch.random.fork_rng(devices, device_type=device.type if devices else "cuda")


def _inplace_flag(out_of_place, position, x, *args, inplace=False, **kwargs):
    """Handles F.relu(x, inplace=True) etc.; position: index of the flag among the arguments after x."""
    y = out_of_place(x, *args[:position], **kwargs)
    return _overwrite(x, y) if inplace or len(args) > position and args[position] else y


@rule(Tensor.__setitem__)
def setitem(x, index, value):
    v, t = parts(value)
    _target(Tensor.__setitem__, x).p[primals(index)] = v
    _set_tangent(x, t, primals(index))


@rule(Tensor.copy_)
def copy_(x, src, non_blocking=False):
    return _overwrite(_target(Tensor.copy_, x), src)


@rule(Tensor.requires_grad_)
def requires_grad_(x, requires_grad=True):
    x.p.requires_grad_(requires_grad)
    return x


def _fill(function, x, *args, **kwargs):
    function(x.p, *primals(args), **primals(kwargs))
    _set_tangent(x, None)
    return x


def _reshape(function, x, *args, **kwargs):
    function(x.p, *args, **kwargs)
    if x.tangent is not None:
        function(x.tangent, *args, **kwargs)
    return x


def _by_torch(function, *args, **kwargs):
    return by_torch(function, args, kwargs)


for _function in functions_named(*FILLS.split()):
    rule(_function)(partial(_fill, _function))
for _function in functions_named(*RESHAPES.split()):
    rule(_function)(partial(_reshape, _function))

for _name in {n for s in NAMESPACES for n in dir(s) if n.endswith("_") and not n.startswith("_")}:
    for _home, _function in [(s, getattr(s, _name)) for s in NAMESPACES if callable(getattr(s, _name, None))]:
        _out_of_place = [getattr(s, _name[:-1]) for s in (_home, *NAMESPACES) if hasattr(s, _name[:-1])]
        if _out_of_place and _function not in RULES:
            rule(_function)(partial(_in_place, _function, _out_of_place[0]))
for _name in IN_PLACE_OPERATORS:
    _function = getattr(Tensor, _name)
    rule(_function)(partial(_in_place, _function, getattr(Tensor, _name.replace("__i", "__", 1))))
for _function in [f for f in vars(F).values() if isinstance(f, FunctionType)]:
    if "inplace" not in signature(_function).parameters:
        continue
    _position = list(signature(_function).parameters).index("inplace") - 1
    rule(_function)(partial(_inplace_flag, RULES[_function][0] if _function in RULES
        else partial(_by_torch, _function),
                            _position))
