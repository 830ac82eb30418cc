"""FVD of two sets of videos: classic (fvd-i3d) or content-debiased (fvd-videomae).

    python -m swiftvideo_fast.metrics.fvd REAL GENERATED --net fvd-i3d --weights i3d_pretrained_400.pt \\
        --frames 64 --fps 16 --size 832 480 --cache statistics          (torchrun: the videos are shared out)

Clips come in batches of uint8 (B, T, H, W, 3) and are not kept.  A figure means something only with its
network, number of clips, frames, rate and size beside it, so the result has them; and beside the distance,
which few clips bias upwards, an unbiased estimate with an interval (frechet.py), or why there is none.
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
    """distance: as published figures.  estimate: unbiased, or None, and `why`."""

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
        return (f"{self.net} {self.distance:.2f}; {unbiased}\n{self.real} real and {self.generated} made "
                f"clips of {f.frames} frames at {f.rate:g} fps, {f.width}x{f.height}; {self.weights}")


def measure(net: Published, batches: Iterable[Tensor | np.ndarray], framing: Framing, rank: int = 0,
            world: int = 1) -> Moments:
    """Of one rank's clips: those at rank, rank + world, ... of the set.  `gather` puts ranks together.

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
    """Of what `measure` gave for each, by one net and framing."""
    value, estimate, why = frechet.distance(real.gaussian(), generated.gaussian()), None, ""
    few, want = min(real.count, generated.count), frechet.fewest(net.features)
    if few < want:
        why = f"no unbiased estimate from {few} clips, want {want} a side"
    else:
        estimate = frechet.estimate(real, generated)
    return Fvd(net.name, net.about, real.count, generated.count, framing, value, estimate, why)


def videos(folder: Path, framing: Framing, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
    """(1, T, H, W, 3) from the beginning of every world-th video of a folder, in the order of their paths.

    ValueError for a folder without any, an archive that cannot be read, and a video that does not decode or
    is too short.
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
    """Digest of the videos' names and bytes."""
    found = [(str(place), size) for place, size in files.walk(folder)[0].items()]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m swiftvideo_fast.metrics.fvd",
                                     description=__doc__.partition("\n")[0])
    parser.add_argument("real", type=Path, help="a folder of videos")
    parser.add_argument("generated", type=Path, help="a folder of videos")
    parser.add_argument("--net", choices=LOADERS, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="the net's (docs/metrics.md)")
    parser.add_argument("--frames", type=int, default=16, help="from each video's beginning (default: 16)")
    parser.add_argument("--fps", type=float, default=16.0, help="frames a second (default: 16)")
    parser.add_argument("--size", type=int, nargs=2, default=[832, 480], metavar=("WIDTH", "HEIGHT"),
                        help="centre crop and resize to it (default: 832 480)")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep the real videos' statistics there")
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
