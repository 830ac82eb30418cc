"""Trained heads on frozen features, after StyleGAN-T (Sauer et al. 2023), within frames and across them.

    block_k(x)   LeakyReLU(norm(conv_k(x)))         conv: circular, of spectral norm 1; norm: see PairNorm
    D(x)         h = block_1(x)     D = conv_1((h + block_9(h)) / sqrt 2)                             (1)
    D(x, c)      <conv_1(...), A c> / sqrt 64       where told of c, conv_1 onto 64 channels          (2)
    D            less its mean over the real clip and the generated one beside it                     (3)

Each level of features has a head of each kind: a spatial one reads the N patches of a frame as a sequence, a
temporal one the T frames at a patch.  (3) is not StyleGAN-T's: what both of a pair have in common tells
nothing, and its drift hid what they have not.

Letters: B clips, the first half real, the second what was generated beside them; T frames, N patches of a
frame, C channels, S sequences of length L: T of N or N of T.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftvideo_fast.models.codec import CHANNELS, STRIDE_S

KINDS = ("spatial", "temporal")
CODE = 64           # channels that the condition is compared in


class SpectralConv(nn.Conv1d):
    """The weight over its largest singular value u'Wv; in training a forward takes one power iteration.

    A sequence may be shorter than the kernel: it goes round more than once.
    """

    def __init__(self, channels: int, out: int, kernel: int):
        super().__init__(channels, out, kernel)
        self.register_buffer("u", torch.zeros(out))
        self.register_buffer("v", torch.zeros(channels * kernel))

    def forward(self, x_BSCL: Tensor) -> Tensor:
        if self.training:
            self.iterate()
        (kernel,), L, x_SCL = self.kernel_size, x_BSCL.shape[3], x_BSCL.flatten(0, 1)
        if kernel > 1:
            x_SCL = x_SCL[..., torch.arange(-(kernel // 2), L + kernel // 2, device=x_BSCL.device) % L]
        largest = self.u @ self.weight.flatten(1) @ self.v
        return F.conv1d(x_SCL, self.weight / largest, self.bias).unflatten(0, x_BSCL.shape[:2])

    @torch.no_grad()
    def iterate(self) -> None:
        w = self.weight.flatten(1)
        self.v = F.normalize(self.u @ w, dim=0)         # new tensors: the old ones may be on a tape
        self.u = F.normalize(w @ self.v, dim=0)


class PairNorm(nn.Module):
    """Batch norm with the statistics of a real clip and the generated one beside it, and no running ones.

    So a pair is judged alike in a batch of any size.  The statistics of each clip alone would hide a lack of
    contrast or detail in the generated one: with them the heads stayed at chance on the demo's clips.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x_BSCL: Tensor) -> Tensor:
        pairs = x_BSCL.unflatten(0, (2, -1))
        variance, mean = torch.var_mean(pairs, (0, 2, 4), correction=0, keepdim=True)
        n = ((pairs - mean) * (variance + 1e-5).rsqrt()).flatten(0, 1)
        return n * self.weight[:, None] + self.bias[:, None]


class Block(nn.Module):
    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.conv, self.norm = SpectralConv(channels, channels, kernel), PairNorm(channels)

    def forward(self, x_BSCL: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x_BSCL)), 0.2)


class Head(nn.Module):
    """One D_k.  told: size of the condition, 0 for none."""

    def __init__(self, channels: int, told: int):
        super().__init__()
        self.near, self.far = Block(channels, 1), Block(channels, 9)
        self.out = SpectralConv(channels, CODE if told else 1, 1)
        self.code = nn.Linear(told, CODE) if told else None

    def forward(self, x_BSCL: Tensor, c: Tensor | None) -> Tensor:
        """(B, S, L); c: (B, told)."""
        h = self.near(x_BSCL)
        y = self.out((h + self.far(h)) / 2**0.5)                                                        # (1)
        if self.code:
            y = y * self.code(c)[:, None, :, None] / CODE**0.5                                          # (2)
        D = y.sum(2).unflatten(0, (2, -1))
        return (D - D.mean((0, 2, 3), keepdim=True)).flatten(0, 1)                                      # (3)


class Discriminator(nn.Module):
    """widths: channels of the features, level by level.  told: size of the condition, 0 for none."""

    def __init__(self, widths: list[int], told: int = 0):
        super().__init__()
        self.heads = nn.ModuleDict({kind: nn.ModuleList(Head(C, told) for C in widths) for kind in KINDS})

    def forward(self, features: list[Tensor], c: Tensor | None = None) -> dict[str, list[Tensor]]:
        """Kind -> logits (B, T, N) of each level, from features (B, T, N, C)."""
        within, across = (zip(self.heads[kind], features) for kind in KINDS)
        return {"spatial": [head(x_BTNC.mT, c) for head, x_BTNC in within],
                "temporal": [head(x_BTNC.permute(0, 2, 3, 1), c).mT for head, x_BTNC in across]}


class Projection(nn.Conv3d):
    """Latents to pictures without a decoder (as OSV): 16 channels to three, learned with the heads.

    A latent frame gives one picture, as large as its pixels: (B, 16, T, H, W) -> (B, 3, T, 8H, 8W).
    """

    def __init__(self):
        super().__init__(CHANNELS, 3, 1)

    def forward(self, z_BCTHW: Tensor) -> Tensor:
        return F.interpolate(super().forward(z_BCTHW), scale_factor=(1, STRIDE_S, STRIDE_S), mode="trilinear")


def initialise(net: nn.Module, rng: torch.Generator) -> None:
    """Xavier weights and zero biases from rng, so equal on all ranks; spectral norms from 30 iterations."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv3d):
            nn.init.xavier_uniform_(module.weight.flatten(1), generator=rng)
            nn.init.zeros_(module.bias)
        if isinstance(module, SpectralConv):
            nn.init.normal_(module.u, generator=rng)
            for _ in range(30):
                module.iterate()
