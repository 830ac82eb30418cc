"""What Python asks of a tensor, answered by a Dual: operators, methods, attributes, special methods."""

from collections.abc import Callable
from numbers import Number
from types import FunctionType

import torch
from torch import Tensor

from swiftvideo_fast.dispatch import call, enter
from swiftvideo_fast.dual import Dual, is_over

OPERANDS = (Dual, Tensor, Number, torch.SymInt, torch.SymFloat, torch.SymBool)
# methods that Dynamo does not enter; torch has functions of the name
WRITTEN_IN_PYTHON = {
    n for n in dir(Tensor) if isinstance(getattr(Tensor, n), FunctionType) and hasattr(torch, n)}
ATTRIBUTES: dict[str, Callable] = {}            # that carry a tangent, or must not


def _operator(function: Callable):
    def apply(self, *others):
        return enter(function, (self, *others), {})
    return apply


def _binary(function: Callable, swapped: bool = False):
    def apply(self, other):
        if not operand(other):
            return NotImplemented
        return enter(function, (other, self) if swapped else (self, other), {})
    return apply


def operand(x) -> bool:
    """Can x stand beside a tensor in an expression?"""
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
Dual.__rtruediv__ = lambda self, other: self.reciprocal() * other if operand(other) else NotImplemented


def _torch_function(cls, func, types, args=(), kwargs=None):
    return call(func, args, kwargs or {}, types)


def _getattr(self, name: str):
    """Methods and attributes of a tensor, by the same table."""
    if is_over(self):
        return getattr(self.p, name)
    if name in ATTRIBUTES:
        if torch.compiler.is_compiling():
            return ATTRIBUTES[name](self)
        with torch._C.DisableTorchFunction():      # the primal may be a buffer with a twin
            return ATTRIBUTES[name](self)
    spelled = name in WRITTEN_IN_PYTHON and torch.compiler.is_compiling()
    attribute = getattr(torch if spelled else Tensor, name)
    if callable(attribute):
        return lambda *args, **kwargs: enter(attribute, (self, *args), kwargs)
    return getattr(self.p, name)


class CalledAsMethod(Tensor):
    """A tangent that, called, is the transpose of its Dual."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __call__(self) -> Dual:
        return torch.t(self.dual)


def _t(self):
    """The tangent.  Networks know `x.t()` as the transpose of a matrix: called, it is that."""
    tangent = self.tangent
    if self.p.dim() > 2:
        return tangent
    if tangent is None or torch.compiler.is_compiling():
        return lambda: enter(torch.t, (self,), {})
    tangent = tangent.as_subclass(CalledAsMethod)
    tangent.dual = self
    return tangent


Dual.__torch_function__ = classmethod(_torch_function)
Dual.__getattr__ = _getattr
Dual.t = property(_t)
