"""Fused ops.  The tensors' device selects the backend: csrc/ on a CPU, Triton on a GPU.

OPS is the registry.  An op NAME consists of ops/NAME.py (custom ops and the public function), reference.NAME,
csrc/NAME.h, kernels/swiftvideo_kernels/NAME.py and tests/test_NAME.py.  The bench, the compile report, the
mutants and the tests of all ops read the registry and the schemas of its custom ops (bench/arguments.py).
"""

from importlib import import_module

from torch.library import CustomOpDef

from swiftvideo_fast.ops.attention import attention
from swiftvideo_fast.ops.ccd_gradient import ccd_gradient
from swiftvideo_fast.ops.ccd_loss import ccd_loss
from swiftvideo_fast.ops.ema import ema_
from swiftvideo_fast.ops.gate import gate
from swiftvideo_fast.ops.gelu import gelu
from swiftvideo_fast.ops.modulate import modulate
from swiftvideo_fast.ops.norm_rope import norm_rope

__all__ = ["attention", "ccd_gradient", "ccd_loss", "ema_", "gate", "gelu", "modulate", "norm_rope"]
OPS = tuple(name.rstrip("_") for name in __all__)


def custom_ops(name: str) -> dict[str, CustomOpDef]:
    """Returns {name: custom op} of one op, the primal first: gate, gate_jvp, gate_backward."""
    module = import_module(f"swiftvideo_fast.ops.{name}")
    return {op._name: op for op in vars(module).values() if isinstance(op, CustomOpDef)}
