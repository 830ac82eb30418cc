"""CLIP tokens of the first frame, as in Wan's training: the penultimate layer's, of the full frame.

The frame is resized to a square without cropping, bicubic *without* antialias.  transformers'
CLIPImageProcessor antialiases, so an exported pipeline's tokens equal ours only at CLIP's input size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN = 0.48145466, 0.4578275, 0.40821073            # CLIP's, for pixels in [0, 1]
STD = 0.26862954, 0.26130258, 0.27577711


class ImageEncoder:
    """model: a CLIPVisionModelWithProjection or CLIPVisionModel."""

    def __init__(self, model: Any):
        self.model = model

    @torch.no_grad()
    def __call__(self, frame_BCHW: Tensor) -> Tensor:
        """Maps (B, 3, H, W) in [-1, 1] to tokens (B, 257, 1280) in the model's dtype."""
        model, side = self.model, self.model.config.image_size
        x = frame_BCHW.to(model.device).float()
        x = F.interpolate(x, (side, side), mode="bicubic", align_corners=False)
        mean, std = (x.new_tensor(a)[:, None, None] for a in (MEAN, STD))
        x = ((x + 1) / 2 - mean) / std
        return model(x.to(model.dtype), output_hidden_states=True).hidden_states[-2]
