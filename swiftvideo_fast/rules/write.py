"""In-place writes.  The tangent is written in place too, so every view of the Dual sees it."""

from functools import partial

import torch
from torch import Tensor

from swiftvideo_fast.dual import RULES, Dual, NoTangent, call, duals, name_of, named, parts, primals, rule

CONSTANT = "zero_ fill_ normal_ uniform_ bernoulli_ exponential_ geometric_ cauchy_ log_normal_ random_"


def write(function, x, t_of, *args, **kwargs):
    """x.p is written by torch; x.t becomes t_of()."""


@rule(Tensor.__setitem__)
def setitem(x, index, value):
    (v, tv) = parts(value)
    x = _writable(Tensor.__setitem__, x, value)
    if tv is not None and x.t is None:
        x.t = torch.zeros_like(x.p)
    if x.t is not None:
        with torch.no_grad():
            x.t[index] = 0 if tv is None else tv
    x.p[index] = v


def _writable(function, x, *sources) -> Dual:
    if not isinstance(x, Dual):
        raise NoTangent(f"{name_of(function)}: a Dual written into a plain tensor would lose its tangent; "
                        "make the buffer from a Dual (empty_like, zeros_like, new_zeros) or write out of place")
    return x


def _in_place(function, out_of_place, x, *args, **kwargs):
    _writable(function, x, *args)
    with torch.no_grad():
        _, t = parts(call(out_of_place, (x, *args), kwargs) if duals([x, list(args), list(kwargs.values())]) else x.p)
    function(x.p, *primals(args), **{k: primals(v) for k, v in kwargs.items()})
    if t is not None and x.t is None:
        x.t = torch.zeros_like(x.p)
    if x.t is not None:
        with torch.no_grad():
            x.t.zero_() if t is None else x.t.copy_(t)
    return x


def _copied(y, source, non_blocking=False):
    return source


for _name in dir(Tensor):
    if _name.endswith("_") and not _name.startswith("_") and hasattr(Tensor, _name[:-1]):
        for _function in named(_name):
            RULES.setdefault(_function, partial(_in_place, _function, getattr(Tensor, _name[:-1])))
for _name in "add sub mul truediv pow".split():
    _function = getattr(Tensor, f"__i{_name}__")
    rule(_function)(partial(_in_place, _function, getattr(Tensor, f"__{_name}__")))
