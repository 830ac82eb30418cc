"""Registers Dual with einops: its torch backend handles Duals unchanged."""

from swiftvideo_fast.dual import Dual

try:
    from einops._backends import TorchBackend
except ImportError:
    pass
else:
    class DualBackend(TorchBackend):
        framework_name = "swiftvideo_fast"

        def is_appropriate_type(self, tensor) -> bool:
            return isinstance(tensor, Dual)
