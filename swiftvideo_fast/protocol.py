"""The tensor interface of a Dual: operators, methods, attributes and special methods."""

from collections.abc import Callable
from numbers import Number
from types import FunctionType

import torch
from torch import Tensor

from swiftvideo_fast.dispatch import call, dispatch
from swiftvideo_fast.dual import Dual, is_expired

OPERANDS = (Dual, Tensor, Number, torch.SymInt, torch.SymFloat, torch.SymBool)
# Python-written methods, which Dynamo does not trace; torch has functions of the same names
PYTHON_METHODS = {
    n for n in dir(Tensor) if isinstance(getattr(Tensor, n), FunctionType) and hasattr(torch, n)}
ATTRIBUTES: dict[str, Callable] = {}            # attributes with a tangent, or with a refusal


def _operator(function: Callable):
    def apply(self, *others):
        return dispatch(function, (self, *others), {})
    return apply


def _binary(function: Callable, swapped: bool = False):
    def apply(self, other):
        if not is_operand(other):
            return NotImplemented
        return dispatch(function, (other, self) if swapped else (self, other), {})
    return apply


def is_operand(x) -> bool:
    """True if x is a valid operand of a tensor operator."""
    return isinstance(x, OPERANDS)


for _name, _function in dict(
    add=torch.add, sub=torch.sub, mul=torch.mul, truediv=torch.div, pow=torch.pow, matmul=torch.matmul,
    mod=torch.remainder, floordiv=torch.floor_divide,
).items():
    setattr(Dual, f"__{_name}__", _binary(_function))
    setattr(Dual, f"__r{_name}__", _binary(_function, swapped=True))
    if hasattr(Tensor, f"{_function.__name__}_"):                  # x @= W makes a new tensor, as in torch
        setattr(Dual, f"__i{_name}__", _binary(getattr(Tensor, f"{_function.__name__}_")))
for _name in """eq ne lt le gt ge and or xor lshift rshift rand ror rxor rlshift rrshift
        iand ior ixor ilshift irshift""".split():
    setattr(Dual, f"__{_name}__", _binary(getattr(Tensor, f"__{_name}__")))
for _name in """neg pos abs invert getitem setitem len bool contains float int index complex array deepcopy
        """.split():
    setattr(Dual, f"__{_name}__", _operator(getattr(Tensor, f"__{_name}__")))
Dual.__iter__ = lambda self: iter(self.unbind(0))
Dual.__reversed__ = lambda self: self.flip(0) if self.dim() else self
Dual.__rtruediv__ = lambda self, other: self.reciprocal() * other if is_operand(other) else NotImplemented


def _torch_function(cls, func, types, args=(), kwargs=None):
    return call(func, args, kwargs or {}, types)


def _getattr(self, name: str):
    """Returns a Tensor method or attribute, dispatched by RULES and ATTRIBUTES."""
    if is_expired(self):
        return getattr(self.p, name)
    if name in ATTRIBUTES:
        if torch.compiler.is_compiling():
            return ATTRIBUTES[name](self)
        with torch._C.DisableTorchFunction():      # the primal may be a buffer with a shadow
            return ATTRIBUTES[name](self)
    as_function = name in PYTHON_METHODS and torch.compiler.is_compiling()
    attribute = getattr(torch if as_function else Tensor, name)
    if callable(attribute):
        return lambda *args, **kwargs: dispatch(attribute, (self, *args), kwargs)
    return getattr(self.p, name)


class CallableTangent(Tensor):
    """A tangent tensor.  Calling it returns the transpose of its Dual."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __call__(self) -> Dual:
        return torch.t(self.dual)


def _t(self):
    """Returns the tangent.  In one or two dimensions the result is callable: x.t() is the transpose."""
    tangent = self.tangent
    if self.p.dim() > 2:
        return tangent
    if tangent is None or torch.compiler.is_compiling():
        return lambda: dispatch(torch.t, (self,), {})
    tangent = tangent.as_subclass(CallableTangent)
    tangent.dual = self
    return tangent


Dual.__torch_function__ = classmethod(_torch_function)
Dual.__getattr__ = _getattr
Dual.t = property(_t)
