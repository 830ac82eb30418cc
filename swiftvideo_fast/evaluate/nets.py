"""The feature networks of an evaluation: the demo's two, and those of published FVD."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from swiftvideo_fast.metrics import published_nets
from swiftvideo_fast.metrics.features import WEIGHTS, random_net, trained_net
from swiftvideo_fast.metrics.fidelity import grey_levels
from swiftvideo_fast.metrics.published_nets import Published
from swiftvideo_fast.models import weights
from swiftvideo_fast.report.tables import METRICS, Metric

MOST_FRAMES = {"i3d": None, "videomae": 16}             # None: all frames of a clip
DEBIASED = {"i3d": "", "videomae": ", content-debiased: more sensitive to motion"}


@dataclass(frozen=True)
class Net:
    """A feature network.  extract: clips (B, 3, T, H, W) in [-1, 1] -> (B, D).  identity: of its weights."""

    metric: Metric
    extract: Callable[[Tensor], Tensor]
    identity: str


Nets = Mapping[str, Net]                                # by metric


def published(text: str) -> tuple[str, Path]:
    """argparse type of --fvd: i3d=PATH or videomae=PATH."""
    name, _, path = text.partition("=")
    if name not in MOST_FRAMES or not path:
        raise argparse.ArgumentTypeError(f"{text!r}; want i3d=PATH or videomae=PATH, a file of weights")
    return name, Path(path)


def open_nets(family: str, frames: int, fvd: Sequence[tuple[str, Path]], device: torch.device) -> Nets:
    """Returns the nets for clips of `frames` frames.  ValueError for missing or damaged weights, and for
    clips too short; ImportError, naming the extra, without cd-fvd."""
    found = {f"fvd-{name}": _published(name, path, frames, device) for name, path in fvd}
    if family == "toy":             # these nets were trained on the demo's clips at this size
        found["frechet"] = Net(METRICS["frechet"], trained_net().extract, weights.digest(WEIGHTS))
        found["frechet_random"] = Net(METRICS["frechet_random"], random_net().extract, "seed 0")
    return found


def _published(name: str, path: Path, frames: int, device: torch.device) -> Net:
    net, seen = published_nets.load(f"fvd-{name}", path, device), frames
    if MOST_FRAMES[name]:
        seen = min(frames, MOST_FRAMES[name]) // 2 * 2
    net.check(seen)
    label = {"i3d": "I3D", "videomae": "VideoMAE"}[name]
    metric = Metric(f"FVD, {label}", 1, f"Frechet distance in features of {label} on the first {seen} frames"
                    f"{DEBIASED[name]}; lower is better", compared=True)
    return Net(metric, partial(_extract, net, seen), f"{net.about}, {seen} frames")


def _extract(net: Published, frames: int, pixels: Tensor) -> Tensor:
    clips_BTHWC = grey_levels(pixels[:, :, :frames]).to(torch.uint8).permute(0, 2, 3, 4, 1)
    return net.extract(clips_BTHWC)
