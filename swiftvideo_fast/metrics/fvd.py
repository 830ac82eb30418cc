"""FVD of two sets of videos: classic (fvd-i3d) or content-debiased (fvd-videomae).

    python -m swiftvideo_fast.metrics.fvd REAL GENERATED --net fvd-i3d --weights i3d_pretrained_400.pt \\
        --frames 64 --fps 16 --size 832 480 --cache statistics          (torchrun splits the videos)

Clips are processed in batches of uint8 (B, T, H, W, 3) and not kept.  A figure is meaningful only with its
network, number of clips, frames, rate and size, so the result includes them.  It also includes an unbiased
estimate with an interval (frechet.py), or the reason for having none.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from swiftvideo_fast.data import files
from swiftvideo_fast.data.decode import Framing, PyAv
from swiftvideo_fast.data.probe import probe
from swiftvideo_fast.metrics import frechet
from swiftvideo_fast.metrics.frechet import Estimate
from swiftvideo_fast.metrics.moments import Moments, cached
from swiftvideo_fast.metrics.published_nets import LOADERS, Published, load


@dataclass(frozen=True)
class Fvd:
    """distance: comparable to published figures.  estimate: unbiased; if None, `why` has the reason."""

    net: str
    weights: str
    real: int
    generated: int
    framing: Framing
    distance: float
    estimate: Estimate | None
    why: str = ""

    def __str__(self) -> str:
        f = self.framing
        unbiased = f"unbiased {self.estimate}" if self.estimate else self.why
        return (f"{self.net} {self.distance:.2f}; {unbiased}\n{self.real} real and {self.generated} "
                f"generated clips of {f.frames} frames at {f.rate:g} fps, {f.width}x{f.height}; "
                f"{self.weights}")


def measure(net: Published, batches: Iterable[Tensor | np.ndarray], framing: Framing, rank: int = 0,
            world: int = 1) -> Moments:
    """Returns moments of one rank's clips: rank, rank + world, ... of the set.  `gather` merges ranks.

    ValueError for clips of another number of frames or size.
    """
    net.check(framing.frames)
    seen, want = Moments(net.features), (framing.frames, framing.height, framing.width, 3)
    for batch in batches:
        clips = torch.as_tensor(batch)
        if clips.dtype != torch.uint8 or clips.shape[1:] != want:
            raise ValueError(f"{net.name}: clips are {clips.dtype} {tuple(clips.shape)}; want uint8 (B, "
                             f"{', '.join(map(str, want))})")
        first = rank + world * seen.count
        seen.update(net.extract(clips), range(first, first + world * len(clips), world))
    return seen


def fvd(net: Published, real: Moments, generated: Moments, framing: Framing) -> Fvd:
    """Returns the FVD of two results of `measure` with one net and framing."""
    value, estimate, why = frechet.distance(real.gaussian(), generated.gaussian()), None, ""
    few, want = min(real.count, generated.count), frechet.fewest(net.features)
    if few < want:
        why = f"no unbiased estimate from {few} clips, want {want} a side"
    else:
        estimate = frechet.estimate(real, generated)
    return Fvd(net.name, net.about, real.count, generated.count, framing, value, estimate, why)


def videos(folder: Path, framing: Framing, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
    """Yields (1, T, H, W, 3) from the start of every world-th video of a folder, sorted by path.

    ValueError for a folder without videos, an unreadable archive, and a video that does not decode or is too
    short.
    """
    found, unread = files.walk(folder)
    for place, why in unread.items():
        raise ValueError(f"{folder / str(place)}: {why}")
    if not found:
        raise ValueError(f"{folder}: no videos in it")
    decoder = PyAv()
    for place in tqdm([*found][rank::world], folder.name, disable=rank > 0 or None):
        try:
            video = probe(files.open_file(folder, place))
            if not framing.starts(video):
                raise ValueError(f"{len(video.times)} frames, {video.seconds:.2f} s; want {framing.frames} "
                                 f"frames at {framing.rate:g} fps")
            window = decoder.window(folder, place, video, framing.choose(video, 0), framing)
        except ValueError as why:
            raise ValueError(f"{folder / str(place)}: {why}") from why
        yield window.permute(1, 2, 3, 0)[None]


def identity(folder: Path) -> str:
    """Returns a digest of the videos' names and sizes."""
    found = [(str(place), size) for place, size in files.walk(folder)[0].items()]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m swiftvideo_fast.metrics.fvd",
                                     description=__doc__.partition("\n")[0])
    parser.add_argument("real", type=Path, help="a folder of videos")
    parser.add_argument("generated", type=Path, help="a folder of videos")
    parser.add_argument("--net", choices=LOADERS, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="the net's weights (docs/metrics.md)")
    parser.add_argument("--frames", type=int, default=16, help="from the start of each video (default: 16)")
    parser.add_argument("--fps", type=float, default=16.0, help="frames per second (default: 16)")
    parser.add_argument("--size", type=int, nargs=2, default=[832, 480], metavar=("WIDTH", "HEIGHT"),
                        help="size after centre crop and resize (default: 832 480)")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="cache of the real videos' statistics")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    try:
        if world > 1:
            dist.init_process_group("gloo")
        result = _of_folders(args, rank, world)
        if rank == 0:
            print(result)
    except (ValueError, OSError, ImportError) as why:
        print(f"fvd: {why}", file=sys.stderr)
        return 2
    return 0


def _of_folders(args: argparse.Namespace, rank: int, world: int) -> Fvd:
    framing = Framing(args.frames, args.fps, *args.size)
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if args.device == "cuda" else args.device
    net = load(args.net, args.weights, device)

    def of(folder: Path) -> Moments:
        return measure(net, videos(folder, framing, rank, world), framing, rank, world)

    if args.cache:
        what = {"net": net.name, "weights": net.about, "clips": identity(args.real), "frames": framing.frames,
                "fps": framing.rate, "width": framing.width, "height": framing.height}
        real = cached(args.cache, what, lambda: of(args.real))
    else:
        real = of(args.real).gather()
    return fvd(net, real, of(args.generated).gather(), framing)


if __name__ == "__main__":
    sys.exit(main())
