"""The latent critic: heads on a diffusion network's features, after PCM's `discriminator_sd3.py`.

    D_k(x) = w' LeakyReLU(GroupNorm(A x))       per token, on the output x of block k
"""

import math

import torch
from torch import Tensor, nn

GROUPS = 32


class LatentCritic(nn.Module):
    """One head per block.  widths: channels of the features, per block."""

    def __init__(self, widths: list[int]):
        super().__init__()
        self.heads = nn.ModuleList(nn.Sequential(
            nn.Conv1d(C, C, 1), nn.GroupNorm(math.gcd(GROUPS, C), C), nn.LeakyReLU(0.2), nn.Conv1d(C, 1, 1))
            for C in widths)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Returns logits (B, 1, N) per block.  features: (B, N, C) per block."""
        pairs = zip(self.heads, features, strict=True)
        return [head(x_BNC.mT.to(head[0].weight.dtype)) for head, x_BNC in pairs]


def initialise(critic: LatentCritic, rng: torch.Generator) -> None:
    """Initialises weights from rng, equal on all ranks."""
    for module in critic.modules():
        if isinstance(module, nn.Conv1d):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=rng)
            nn.init.zeros_(module.bias)


def hinge(logits: list[Tensor], sign: int) -> Tensor:
    """max(0, 1 - sign D_k), mean over tokens and heads."""
    return sum((1 - sign * D_k).relu().mean() for D_k in logits) / len(logits)
