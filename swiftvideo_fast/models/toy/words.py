"""Text embedding of the demo: a fixed random vector per word, without download."""

import zlib

import torch
from torch import Tensor


class WordVectors:
    """Maps captions to (B, length, dim): one seeded unit-variance vector per word, zero-padded."""

    def __init__(self, dim: int, length: int = 12):
        self.dim, self.length = dim, length

    def __call__(self, captions: list[str]) -> Tensor:
        text = torch.zeros(len(captions), self.length, self.dim)
        for row, caption in zip(text, captions, strict=True):
            for token, word in zip(row, caption.replace(",", " ").split(), strict=False):
                token.copy_(self._vector(word))
        return text

    def _vector(self, word: str) -> Tensor:
        return torch.randn(self.dim, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))
