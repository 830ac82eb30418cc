"""Few-step image-to-video distillation, and forward mode for any network."""

from swiftvideo_fast import ops, rules
from swiftvideo_fast.dual import Dual, NoTangent
from swiftvideo_fast.transform import jvp

__all__ = ["Dual", "NoTangent", "jvp", "ops", "rules"]
