"""`isinstance(x, torch.Tensor)` is true of a Dual where Python code asks, and false where C++ does.

C++ takes a true answer as leave to read the object's memory as a tensor's.  Both read `__class__`; the frame
that asks tells them apart: in Python it stands at a call of `isinstance`, at a class pattern, or at the
attribute itself.  Any other asker gets the real class, and so do the parts of torch and DeepSpeed that hand
what they find to C++.  Where the bytecode does not tell which classes are asked for, the answer is an error.
"""

import dis
import sys
from functools import cache
from types import CodeType, FrameType, UnionType
from typing import NamedTuple

import torch

TO_CPP = ("torch._dynamo", "torch._functorch", "torch.autograd", "torch.nn.parallel", "torch.distributed",
          "torch.fx", "torch._subclasses", "torch._library", "torch._higher_order_ops", "torch.jit",
          "deepspeed")
LEGACY = type(torch.FloatTensor)
NAMES = frozenset("LOAD_GLOBAL LOAD_NAME LOAD_FAST LOAD_FAST_CHECK LOAD_FAST_BORROW LOAD_FAST_LOAD_FAST "
                  "LOAD_FAST_BORROW_LOAD_FAST_BORROW LOAD_DEREF LOAD_CLASSDEREF".split())
LEAVES = frozenset("JUMP_FORWARD JUMP_BACKWARD JUMP_BACKWARD_NO_INTERRUPT RETURN_VALUE RETURN_CONST "
                   "RAISE_VARARGS RERAISE".split())
HARMLESS = frozenset("LOAD_CONST LOAD_ATTR BUILD_TUPLE BINARY_SUBSCR CACHE PUSH_NULL PRECALL".split())
UNKNOWN = object()
SAVES = "_CheckpointFrame.save_inputs"                          # of torch.utils.checkpoint
Instructions = list[dis.Instruction]


class Question(NamedTuple):
    """A place in code that may ask for a class: what pushes isinstance and the classes there.

    asks empty: it surely asks.  kinds None: that is not known; empty: whatever has the class.
    """

    asks: Instructions
    kinds: Instructions | None


def claimed(self: object) -> type:
    """What `__class__` of a Dual answers."""
    if torch.compiler.is_compiling():
        return type(self)
    frame = sys._getframe(1)
    if frame.f_globals.get("__name__", "").startswith(TO_CPP) or frame.f_code.co_qualname.startswith(SAVES):
        return type(self)
    question = _questions(frame.f_code).get(frame.f_lasti)
    if question is None or question.asks and _evaluated(question.asks, frame) is not isinstance:
        return type(self)
    if question.kinds == []:
        return torch.Tensor
    kinds = UNKNOWN if question.kinds is None else _evaluated(question.kinds, frame)
    if kinds is UNKNOWN:
        raise TypeError("isinstance: of a tensor that jvp differentiates, the classes must be names "
                        "(a variable, an attribute, a tuple of them): assign them to a variable first")
    return torch.Tensor if known(kinds) else type(self)


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
def _questions(code: CodeType) -> dict[int, Question]:
    """Where this code may call isinstance, matches a class or reads __class__, by offset."""
    ats, found = list(dis.get_instructions(code)), {}
    for here, at in enumerate(ats):
        if at.opname in ("CALL", "PRECALL") and at.arg == 2:    # once warm, Python 3.11 calls at PRECALL
            call = here - (at.opname == "CALL" and ats[here - 1].opname == "PRECALL")
            if (asks := _callee(ats, call, values=4)) is not None:
                found[at.offset] = Question(asks, _operand(ats, call))
        elif at.opname == "CALL_FUNCTION_EX":
            if (asks := _callee(ats, here, values=3 + at.arg % 2)) is not None:
                found[at.offset] = Question(asks, None)
        elif at.opname == "MATCH_CLASS":                        # the names of attributes come last
            found[at.offset] = Question([], _operand(ats, _begin(ats, here, 1) or 0))
        elif at.opname == "LOAD_ATTR" and at.argval == "__class__":
            following = ats[here + 1].offset                    # once warm, Python 3.12 stands in its cache
            found |= dict.fromkeys(range(at.offset, following, 2), Question([], []))
    return found


def _begin(ats: Instructions, end: int, values: int) -> int | None:
    """The index from which on the top `values` values of the stack before `end` are pushed.

    Walks back the way a run can have come: where the instruction before does not fall through, by a jump.
    """
    here = end
    while values > 0:
        before, jumps = here - 1, False
        if here and ats[before].opname in LEAVES:
            before = next((i for i in range(here) if ats[i].opcode in dis.hasjrel
                           and ats[i].argval == ats[here].offset), -1)
            jumps = True
        if before < 0:
            return None
        values -= dis.stack_effect(ats[before].opcode, ats[before].arg, jump=jumps)
        here = before
    return here


def _callee(ats: Instructions, call: int, values: int) -> Instructions | None:
    """What pushes the function of a call, `values` values before it, if it may be isinstance."""
    begin = _begin(ats, call, values)
    if begin is None:
        return [] if any(at.argval == "isinstance" for at in ats) else None
    pushed = [at for at in ats[begin:begin + 3] if at.opname not in ("PUSH_NULL", "CACHE")]
    if len(pushed) > 1 and pushed[1].opname in ("LOAD_ATTR", "LOAD_METHOD"):
        return pushed[:2] if pushed[1].argval == "isinstance" and pushed[0].opname in NAMES else None
    if pushed[0].opname in NAMES:
        return pushed[:1]
    return [] if pushed[0].argval == "isinstance" else None


def _operand(ats: Instructions, end: int) -> Instructions | None:
    """The instructions that push the last value before `end`; None if evaluating them again might do harm."""
    begin = _begin(ats, end, 1)
    return None if begin is None or not all(map(_is_harmless, ats[begin:end])) else ats[begin:end]


def _is_harmless(at: dis.Instruction) -> bool:
    return at.opname in NAMES or at.opname in HARMLESS or at.opname == "CALL" and at.arg == 1 or \
        at.opname == "BINARY_OP" and at.argrepr == "|"


def _evaluated(instructions: Instructions, frame: FrameType):
    """The value they push in this frame, or UNKNOWN."""
    stack: list = []
    for at in instructions:
        if at.opname in ("CACHE", "PUSH_NULL", "PRECALL"):
            continue
        if at.opname == "BUILD_TUPLE":
            stack[len(stack) - at.arg:] = [tuple(stack[len(stack) - at.arg:])]
        elif at.opname == "BINARY_OP":
            stack[-2:] = [stack[-2] | stack[-1]]
        elif at.opname == "BINARY_SUBSCR":
            stack[-2:] = [stack[-2][stack[-1]] if type(stack[-2]) in (dict, tuple, list) else UNKNOWN]
        elif at.opname == "CALL":
            stack[-2:] = [type(stack[-1]) if stack[-2] is type else UNKNOWN]
        elif at.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            stack[-1] = getattr(stack[-1], at.argval)
        elif at.opname == "LOAD_CONST":
            stack.append(at.argval)
        else:
            names = at.argval if isinstance(at.argval, tuple) else (at.argval,)
            stack += [_looked_up(name, frame, at.opname == "LOAD_GLOBAL") for name in names]
        if any([value is UNKNOWN for value in stack]):
            return UNKNOWN
    return stack[-1]


def _looked_up(name: str, frame: FrameType, is_global: bool):
    """Before Python 3.13, reading f_locals keeps all locals alive until the frame ends: only where needed."""
    for names in (frame.f_globals, frame.f_builtins) if is_global else (
            frame.f_locals, frame.f_globals, frame.f_builtins):
        if name in names:
            return names[name]
    return UNKNOWN


def _flat(kinds):
    if isinstance(kinds, tuple | UnionType):
        for kind in kinds if isinstance(kinds, tuple) else kinds.__args__:
            yield from _flat(kind)
    else:
        yield kinds
