"""`isinstance(x, torch.Tensor)` is true of a Dual where Python code asks, and false where C++ does.

C++ takes a true answer as leave to read the object's memory as a tensor's.  Both read `__class__`; the frame that
asks tells them apart: in Python it stands at a call of `isinstance`, at a class pattern, or at the attribute
itself.  Any other asker gets the real class, and so do the parts of torch and DeepSpeed that hand what they find
to C++.
"""

import dis
import sys
from functools import cache
from types import CodeType, FrameType

import torch

TO_CPP = ("torch._dynamo", "torch._functorch", "torch.autograd", "torch.nn.parallel", "torch.distributed",
          "torch.fx", "torch._subclasses", "torch._library", "torch._higher_order_ops", "torch.jit", "deepspeed")
SAVES = "_CheckpointFrame.save_inputs"                          # of torch.utils.checkpoint


def asks_in_python(frame: FrameType) -> bool:
    """Does this frame ask for a type in Python, as a network does?"""
    module = frame.f_globals.get("__name__", "")
    if module.startswith(TO_CPP) or frame.f_code.co_qualname.startswith(SAVES):
        return False
    return frame.f_lasti in _questions(frame.f_code)


@cache
def _questions(code: CodeType) -> frozenset[int]:
    """The offsets of calls of isinstance, class patterns and reads of __class__ in this code."""
    found, loads = set(), set()
    for at in dis.get_instructions(code):
        begins = None if at.positions is None or at.positions.col_offset is None else at.positions[0::2]
        if at.opname.startswith(("LOAD_GLOBAL", "LOAD_NAME")) and at.argval == "isinstance":
            loads.add(begins)
        asked = at.opname.startswith("CALL") and begins is not None and begins in loads
        if asked or at.opname == "MATCH_CLASS" or at.opname == "LOAD_ATTR" and at.argval == "__class__":
            found.add(at.offset)
    return frozenset(found)


def claimed(self: object) -> type:
    """What `__class__` of a Dual answers."""
    if torch.compiler.is_compiling() or not asks_in_python(sys._getframe(1)):
        return type(self)
    return torch.Tensor
