"""Fused ops: one name, one meaning, the room chosen by the device."""

from swiftvideo_fast.ops.attention import attention
from swiftvideo_fast.ops.ccd_loss import ccd_loss
from swiftvideo_fast.ops.ema import ema_
from swiftvideo_fast.ops.gate import gate
from swiftvideo_fast.ops.gelu import gelu
from swiftvideo_fast.ops.modulate import modulate
from swiftvideo_fast.ops.norm_rope import norm_rope
from swiftvideo_fast.ops.tangent import tangent

__all__ = ["attention", "ccd_loss", "ema_", "gate", "gelu", "modulate", "norm_rope", "tangent"]
