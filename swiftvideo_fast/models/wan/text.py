"""umT5 embeddings of captions, as in Wan's training: cleaned, zero-padded to 512 tokens, no mask."""

import html
import re
from typing import Any

import torch
from torch import Tensor

LENGTH = 512


def clean(caption: str) -> str:
    """Returns the caption with Unicode repaired, HTML entities unescaped twice ("&amp;amp;"), white space
    collapsed.  ValueError without ftfy."""
    try:
        import ftfy
    except ImportError as why:
        raise ValueError(f"captions need ftfy ({why}): pip install 'swiftvideo_fast[wan]'") from why
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(caption)))).strip()


class TextEncoder:
    """model: a UMT5EncoderModel.  tokenizer: its tokenizer.  length: tokens per caption (truncates)."""

    def __init__(self, model: Any, tokenizer: Any, length: int = LENGTH):
        self.model, self.tokenizer, self.length = model, tokenizer, length

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> Tensor:
        """Returns (B, length, E) in the model's dtype.  The empty string is a single end-of-text token."""
        tokens = self.tokenizer([clean(caption) for caption in captions], padding=True, truncation=True,
                                max_length=self.length, return_tensors="pt").to(self.model.device)
        text = self.model(tokens.input_ids, tokens.attention_mask).last_hidden_state
        text = text * tokens.attention_mask[..., None].to(text.dtype)
        return torch.nn.functional.pad(text, (0, 0, 0, self.length - text.shape[1]))
