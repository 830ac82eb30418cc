"""Fused ops: one name, one meaning; the device chooses the backend."""

from swiftvideo_fast.ops.attention import attention
from swiftvideo_fast.ops.ccd_gradient import ccd_gradient
from swiftvideo_fast.ops.ccd_loss import ccd_loss
from swiftvideo_fast.ops.ema import ema_
from swiftvideo_fast.ops.gate import gate
from swiftvideo_fast.ops.gelu import gelu
from swiftvideo_fast.ops.modulate import modulate
from swiftvideo_fast.ops.norm_rope import norm_rope

__all__ = ["attention", "ccd_gradient", "ccd_loss", "ema_", "gate", "gelu", "modulate", "norm_rope"]
