"""Patches Dynamo to trace Duals, at the first traced jvp; code without Duals is not affected.

Unpatched, Dynamo dispatches an operator of a Dual and a tensor to the tensor with swapped arguments:
`dual @ tensor` becomes `tensor @ dual`, and `dual += tensor` becomes a sum.  It also evaluates `isinstance`
and `torch.is_tensor` by class alone.
"""

import operator
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import cache, wraps
from types import CodeType, FunctionType

import torch
from torch import Tensor
from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy

from swiftvideo_fast import typetest

BINARY = "add sub mul truediv pow matmul mod floordiv and_ or_ xor lshift rshift eq ne lt le gt ge"
OPERATORS = {getattr(operator, name): name for name in BINARY.split()}
IN_PLACE = {getattr(operator, f"i{name}"): f"__i{name}__" for name in
            "add sub mul truediv pow mod floordiv".split()}
OPERATORS[operator.imatmul] = "matmul"                          # a tensor has no __imatmul__
REFLECTED = {"eq": "eq", "ne": "ne", "lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}


@torch.compiler.assume_constant_result
def prepare() -> None:
    """Called while Dynamo traces; patches Dynamo once per process."""
    _patch_dynamo()
    check_dispatch()


def prepare_eager() -> None:
    """Patches Dynamo if it is loaded: the network inside this jvp may be compiled."""
    if "torch._dynamo.variables.builtin" in sys.modules:
        _patch_dynamo()


def check_dispatch() -> None:
    """Raises RuntimeError where views do not track their base: a write through one would lose its tangent."""
    if torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.ADInplaceOrView):
        raise RuntimeError(
            "jvp: torch's dispatcher skips autograd and views in this thread (ADInplaceOrView is excluded): "
            "jvp runs inside a custom operator or __torch_dispatch__, or an earlier error of torch.compile "
            "damaged torch's state; call jvp outside, or start a new process")


def never_compile(*members) -> None:
    """Stops Dynamo from compiling these functions, methods and properties, or their callees, as own frames.

    After a graph break they run as Python, where `is_compiling` must be false.  Dynamo still traces through
    them from a compiled caller.
    """
    skip = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)
    for member in members:
        for code in _codes(member):
            set_code_exec_strategy(code, skip)


def _codes(member) -> Iterator[CodeType]:
    """Yields the code objects, nested ones included, of a function, property or class method."""
    if isinstance(member, property):
        for function in (member.fget, member.fset):
            yield from _codes(function)
    elif isinstance(member, classmethod | staticmethod):
        yield from _codes(member.__func__)
    elif isinstance(member, FunctionType):
        yield from _codes(member.__code__)
        yield from _codes(getattr(member, "__wrapped__", None))
    elif isinstance(member, CodeType):
        yield member
        for constant in member.co_consts:
            yield from _codes(constant)


def _without_guard_leak(_str: Callable) -> Callable:
    """Returns torch._tensor_str._str with a leaked dispatch guard released (a torch 2.13 bug).

    torch keeps a guard in a local variable.  If printing a fake tensor fails, the traceback keeps the guard
    alive.  When the error is freed, at any later time, the guard restores its saved dispatch keys: code then
    runs without autograd and views, or reads a fake tensor's memory and crashes.
    """
    @wraps(_str)
    def release(*args, **kwargs):
        try:
            return _str(*args, **kwargs)
        except Exception as error:
            with torch._C._PreserveDispatchKeyGuard():
                traceback.clear_frames(error.__traceback__)
            raise
    return release


@cache
def _patch_dynamo() -> None:
    from torch._dynamo.convert_frame import CatchErrorsWrapper
    from torch._dynamo.types import ConvertFrameReturn
    from torch._dynamo.variables import ConstantVariable
    from torch._dynamo.variables.builtin import BuiltinVariable
    from torch._dynamo.variables.torch import TorchInGraphFunctionVariable
    from torch._dynamo.variables.user_defined import UserDefinedObjectVariable

    from swiftvideo_fast.dual import CURRENT, Dual

    original_compile = CatchErrorsWrapper.__call__
    original_operator = BuiltinVariable._handle_insert_op_in_graph
    original_isinstance = BuiltinVariable.call_isinstance

    def is_dual(variable) -> bool:
        return isinstance(variable, UserDefinedObjectVariable) and variable.python_type() is Dual

    def insert_operator(self, tx, args, kwargs):
        if len(args) == 2 and not kwargs and any(map(is_dual, args)):
            if self.fn in IN_PLACE and is_dual(args[0]):
                return args[0].call_method(tx, IN_PLACE[self.fn], [args[1]], {})
            if self.fn in OPERATORS:
                name = OPERATORS[self.fn].rstrip("_")
                if is_dual(args[0]):
                    return args[0].call_method(tx, f"__{name}__", [args[1]], {})
                return args[1].call_method(tx, f"__{REFLECTED.get(name, 'r' + name)}__", [args[0]], {})
        return original_operator(self, tx, args, kwargs)

    def call_matmul(self, tx, a, b):
        return insert_operator(self, tx, [a, b], {}) if is_dual(a) and is_dual(b) else None

    def call_isinstance(self, tx, arg, kinds):
        if is_dual(arg):
            return ConstantVariable.create(typetest.dual_isinstance(Tensor, Dual, kinds.as_python_constant()))
        return original_isinstance(self, tx, arg, kinds)

    def compile_frame(self, frame, *state):
        """Compiled code would drop the tangent of a plain tensor: with shadows the frame runs as Python."""
        if CURRENT.level is not None and CURRENT.level.shadows:
            return ConvertFrameReturn(apply_to_code=False)
        return original_compile(self, frame, *state)

    CatchErrorsWrapper.__call__ = compile_frame
    torch._tensor_str._str = _without_guard_leak(torch._tensor_str._str)
    BuiltinVariable._handle_insert_op_in_graph = insert_operator
    BuiltinVariable.call_matmul = BuiltinVariable.call_imatmul = call_matmul
    BuiltinVariable.call_isinstance = call_isinstance
    BuiltinVariable.call_function_handler_cache.clear()
    handlers = TorchInGraphFunctionVariable._get_handlers()
    is_tensor = handlers[torch.is_tensor]
    handlers[torch.is_tensor] = lambda self, tx, arg: (
        ConstantVariable.create(True) if is_dual(arg) else is_tensor(self, tx, arg))
