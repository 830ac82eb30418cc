"""What Dynamo must know of Duals, taught to it when it first traces a jvp; to all else it makes no
difference.

By itself it takes the operators of a Dual and a tensor for the tensor's, with the arguments swapped, so that
`dual @ tensor` becomes `tensor @ dual` and `dual += tensor` a sum; and it answers `isinstance` and
`torch.is_tensor` from the class alone.
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
    """Runs while Dynamo traces; teaches once a process."""
    _teach()
    check_dispatch()


def prepare_eager() -> None:
    """A network inside this jvp may be compiled: teach, if Dynamo is loaded."""
    if "torch._dynamo.variables.builtin" in sys.modules:
        _teach()


def check_dispatch() -> None:
    """Raises where views would not know their base, and a tangent written through one would be lost."""
    if torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.ADInplaceOrView):
        raise RuntimeError(
            "jvp: torch's dispatcher skips autograd and views in this thread (ADInplaceOrView is excluded): "
            "jvp runs inside a custom operator or __torch_dispatch__, or an earlier error of torch.compile "
            "damaged torch's state; call jvp outside, or start a new process")


def leave_to_python(*members) -> None:
    """Dynamo never compiles these functions, methods and properties, nor what they call, as frames of their
    own: in code that runs as Python after a graph break, `is_compiling` must be false.  It still traces
    through them when it compiles what calls them.
    """
    skip = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)
    for member in members:
        for code in _codes(member):
            set_code_exec_strategy(code, skip)


def _codes(member) -> Iterator[CodeType]:
    """The code of a function, of a property's or of a class method's functions; and all code within."""
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


def _releasing_its_guard(_str: Callable) -> Callable:
    """torch._tensor_str._str without its leak.

    torch's function keeps a guard in a local variable.  Where printing a fake tensor fails, the traceback
    keeps that guard; when the error is freed, be it much later, the guard puts back the dispatch keys of its
    own time.  Whatever runs then is without autograd and views, or reads a fake tensor's memory and crashes.
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
def _teach() -> None:
    from torch._dynamo.variables import ConstantVariable
    from torch._dynamo.variables.builtin import BuiltinVariable
    from torch._dynamo.variables.torch import TorchInGraphFunctionVariable
    from torch._dynamo.variables.user_defined import UserDefinedObjectVariable

    from swiftvideo_fast.dual import Dual

    operate, ask = BuiltinVariable._handle_insert_op_in_graph, BuiltinVariable.call_isinstance

    def is_dual(variable) -> bool:
        return isinstance(variable, UserDefinedObjectVariable) and variable.python_type() is Dual

    def operate_as_python(self, tx, args, kwargs):
        if len(args) == 2 and not kwargs and any(map(is_dual, args)):
            if self.fn in IN_PLACE and is_dual(args[0]):
                return args[0].call_method(tx, IN_PLACE[self.fn], [args[1]], {})
            if self.fn in OPERATORS:
                name = OPERATORS[self.fn].rstrip("_")
                if is_dual(args[0]):
                    return args[0].call_method(tx, f"__{name}__", [args[1]], {})
                return args[1].call_method(tx, f"__{REFLECTED.get(name, 'r' + name)}__", [args[0]], {})
        return operate(self, tx, args, kwargs)

    def call_matmul(self, tx, a, b):
        return operate_as_python(self, tx, [a, b], {}) if is_dual(a) and is_dual(b) else None

    def call_isinstance(self, tx, arg, kinds):
        if is_dual(arg):
            return ConstantVariable.create(typetest.is_one(Tensor, Dual, kinds.as_python_constant()))
        return ask(self, tx, arg, kinds)

    torch._tensor_str._str = _releasing_its_guard(torch._tensor_str._str)
    BuiltinVariable._handle_insert_op_in_graph = operate_as_python
    BuiltinVariable.call_matmul = BuiltinVariable.call_imatmul = call_matmul
    BuiltinVariable.call_isinstance = call_isinstance
    BuiltinVariable.call_function_handler_cache.clear()
    handlers = TorchInGraphFunctionVariable._get_handlers()
    is_tensor = handlers[torch.is_tensor]
    handlers[torch.is_tensor] = lambda self, tx, arg: (
        ConstantVariable.create(True) if is_dual(arg) else is_tensor(self, tx, arg))
