"""A critic of latents: heads on the features of a diffusion network, after PCM's `discriminator_sd3.py`.

    D_k(x) = w' LeakyReLU(GroupNorm(A x))       a token at a time, on the output x of block k
"""

import math

import torch
from torch import Tensor, nn

GROUPS = 32


class LatentCritic(nn.Module):
    """widths: channels of the features, block by block."""

    def __init__(self, widths: list[int]):
        super().__init__()
        self.heads = nn.ModuleList(nn.Sequential(
            nn.Conv1d(C, C, 1), nn.GroupNorm(math.gcd(GROUPS, C), C), nn.LeakyReLU(0.2), nn.Conv1d(C, 1, 1))
            for C in widths)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Logits (B, 1, N) of each block, from features (B, N, C)."""
        pairs = zip(self.heads, features, strict=True)
        return [head(x_BNC.mT.to(head[0].weight.dtype)) for head, x_BNC in pairs]


def initialise(critic: LatentCritic, rng: torch.Generator) -> None:
    """Weights from rng, equal on every rank."""
    for module in critic.modules():
        if isinstance(module, nn.Conv1d):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=rng)
            nn.init.zeros_(module.bias)


def hinge(logits: list[Tensor], sign: int) -> Tensor:
    """max(0, 1 - sign D_k), the mean over tokens and heads."""
    return sum((1 - sign * D_k).relu().mean() for D_k in logits) / len(logits)
