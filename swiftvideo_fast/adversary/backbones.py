"""Frozen backbones of the discriminator: frames to patch features at several depths.

A backbone maps frames (F, 3, H, W) in [-1, 1] to a list of (F, N, C); `widths` lists each C.  Gradients flow
to the frames, not to the backbone's weights.
"""

import re
from pathlib import Path
from urllib import request
from urllib.error import HTTPError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)        # ImageNet's, of pixels in [0, 1]
LEVELS = 4                                                      # depths read from DINOv2
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
HUB_TIMEOUT = 5.0                                               # seconds
GAIN = 3.0      # of random filters: gives features of real clips a standard deviation near 1


class Dino(nn.Module):
    """DINOv2 (Oquab et al. 2024): patch embedding and four depths, with the class token added to each patch.

    net: transformers' Dinov2Model, any size.  Frames are resized down to multiples of the patch size.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        layers = net.config.num_hidden_layers
        self.depths = [0, *(layers * i // LEVELS for i in range(1, LEVELS + 1))]
        self.widths = [net.config.hidden_size] * len(self.depths)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])

    def train(self, mode: bool = True) -> "Dino":
        return super().train(False)

    def forward(self, frames_FCHW: Tensor) -> list[Tensor]:
        patch, size = self.net.config.patch_size, frames_FCHW.shape[2:]
        fitting = [max(side // patch, 1) * patch for side in size]
        x = frames_FCHW if fitting == list(size) else F.interpolate(frames_FCHW, fitting, mode="area")
        x = ((x + 1) / 2 - self.mean) / self.std
        states = self.net(x, output_hidden_states=True).hidden_states
        return [states[depth][:, 1:] + states[depth][:, :1] for depth in self.depths]


class Filters(nn.Module):
    """Seeded random, untrained convolutions, for use without DINOv2's weights.

    Each filter has zero mean, so it responds to edges and not to brightness.
    """

    widths = (32, 64)       # channels of the two levels returned, at strides 4 and 8

    def __init__(self, seed: int):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        sizes = (3, 16, *self.widths)
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1, bias=False)
                                    for a, b in zip(sizes, sizes[1:]))
        for stage in self.stages:
            w = torch.randn(stage.weight.shape, generator=rng)
            w -= w.mean((2, 3), keepdim=True)
            stage.weight.data = GAIN * w * (2 / w[0].numel()) ** 0.5
        self.requires_grad_(False)

    def forward(self, frames_FCHW: Tensor) -> list[Tensor]:
        levels, h = [], frames_FCHW
        for stage in self.stages:
            h = F.silu(stage(h))
            levels.append(h.flatten(2).mT)
        return levels[1:]


def load_backbone(name: str) -> Dino | Filters:
    """Returns Filters for "filters", else the DINOv2 in a folder or under a hub name.

    ValueError when none is found there; ImportError, naming the extra, without transformers.
    """
    if name == "filters":
        return Filters(seed=2)
    try:
        if not Path(name).is_dir() and not HUB_NAME.fullmatch(name):
            raise ValueError("no such folder")
        from transformers import Dinov2Model

        return Dino(_pretrained(Dinov2Model, name))
    except ImportError as why:
        raise ImportError("da.backbone needs transformers: pip install 'swiftvideo_fast[wan]'") from why
    except (OSError, ValueError) as why:
        reason = str(why).splitlines()[0]
        raise ValueError(f"da.backbone is {name!r}, where no DINOv2 was found ({reason}); want the folder of "
                         "one, its name on the hub (facebook/dinov2-small), or filters") from why


def _pretrained(cls: type, name: str) -> nn.Module:
    """Loads from a folder, the hub's cache, or the hub if it is up (its own retries take a minute)."""
    if Path(name).is_dir():
        return cls.from_pretrained(name, local_files_only=True)
    try:
        return cls.from_pretrained(name, local_files_only=True)
    except OSError:
        _ask_hub(name)
    return cls.from_pretrained(name)


def _ask_hub(name: str) -> None:
    """Raises OSError immediately when the hub is unreachable or HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("not in the cache, and HF_HUB_OFFLINE is set")
    try:
        request.urlopen(request.Request(f"{constants.ENDPOINT}/{name}", method="HEAD"), timeout=HUB_TIMEOUT)
    except HTTPError:
        pass                            # the hub is up; from_pretrained reports a missing or private model
    except OSError as why:
        raise OSError(f"not in the cache, and {constants.ENDPOINT} is not reached: "
                      f"{getattr(why, 'reason', why)}") from why


def features(backbone: nn.Module, pixels_BCTHW: Tensor) -> list[Tensor]:
    """Returns the backbone's features of pixels (B, 3, T, H, W): a list of (B, T, N, C), one per level."""
    B = len(pixels_BCTHW)
    return [x.unflatten(0, (B, -1)) for x in backbone(pixels_BCTHW.transpose(1, 2).flatten(0, 1))]
