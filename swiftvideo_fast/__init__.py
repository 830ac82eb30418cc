"""Few-step image-to-video distillation, and forward-mode differentiation of any network."""

from swiftvideo_fast import ops, rules
from swiftvideo_fast.dual import Dual, NoTangent
from swiftvideo_fast.jvp import functional_jvp, jvp

__version__ = "0.1.0"
__all__ = ["Dual", "NoTangent", "functional_jvp", "jvp", "ops", "rules"]
