"""Compares Frechet distance and FVD with cd-fvd's code: on random features, then on networks of the
published architectures with random weights.

    PYTHONPATH=SITE:.:kernels python tests/compare_cdfvd.py [DEPTH [NET FRAMES CLIPS]]

SITE holds cd-fvd 0.1.1, torchvision and scipy below 1.18 (`pip install --target SITE --no-deps ...`).  I3D
is complete; VideoMAE's ViT-g has DEPTH of its 40 blocks (default: 1), all else as published.  Exit code 1 if
the two differ by more than 1e-6 of the scale: the features' mean squares and variances.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from cdfvd import fvd as package
from cdfvd.third_party.i3d.pytorch_i3d import InceptionI3d
from cdfvd.third_party.VideoMAEv2 import utils, videomaev2_finetune
from cdfvd.utils.metric_utils import FeatureStats

from swiftvideo_fast.data.decode import Framing
from swiftvideo_fast.metrics.frechet import distance, fit
from swiftvideo_fast.metrics.fvd import fvd, measure
from swiftvideo_fast.metrics.moments import Gaussian
from swiftvideo_fast.metrics.published_nets import load

NAMES = {"i3d": "fvd-i3d", "videomae": "fvd-videomae"}


def of_features() -> float:
    """Returns the largest difference, relative to the scale, on features of several counts and widths."""
    rng, worst = torch.Generator().manual_seed(0), 0.0
    for clips, width in ((20, 5), (300, 64), (64, 300), (900, 400)):
        mixing = torch.randn(width, width, generator=rng)
        x, y = (torch.randn(clips, width, generator=rng) @ mixing + shift for shift in (0.0, 0.3))
        theirs = [FeatureStats(capture_mean_cov=True), FeatureStats(capture_mean_cov=True)]
        for stats, features in zip(theirs, (x, y), strict=True):
            stats.append_torch(features, rank=0, num_gpus=1)
        want = package.cdfvd.compute_fvd_from_stats(None, *theirs)
        a, b = fit(x), fit(y)
        error = abs(distance(a, b) - want) / scale_of(a, b)
        print(f"{clips} clips of {width} features: theirs {want:.9g}, apart by {error:.1e} of the scale",
              flush=True)
        worst = max(worst, error)
    return worst


def scale_of(*sides: Gaussian) -> float:
    return sum((side.covariance.trace() + side.mean.square().sum()).item() for side in sides)


def clips(count: int, frames: int, rng: torch.Generator) -> torch.Tensor:
    """Returns clips of coarse patterns, each with its own colour and contrast."""
    centre, contrast = torch.rand(2, count, 1, 1, 1, 3, generator=rng)
    x = centre + contrast * (torch.rand(count, frames, 8, 12, 3, generator=rng) - 0.5)
    return (x.clamp(0, 1) * 255).byte().repeat_interleave(8, 2).repeat_interleave(8, 3)


def shallow(depth: int, **told):
    return videomaev2_finetune.VisionTransformer(
        patch_size=14, embed_dim=1408, depth=depth, num_heads=16, mlp_ratio=48 / 11, qkv_bias=True,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        **{name: value for name, value in told.items() if name != "pretrained"})


def random_weights(folder: Path, depth: int) -> dict[str, Path]:
    torch.manual_seed(0)
    i3d = InceptionI3d(400, in_channels=3)
    for module in i3d.modules():
        if isinstance(module, torch.nn.Conv3d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    torch.save(i3d.state_dict(), folder / "i3d.pt")
    mae = shallow(depth, img_size=224, num_classes=174, all_frames=16, tubelet_size=2, use_mean_pooling=True)
    torch.save({"module": mae.state_dict()}, folder / "videomae.pt")
    return {"i3d": folder / "i3d.pt", "videomae": folder / "videomae.pt"}


def main() -> int:
    depth = int(sys.argv[1]) if sys.argv[1:] else 1
    cases = [("i3d", 16, 3), ("videomae", 16, 2), ("i3d", 64, 2)]
    if sys.argv[2:]:
        cases = [(sys.argv[2], *map(int, sys.argv[3:]))]
    for module in (videomaev2_finetune, utils):
        module.vit_giant_patch14_224 = partial(shallow, depth)
    rng, worst = torch.Generator().manual_seed(0), of_features()
    with tempfile.TemporaryDirectory() as folder:
        files = random_weights(Path(folder), depth)
        for kind, frames, count in cases:
            framing = Framing(frames, 16.0, 96, 64)
            real, fake = clips(count, frames, rng), clips(count, frames, rng)
            judge = package.cdfvd(kind, "full", "full", str(files[kind]), device="cpu")
            theirs = judge.compute_fvd(real.numpy(), fake.numpy())
            net = load(NAMES[kind], files[kind])
            sides = [measure(net, x.split(2), framing) for x in (real, fake)]
            ours = fvd(net, *sides, framing).distance
            mean, covariance = judge.real_stats.get_mean_cov()
            found = sides[0].gaussian()
            scale = scale_of(*(side.gaussian() for side in sides))
            apart = [abs(ours - theirs), ((found.mean.numpy() - mean) ** 2).sum(),
                     abs(found.covariance.numpy() - covariance).max()]
            worst = max(worst, *(x / scale for x in apart))
            print(f"{NAMES[kind]}, {frames} frames, {count} clips: theirs {theirs:.9g}, ours {ours:.9g}; of "
                  f"the scale {scale:.3g}, distance, mean and covariance are apart by "
                  f"{', '.join(f'{x / scale:.1e}' for x in apart)}", flush=True)
    return int(worst > 1e-6)


if __name__ == "__main__":
    sys.exit(main())
