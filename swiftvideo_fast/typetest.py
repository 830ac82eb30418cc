"""Makes `isinstance(dual, torch.Tensor)` true for Python code and false for C++.

C++ that sees a Tensor reads the object's memory as one.  Both sides read `__class__`; the calling frame's
bytecode tells them apart.  In Python it is at a call of `isinstance`, a class pattern, or a `__class__`
attribute.  Any other caller gets the real class, and so do modules of torch and DeepSpeed that pass objects
to C++ (CPP_CALLERS).  Where the bytecode does not determine the tested classes, a TypeError is raised.
"""

import dis
import sys
from functools import cache
from types import CodeType, FrameType, UnionType
from typing import NamedTuple

import torch

CPP_CALLERS = (
    "torch._dynamo", "torch._functorch", "torch.autograd", "torch.nn.parallel", "torch.distributed",
    "torch.fx", "torch._subclasses", "torch._library", "torch._higher_order_ops", "torch.jit", "deepspeed")
LEGACY = type(torch.FloatTensor)
NAMES = frozenset("LOAD_GLOBAL LOAD_NAME LOAD_FAST LOAD_FAST_CHECK LOAD_FAST_BORROW LOAD_FAST_LOAD_FAST "
                  "LOAD_FAST_BORROW_LOAD_FAST_BORROW LOAD_DEREF LOAD_CLASSDEREF".split())
NO_FALLTHROUGH = frozenset("JUMP_FORWARD JUMP_BACKWARD JUMP_BACKWARD_NO_INTERRUPT RETURN_VALUE RETURN_CONST "
                           "RAISE_VARARGS RERAISE".split())
PURE = frozenset("LOAD_CONST LOAD_ATTR BUILD_TUPLE BINARY_SUBSCR CACHE PUSH_NULL PRECALL".split())
UNKNOWN = object()
CHECKPOINT_SAVES = ("_CheckpointFrame.save_inputs",             # of torch.utils.checkpoint
                    "_NoopSaveInputs.setup_context")            # of torch 2.11's
Instructions = list[dis.Instruction]


class TypeTest(NamedTuple):
    """A bytecode location that may test a type.

    callee: instructions that push the called function; empty: certainly a type test.
    classes: instructions that push the tested classes; None: unknown; empty: `__class__` is read directly.
    """

    callee: Instructions
    classes: Instructions | None


def reported_class(self: object) -> type:
    """Returns `__class__` of a Dual: Tensor for a type test in Python, else its real class."""
    if torch.compiler.is_compiling():
        return type(self)
    frame = sys._getframe(1)
    module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_qualname
    if module.startswith(CPP_CALLERS) or function.startswith(CHECKPOINT_SAVES):
        return type(self)
    test = _type_tests(frame.f_code).get(frame.f_lasti)
    if test is None or test.callee and _evaluate(test.callee, frame) is not isinstance:
        return type(self)
    if test.classes == []:
        return torch.Tensor
    classes = UNKNOWN if test.classes is None else _evaluate(test.classes, frame)
    if classes is UNKNOWN:
        raise TypeError("isinstance: the classes for a tensor under jvp are computed in the call; want names "
                        "(a variable, an attribute, a tuple of them): assign them to a variable first")
    return torch.Tensor if checked_classes(classes) else type(self)


def checked_classes(classes) -> list[type]:
    """Returns isinstance's classes, flattened.  TypeError for torch.FloatTensor etc., tested in C++."""
    found = list(_flatten(classes))
    if any([isinstance(cls, LEGACY) for cls in found]):
        raise TypeError("isinstance: torch.FloatTensor or similar for a tensor under jvp, read in C++; "
                        "want a test of x.dtype")
    return found


def dual_isinstance(tensor: type, dual: type, classes) -> bool:
    """Returns isinstance(dual, classes): true if Tensor or Dual is a subclass of any."""
    return any([issubclass(tensor, cls) or issubclass(dual, cls) for cls in checked_classes(classes)])


@cache
def _type_tests(code: CodeType) -> dict[int, TypeTest]:
    """Returns {offset: TypeTest} where this code may call isinstance, match a class or read __class__."""
    instructions, found = list(dis.get_instructions(code)), {}
    for here, at in enumerate(instructions):
        if at.opname in ("CALL", "PRECALL") and at.arg == 2:    # specialized, Python 3.11 calls at PRECALL
            call = here - (at.opname == "CALL" and instructions[here - 1].opname == "PRECALL")
            if (callee := _callee(instructions, call, values=4)) is not None:
                found[at.offset] = TypeTest(callee, _operand(instructions, call))
        elif at.opname == "CALL_FUNCTION_EX":
            if (callee := _callee(instructions, here, values=3 + at.arg % 2)) is not None:
                found[at.offset] = TypeTest(callee, None)
        elif at.opname == "MATCH_CLASS":                        # attribute names are pushed last
            found[at.offset] = TypeTest([], _operand(instructions, _start_of(instructions, here, 1) or 0))
        elif at.opname == "LOAD_ATTR" and at.argval == "__class__":
            # once specialized, Python 3.12's f_lasti is inside the instruction's cache
            offsets = range(at.offset, instructions[here + 1].offset, 2)
            found |= dict.fromkeys(offsets, TypeTest([], []))
    return found


def _start_of(instructions: Instructions, end: int, values: int) -> int | None:
    """Returns the index of the first instruction that pushes the top `values` stack values before `end`.

    Walks backwards along a possible execution: through a jump where the previous instruction does not fall
    through.  None if there is no such index.
    """
    here = end
    while values > 0:
        before, jumps = here - 1, False
        if here and instructions[before].opname in NO_FALLTHROUGH:
            before = next((i for i in range(here) if instructions[i].opcode in dis.hasjrel
                           and instructions[i].argval == instructions[here].offset), -1)
            jumps = True
        if before < 0:
            return None
        values -= dis.stack_effect(instructions[before].opcode, instructions[before].arg, jump=jumps)
        here = before
    return here


def _callee(instructions: Instructions, call: int, values: int) -> Instructions | None:
    """Returns instructions that push a call's function, `values` below the top; None if not isinstance."""
    begin = _start_of(instructions, call, values)
    if begin is None:
        return [] if any(at.argval == "isinstance" for at in instructions) else None
    pushed = [at for at in instructions[begin:begin + 3] if at.opname not in ("PUSH_NULL", "CACHE")]
    if len(pushed) > 1 and pushed[1].opname in ("LOAD_ATTR", "LOAD_METHOD"):
        return pushed[:2] if pushed[1].argval == "isinstance" and pushed[0].opname in NAMES else None
    if pushed[0].opname in NAMES:
        return pushed[:1]
    return [] if pushed[0].argval == "isinstance" else None


def _operand(instructions: Instructions, end: int) -> Instructions | None:
    """Returns the instructions that push the top value before `end`; None if they may have side effects."""
    begin = _start_of(instructions, end, 1)
    found = [] if begin is None else instructions[begin:end]
    return None if begin is None or not all(map(_is_pure, found)) else found


def _is_pure(at: dis.Instruction) -> bool:
    return at.opname in NAMES or at.opname in PURE or at.opname == "CALL" and at.arg == 1 or \
        at.opname == "BINARY_OP" and at.argrepr == "|"


def _evaluate(instructions: Instructions, frame: FrameType):
    """Returns the value that the instructions push in this frame, or UNKNOWN."""
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
            stack += [_look_up(name, frame, at.opname == "LOAD_GLOBAL") for name in names]
        if any([value is UNKNOWN for value in stack]):
            return UNKNOWN
    return stack[-1]


def _look_up(name: str, frame: FrameType, is_global: bool):
    """Looks a name up.  Reads f_locals last resort: before Python 3.13 that keeps all locals alive."""
    for names in (frame.f_globals, frame.f_builtins) if is_global else (
            frame.f_locals, frame.f_globals, frame.f_builtins):
        if name in names:
            return names[name]
    return UNKNOWN


def _flatten(classes):
    if isinstance(classes, tuple | UnionType):
        for cls in classes if isinstance(classes, tuple) else classes.__args__:
            yield from _flatten(cls)
    else:
        yield classes
