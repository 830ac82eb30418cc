"""The critic: trained heads on frozen features, within frames and across them, after StyleGAN-T
(Sauer et al. 2023).

    block_k(x)   LeakyReLU(norm(conv_k(x)))         conv: circular, of spectral norm 1; norm: see PairNorm
    D(x)         h = block_1(x)     D = conv_1((h + block_9(h)) / sqrt 2)                             (1)
    D(x, c)      <conv_1(...), A c> / sqrt 64       with a conditioning c, conv_1 onto 64 channels    (2)
    D            minus its mean over the pair of real and generated clip                              (3)

Each feature level has two heads: a spatial one reads the N patches of a frame as a sequence, a temporal one
the T frames at a patch.  (3) is not in StyleGAN-T: without it, drift common to both clips of a pair masked
their difference.

Letters: B clips, the first half real, the second generated; T frames, N patches of a frame, C channels,
S sequences of length L: T of N or N of T.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftvideo_fast.adversary.backbones import features
from swiftvideo_fast.adversary.views import View
from swiftvideo_fast.models.family import Latent

KINDS = ("spatial", "temporal")
CODE = 64                   # channels of the conditioning's projection
CONDITION_TIMES = 8         # cosines of t in the conditioning
Logits = dict[str, list[Tensor]]        # kind of head -> logits per level


class SpectralConv(nn.Conv1d):
    """Circular Conv1d with spectral normalisation: W / u'Wv.  A training forward takes one power iteration.

    A sequence shorter than the kernel wraps around more than once.
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
        self.v = F.normalize(self.u @ w, dim=0)         # new tensors: autograd may have saved the old ones
        self.u = F.normalize(w @ self.v, dim=0)


class PairNorm(nn.Module):
    """Batch norm with the joint statistics of a real clip and its generated counterpart; none are running.

    A pair's logits are thus independent of the batch.  Per-clip statistics would hide a lack of contrast or
    detail in the generated clip: with them the heads stayed at chance on the demo's clips.
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
    """block_k of the header, k = kernel.  x: (B, S, C, L)."""

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.conv, self.norm = SpectralConv(channels, channels, kernel), PairNorm(channels)

    def forward(self, x_BSCL: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x_BSCL)), 0.2)


class Head(nn.Module):
    """One D_k.  condition_dim: size of c, 0 for none."""

    def __init__(self, channels: int, condition_dim: int):
        super().__init__()
        self.near, self.far = Block(channels, 1), Block(channels, 9)
        self.out = SpectralConv(channels, CODE if condition_dim else 1, 1)
        self.code = nn.Linear(condition_dim, CODE) if condition_dim else None

    def forward(self, x_BSCL: Tensor, c: Tensor | None) -> Tensor:
        """Returns logits (B, S, L).  x: (B, S, C, L); c: (B, condition_dim)."""
        h = self.near(x_BSCL)
        y = self.out((h + self.far(h)) / 2**0.5)                                                        # (1)
        if self.code:
            y = y * self.code(c)[:, None, :, None] / CODE**0.5                                          # (2)
        D = y.sum(2).unflatten(0, (2, -1))
        return (D - D.mean((0, 2, 3), keepdim=True)).flatten(0, 1)                                      # (3)


class Discriminator(nn.Module):
    """Spatial and temporal heads, one each per feature level.

    widths: channels per level.  condition_dim: size of c, 0 for none.
    """

    def __init__(self, widths: list[int], condition_dim: int = 0):
        super().__init__()
        self.heads = nn.ModuleDict({kind: nn.ModuleList(Head(C, condition_dim) for C in widths)
                                    for kind in KINDS})

    def forward(self, features: list[Tensor], c: Tensor | None = None) -> dict[str, list[Tensor]]:
        """Returns kind -> logits (B, T, N) per level.  features: (B, T, N, C) per level."""
        within, across = (zip(self.heads[kind], features) for kind in KINDS)
        return {"spatial": [head(x_BTNC.mT, c) for head, x_BTNC in within],
                "temporal": [head(x_BTNC.permute(0, 2, 3, 1), c).mT for head, x_BTNC in across]}


class Projection(nn.Conv3d):
    """Latents to pictures without a decoder (OSV): a learned 1 x 1 projection to three channels, upsampled.

    One picture per latent frame, at pixel resolution: (B, C, T, H, W) -> (B, 3, T, 8H, 8W).
    """

    def __init__(self, latent: Latent):
        super().__init__(latent.channels, 3, 1)
        self.stride_s = latent.stride

    def forward(self, z_BCTHW: Tensor) -> Tensor:
        size = (1, self.stride_s, self.stride_s)
        return F.interpolate(super().forward(z_BCTHW), scale_factor=size, mode="trilinear")


@dataclass(frozen=True)
class CriticInput:
    """Real and generated windows (B, C, T, H, W) under one crop and augmentation.  c: conditioning vector.
    features: backbone features of both, per level; None with a learned projection."""

    real: Tensor
    fake: Tensor
    view: View
    c: Tensor
    features: list[Tensor] | None = None

    def detached(self) -> "CriticInput":
        kept = self.features and [x.detach() for x in self.features]
        return replace(self, fake=self.fake.detach(), features=kept)

    def shown(self, picture: Callable[[Tensor], Tensor], crop: int) -> Tensor:
        """Returns real, then generated pixels in this view: (2 B, 3, T, crop, crop)."""
        return torch.cat([self.view.of(picture(window), crop) for window in (self.real, self.fake)])


class Critic(nn.Module):
    """The adversary's trained part: heads and, given `projects`, a projection that replaces the decoder."""

    def __init__(self, widths: list[int], text_dim: int, projects: Latent | None = None):
        super().__init__()
        self.heads = Discriminator(widths, CONDITION_TIMES + text_dim)
        self.picture = Projection(projects) if projects else nn.Identity()

    def forward(self, seen: CriticInput, backbone: nn.Module, crop: int) -> tuple[Logits, Logits]:
        """Returns (logits of the real clips, logits of the generated ones)."""
        of_both = seen.features or features(backbone, seen.shown(self.picture, crop))
        both = self.heads(of_both, torch.cat([seen.c] * 2))
        halves = {kind: [x.chunk(2) for x in heads] for kind, heads in both.items()}
        return tuple({kind: [half[i] for half in heads] for kind, heads in halves.items()} for i in (0, 1))


def initialise(net: nn.Module, rng: torch.Generator) -> None:
    """Initialises from rng, equal on all ranks: Xavier weights, zero biases, 30 power iterations."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv3d):
            nn.init.xavier_uniform_(module.weight.flatten(1), generator=rng)
            nn.init.zeros_(module.bias)
        if isinstance(module, SpectralConv):
            nn.init.normal_(module.u, generator=rng)
            for _ in range(30):
                module.iterate()
