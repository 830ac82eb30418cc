"""`isinstance(x, torch.Tensor)` is true of a Dual where Python code asks, and false where C++ does.

C++ takes a true answer as leave to read the object's memory as a tensor's.  Both read `__class__`; the frame
that asks tells them apart: in Python it stands at a call of `isinstance`, at a class pattern, or at the
attribute
itself.  Any other asker gets the real class, and so do the parts of torch and DeepSpeed that hand what they
find to C++.
"""

import dis
import sys
from functools import cache
from types import CodeType, FrameType, UnionType

import torch

TO_CPP = ("torch._dynamo", "torch._functorch", "torch.autograd", "torch.nn.parallel", "torch.distributed",
          "torch.fx", "torch._subclasses", "torch._library", "torch._higher_order_ops", "torch.jit",
          "deepspeed")
LEGACY = type(torch.FloatTensor)
CALLS = {"CALL", "PRECALL"}     # once warm, Python 3.11 calls isinstance at PRECALL
SAVES = "_CheckpointFrame.save_inputs"                          # of torch.utils.checkpoint


def claimed(self: object) -> type:
    """What `__class__` of a Dual answers."""
    if torch.compiler.is_compiling():
        return type(self)
    frame = sys._getframe(1)
    if frame.f_globals.get("__name__", "").startswith(TO_CPP) or frame.f_code.co_qualname.startswith(SAVES):
        return type(self)
    question = _questions(frame.f_code).get(frame.f_lasti)
    if question is None:
        return type(self)
    return torch.Tensor if known(_evaluated(question, frame)) else type(self)


def known(kinds) -> list[type]:
    """The classes of isinstance's second argument.  torch.FloatTensor and its like ask in C++: they raise."""
    found = list(_flat(kinds))
    if any([isinstance(kind, LEGACY) for kind in found]):
        raise TypeError("isinstance: of a tensor that jvp differentiates, ask x.dtype; "
                        "torch.FloatTensor and its like read C++ memory")
    return found


def is_one(tensor: type, dual: type, kinds) -> bool:
    """What isinstance answers of a Dual."""
    return any([issubclass(tensor, kind) or issubclass(dual, kind) for kind in known(kinds)])


@cache
def _questions(code: CodeType) -> dict[int, list[dis.Instruction]]:
    """Where this code calls isinstance, matches a class or reads __class__: what names the class asked
    for."""
    found, called, before = {}, set(), []
    for at in dis.get_instructions(code):
        begins = None if at.positions is None or at.positions.col_offset is None else at.positions[0::2]
        if at.opname.startswith(("LOAD_GLOBAL", "LOAD_NAME")) and at.argval == "isinstance":
            called.add(begins)
        asked = begins in called if begins is not None else _calls_isinstance(before)
        if at.opname in CALLS and asked:
            found[at.offset] = _last_operand(before)
        elif at.opname == "MATCH_CLASS":
            found[at.offset] = _last_operand(before[:-1])                     # names of attributes come last
        elif at.opname == "LOAD_ATTR" and at.argval == "__class__":
            found[at.offset] = []
        if at.opname not in ("CACHE", "PRECALL", "EXTENDED_ARG", "PUSH_NULL"):
            before.append(at)
    return found


def _calls_isinstance(before: list[dis.Instruction]) -> bool:
    """Is it isinstance that comes before the last two operands?  Code that Dynamo writes has no positions."""
    for _ in range(2):
        operand = _last_operand(before)
        if operand is None:
            return False
        before = before[:-len(operand)]
    return bool(before) and before[-1].argval == "isinstance"


def _last_operand(instructions: list[dis.Instruction]) -> list[dis.Instruction] | None:
    """The instructions that push the last value on the stack; None if they are more than names in a tuple."""
    wanted = 1
    for back, at in enumerate(reversed(instructions), 1):
        if at.opname == "BUILD_TUPLE":
            wanted += at.arg - 1
        elif at.opname == "BINARY_OP" and at.argrepr == "|":
            wanted += 1
        elif at.opname.startswith("LOAD_FAST_") and isinstance(at.argval, tuple):
            wanted -= 2
        elif at.opname.startswith(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FAST", "LOAD_DEREF", "LOAD_CONST")):
            wanted -= 1
        elif at.opname != "LOAD_ATTR":
            return None
        if wanted <= 0:
            return instructions[-back:]
    return None


def _evaluated(instructions: list[dis.Instruction] | None, frame: FrameType):
    """The value they push in this frame.  Empty: whatever has the class."""
    if instructions is None:
        return ()
    if not instructions:
        return torch.Tensor
    stack: list = []
    for at in instructions:
        if at.opname == "BUILD_TUPLE":
            stack[len(stack) - at.arg:] = [tuple(stack[len(stack) - at.arg:])]
        elif at.opname == "BINARY_OP":
            stack[-2:] = [stack[-2] | stack[-1]]
        elif at.opname == "LOAD_ATTR":
            stack[-1] = getattr(stack[-1], at.argval)
        elif at.opname == "LOAD_CONST":
            stack.append(at.argval)
        else:
            names = at.argval if isinstance(at.argval, tuple) else (at.argval,)
            stack += [_looked_up(name, frame) for name in names]
    return stack[-1]


def _looked_up(name: str, frame: FrameType):
    for names in (frame.f_locals, frame.f_globals, frame.f_builtins):
        if name in names:
            return names[name]
    return ()


def _flat(kinds):
    if isinstance(kinds, tuple | UnionType):
        for kind in kinds if isinstance(kinds, tuple) else kinds.__args__:
            yield from _flat(kind)
    else:
        yield kinds
