"""Frozen video features for the Frechet distance: one small 3-D convolution net, trained or seeded random.

The trained weights are in this folder, written by pretext.py.  A net is useful as a metric only if it
separates real clips from corrupted ones: see tests/test_features.py.
"""

from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from swiftvideo_fast.atomic import atomic_write

WEIGHTS = Path(__file__).with_name("features.safetensors")
FEATURES = 64
WIDTHS = (12, 32, 64)   # channels per stage, in each stream
FLOOR = 1e-4            # added to a channel's variance: smaller motion counts as none
RANDOM_GAIN = 0.4       # gives features of real clips a total variance near 100, as the trained net's


class FeatureNet(nn.Module):
    """Maps clips (B, 3, T, H, W) in [-1, 1] to features (B, 64).

    Two separate streams of convolutions, over frames and over frame differences, so that lack of motion is
    detected at any contrast.  Each channel of each stage is pooled to log(std) and mean / std, so that
    relative changes of contrast count.
    """

    def __init__(self):
        super().__init__()
        a, b, c = WIDTHS
        self.streams = nn.ModuleList(nn.ModuleList([
            nn.Conv3d(3, a, (3, 4, 4), stride=2, padding=1),
            nn.Conv3d(a, b, 3, stride=2, padding=1),
            nn.Conv3d(b, c, 3, stride=(1, 2, 2), padding=1),
        ]) for _ in range(2))
        self.mix = nn.Linear(2 * 2 * sum(WIDTHS), FEATURES)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        change, pooled = torch.diff(x_BCTHW, dim=2, prepend=x_BCTHW[:, :, :1]), []
        for h, stages in zip((x_BCTHW, change), self.streams, strict=True):
            h = h.contiguous(memory_format=torch.channels_last_3d)
            for stage in stages:
                h = F.silu(stage(h))
                variance, mean = torch.var_mean(h, (2, 3, 4), correction=0)
                spread = (variance + FLOOR).sqrt()
                pooled += [spread.log(), mean / spread]
        return self.mix(torch.cat(pooled, 1))

    @torch.no_grad()
    def extract(self, clips_BCTHW: Tensor, batch: int = 32) -> Tensor:
        """Returns features (B, 64) float32, computed in batches.  ValueError for wrong shapes."""
        if clips_BCTHW.ndim != 5 or clips_BCTHW.shape[1] != 3 or min(clips_BCTHW.shape[3:]) < 8:
            raise ValueError(f"extract: clips are {tuple(clips_BCTHW.shape)}; want (B, 3, T, H, W), "
                             "H and W at least 8")
        return torch.cat([self(part.float()) for part in clips_BCTHW.split(batch)])


def random_net(seed: int = 0) -> FeatureNet:
    """Returns the net with seeded random weights, as a control without training.

    Each filter has zero mean, so it responds to edges and not to brightness.
    """
    net, rng = FeatureNet(), torch.Generator().manual_seed(seed)
    for stage in chain(*net.streams):
        w = torch.randn(stage.weight.shape, generator=rng)
        w -= w.mean((2, 3, 4), keepdim=True)
        stage.weight.data = w * (2 / w[0].numel()) ** 0.5
        stage.bias.data.zero_()
    net.mix.weight.data = torch.randn(net.mix.weight.shape, generator=rng) * RANDOM_GAIN
    net.mix.bias.data.zero_()
    return net.eval().requires_grad_(False)


def trained_net(path: Path | str = WEIGHTS) -> FeatureNet:
    """Returns the shipped trained net.  ValueError for a missing or damaged file."""
    net = FeatureNet()
    try:
        net.load_state_dict(load_file(str(path)))
    except Exception as why:
        raise ValueError(f"{path}: not the feature net's weights ({why}); regenerate them with "
                         "`python -m swiftvideo_fast.metrics.pretext`") from why
    return net.eval().requires_grad_(False)


def save(net: FeatureNet, path: Path | str) -> None:
    """Writes the weights, atomically."""
    with atomic_write(path) as tmp:
        save_file({name: w.contiguous() for name, w in net.state_dict().items()}, str(tmp))
