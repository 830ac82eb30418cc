"""Data throughput: decoding, shards, and the share of a training step spent waiting.

    python -m bench data [--clips 12] [--seconds 5] [--size 832x480]      on the CPU's cores
    python -m bench data --device cuda                                    also NVDEC through DALI

The input is generated: six seconds of a moving pattern at 24 fps and 3 Mbit/s, in H.264 and VP9, at the
window's size and at 1280x720.  Candidates are timed in interleaved rounds.  `bare` is FFmpeg's decoder alone:
the whole file, or from the keyframe before the window to the window's end.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from bench.options import Parser, count, seconds, size
from swiftvideo_fast.data import dali, shards
from swiftvideo_fast.data.decode import Decoder, Framing, PyAv, decoder
from swiftvideo_fast.data.files import Place
from swiftvideo_fast.data.prefetch import Prefetched
from swiftvideo_fast.data.probe import Video, probe
from swiftvideo_fast.data.shards import ShardOptions, ShardSource

ENCODERS = {"h264": ("libx264", ".mp4", {"preset": "fast"}),
            "vp9": ("libvpx-vp9", ".webm", {"deadline": "realtime", "cpu-used": "6"})}
# Shapes of Wan at 832x480.
LATENT, FRAMES, IMAGE, TEXT = (16, 16, 60, 104), (20, 16, 60, 104), (257, 1280), (120, 4096)


def film(path: Path, encoder: str, options: dict, width: int, height: int, frames: int = 144) -> Path:
    """Writes a video of moving blocks over grain: neither trivially predictable nor noise."""
    import av

    rng = np.random.default_rng(0)
    large = np.kron(rng.integers(0, 256, (height // 16 + 16, width // 16 + 40, 3)), np.ones((16, 16, 1)))
    grain = rng.normal(0, 4, (height, width, 1))
    with av.open(str(path), "w") as file:
        stream = file.add_stream(encoder, rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 3_000_000
        for i in range(frames):
            view = large[i:i + height, 3 * i:3 * i + width] + np.roll(grain, 7 * i, 1)
            picture = np.ascontiguousarray(view.clip(0, 255).astype(np.uint8))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return path


def bare(path: Path, video: Video, span: tuple[int, int] | None = None) -> None:
    """Decodes with FFmpeg alone: the whole file, or the frames from time span[0] to span[1]."""
    import av

    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stream.thread_type = "NONE"
        if span and span[0] > video.times[0]:
            file.seek(span[0], stream=stream)
        for frame in file.decode(stream):
            if span and frame.pts >= span[1]:
                return


def rates(candidates: dict[str, Callable[[int], None]], args: argparse.Namespace) -> dict[str, float]:
    """Returns clips per second of each candidate: its best of interleaved rounds of args.clips.

    CPU time on the CPU, so other processes do not count; wall-clock time with NVDEC.
    """
    clock = time.perf_counter if args.device.startswith("cuda") else time.process_time
    best = dict.fromkeys(candidates, 0.0)
    begin = time.monotonic()
    with ThreadPoolExecutor(args.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        while time.monotonic() - begin < args.seconds * len(candidates):
            for name, work in candidates.items():
                start = clock()
                list(pool.map(work, range(args.clips)))
                best[name] = max(best[name], args.clips / (clock() - start))
    return best


def decoding(folder: Path, args: argparse.Namespace) -> None:
    width, height = args.size
    framing, device = Framing(61, 16.0, width, height), torch.device(args.device)
    others: dict[str, Decoder] = {"ours, PyAV": PyAv(), "ours, PyAV, smooth": PyAv(smooth=True)}
    if dali.installed():
        others[f"ours, DALI ({'NVDEC' if device.type == 'cuda' else 'CPU'})"] = decoder("dali", device)
    print(f"windows of 61 frames at 16 fps, {width}x{height}; {args.threads} threads; clips/s "
          f"{'' if device.type == 'cuda' else 'and core '}\n"
          "(then relative to the bare decode of the whole file and of the window)")
    for w, h in dict.fromkeys((args.size, (1280, 720))):
        source = f"{w}x{h}"
        for codec, (encoder, suffix, options) in ENCODERS.items():
            path = film(folder / f"{codec}-{source}{suffix}", encoder, options, w, h)
            video, place = probe(path), Place("", path.name)
            starts = np.random.default_rng(1).integers(framing.starts(video), size=args.clips)
            chosen = [framing.choose(video, int(start)) for start in starts]
            spans = [(int(video.times[c[0]]), int(video.times[c[-1]])) for c in chosen]

            def whole(_: int, path=path, video=video) -> None:
                bare(path, video)

            def needed(i: int, path=path, video=video, spans=spans) -> None:
                bare(path, video, spans[i])

            def ours(i: int, how: Decoder, place=place, video=video, chosen=chosen) -> None:
                how.window(folder, place, video, chosen[i], framing)

            candidates = {"bare, whole file": whole, "bare, window": needed}
            for name, how in others.items():
                if "DALI" not in name or how.takes(video):
                    candidates[name] = partial(ours, how=how)
            for work in candidates.values():
                work(0)
            found = rates(candidates, args)
            for name, rate in found.items():
                print(f"  {codec:5}{source:10}{name:22}{rate:8.1f}   {rate / found['bare, whole file']:5.2f}"
                      f"   {rate / found['bare, window']:5.2f}", flush=True)


def stored(folder: Path, clips: int = 64) -> ShardSource:
    """Returns a source of random shards, 61 frames of 832x480, in `swiftvideo encode`'s format."""
    about = {"windows": clips, "texts": clips + 1, "text_length": 512, "passes": 1, "codec": {}}
    rng = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng).bfloat16()

    captions = ["", *(f"caption {i}" for i in range(clips))]
    ends = torch.tensor([0, 1, *(1 + TEXT[0] * i for i in range(1, clips + 1))])
    text = {"text": random(int(ends[-1]), TEXT[1]), "ends": ends}
    shards.write(shards.file_of(folder, "text", 0), text, about, captions)
    for shard in range(clips // shards.CLIPS):
        rows = [[0, shard * shards.CLIPS + i, 0, shard * shards.CLIPS + i + 1] for i in range(shards.CLIPS)]
        tensors = {name: random(shards.CLIPS, *shape)
                   for name, shape in (("x0", LATENT), ("frames", FRAMES), ("image", IMAGE))}
        shards.write(shards.file_of(folder, "clips", shard), tensors, about, rows)
    (folder / shards.MANIFEST).write_text(json.dumps(about))
    return ShardSource(ShardOptions(folder=str(folder)), SimpleNamespace(identity={}))


def from_shards(folder: Path, args: argparse.Namespace) -> None:
    source = stored(folder)
    torch.set_num_threads(1)
    drawn, begin = 0, None
    while begin is None or time.perf_counter() - begin < args.seconds:
        if drawn == len(source):
            begin = begin or time.perf_counter()                    # the first epoch fills the page cache
        source.draw(1, 0, drawn)
        drawn += 1
    took = time.perf_counter() - begin
    size = sum(np.prod(shape) * 2 for shape in (LATENT, FRAMES, IMAGE, TEXT)) / 1e6
    print(f"shards, {size:.0f} MB per clip: {(drawn - len(source)) / took:.0f} samples/s on one core")

    ahead, shares = Prefetched(source), []
    for step in range(12):
        begin = time.perf_counter()
        ahead.draw(4, 0, 4 * step)
        waited = time.perf_counter() - begin
        while time.perf_counter() - begin < 0.5:                    # a step of 0.5 s; Wan's takes several
            torch.ones(256, 256) @ torch.ones(256, 256)
        shares.append(waited / (time.perf_counter() - begin))
    ahead.close()
    print(f"shards, 4 clips per step of 0.5 s: {shares[0]:.1%} of the first step spent waiting, "
          f"{max(shares[2:]):.2%} at most of a later one")


def main(argv: list[str]) -> int:
    parser = Parser("data", __doc__)
    parser.add_argument("--clips", type=count, default=12, help="clips per round")
    parser.add_argument("--seconds", type=seconds, default=5.0, help="timing per candidate")
    parser.add_argument("--size", type=size, default=(832, 480),
                        help="of a window and of one of the two test files")
    parser.add_argument("--threads", type=count, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device here")
    if any(side % 2 for side in args.size):
        parser.error("--size: {}x{}; want even sides, for the encoders of the test files".format(*args.size))
    with tempfile.TemporaryDirectory() as name:
        decoding(Path(name), args)
    with tempfile.TemporaryDirectory() as name:
        from_shards(Path(name), args)
    return 0
