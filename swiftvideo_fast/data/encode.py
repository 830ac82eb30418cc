"""swiftvideo encode: encodes the windows of an index to shards of latents and conditions (data/shards.py).

Encodes each distinct caption once, then the windows, in index order.  Start one process per GPU: each encodes
every world-th shard.  Repeating the command writes missing shards only.
"""

import argparse
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from swiftvideo_fast import sealed
from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.config import differences
from swiftvideo_fast.config.arguments import (
    add_ranks,
    check_ranks,
    device,
    natural,
    positive,
    positive_number,
    size,
)
from swiftvideo_fast.config.strict import plain
from swiftvideo_fast.data import shards
from swiftvideo_fast.data.decode import DECODERS, RESIZE, Decoder, Framing, decoder
from swiftvideo_fast.data.index import Index, write_rejects
from swiftvideo_fast.models.family import Codec
from swiftvideo_fast.seeds import seed_of

log = logging.getLogger(__name__)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `encode`, except those of the codec, which the CLI adds."""
    parser.add_argument("index", type=Path, help="file written by `swiftvideo index`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--frames", type=positive, default=61, help="frames per window, 4n + 1 (default: 61)")
    parser.add_argument("--rate", type=positive_number, default=16.0,
                        help="frames per second of a window (default: 16)")
    parser.add_argument("--size", type=size, default=(832, 480), metavar="WxH",
                        help="window size in pixels (default: 832x480)")
    parser.add_argument("--passes", type=positive, default=1, help="windows per video (default: 1)")
    parser.add_argument("--seed", type=natural, default=0, help="seed of the windows' start times")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="storage dtype")
    parser.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu",
                        help="device of codec and DALI decoder (default: the GPU, if there is one)")
    parser.add_argument("--decoder", choices=DECODERS, default="auto", help="auto: DALI on a GPU, else PyAV")
    parser.add_argument("--threads", type=positive, default=os.cpu_count() or 1,
                        help="windows decoded in parallel")
    add_ranks(parser)


def framing_of(args: argparse.Namespace) -> Framing:
    return Framing(args.frames, args.rate, *args.size)


def run(args: argparse.Namespace, codec: Codec) -> None:
    """Runs `swiftvideo encode`.  codec: the family's codec."""
    check_ranks(args)
    job = Job(Index(args.index), args.out, codec, framing_of(args), seed=args.seed, passes=args.passes,
              dtype=args.dtype, decode=decoder(args.decoder, args.device), device=args.device)
    lost = job.write(range(args.rank, job.shards, args.world), args.threads, args.rank, args.world)
    print(f"{args.out}: {job.windows} windows of {len(job.rows)} videos, rank {args.rank} of {args.world}; "
          f"{len(job.rejects)} left out" + (f", see {args.out / 'rejects.csv'}" if job.rejects else "")
          + (f"; {len(lost)} no longer decode, and are not in the shards" if lost else ""))


class Job:
    """An encoding job: everything that determines the folder's bytes, and methods that write its shards.

    Window n is of video rows[n % len(rows)], pass n // len(rows).
    """

    def __init__(self, index: Index, out: Path, codec: Codec, framing: Framing, *, decode: Decoder,
                 seed: int = 0, passes: int = 1, dtype: str = "bfloat16", device: torch.device | str = "cpu"):
        self.index, self.out, self.codec, self.framing = index, out, codec, framing
        self.seed, self.passes, self.dtype, self.decode, self.device = seed, passes, dtype, decode, device
        fits = framing.fits(index.seconds)
        self.rows = np.flatnonzero(fits).tolist()
        self.rejects = {row: f"too short: {index.seconds[row]:.2f} s; a window takes {framing.seconds:.2f} s"
                        for row in np.flatnonzero(~fits).tolist()}
        if not self.rows:
            longest = index.seconds.max()
            raise ValueError(f"{index.path}: no video lasts {framing.seconds:.2f} s, the length of "
                             f"{framing.frames} frames at {framing.rate:g} a second; the longest lasts "
                             f"{longest:.2f} s; want fewer --frames")
        self.captions = sorted({"", *(index.captions[row] for row in self.rows)})       # "" is the null text
        self.number = {caption: number for number, caption in enumerate(self.captions)}
        self.windows = passes * len(self.rows)
        self.about = {
            "index": os.path.relpath(index.path, out), "index_sha256": index.sha256,
            "framing": asdict(framing), "resize": RESIZE, "decoder": decode.name,
            "seed": seed, "passes": passes, "dtype": dtype,
            "codec": plain(codec.identity), "windows": self.windows,
            "texts": len(self.captions), "text_length": len(codec.null_text),
            "shard": {"clips": shards.CLIPS, "texts": shards.TEXTS}}

    @property
    def shards(self) -> int:
        return -(-self.windows // shards.CLIPS)

    def write(self, numbers: Iterable[int], threads: int, rank: int = 0, world: int = 1) -> dict[str, str]:
        """Writes the missing ones of these shards, and of every world-th text shard.

        Returns {video: reason} of those that no longer decode.  Rank 0 also writes manifest and rejects.
        ValueError when the folder was encoded with other settings.
        """
        self._check_manifest(rank)
        for shard in range(rank, -(-len(self.captions) // shards.TEXTS), world):
            self._write_text(shard)
        todo = [s for s in numbers if not shards.is_written(shards.file_of(self.out, "clips", s), self.about)]
        jobs = [n for s in todo for n in self._windows_of(s)]
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            decoded = map_ahead(pool, self._window, jobs, 2 * threads)
            shown = tqdm(total=self.windows, initial=self.windows - len(jobs), desc=f"encode, rank {rank}",
                         unit=" clips", mininterval=1)
            lost = {}
            for shard in todo:
                lost |= self._write_clips(shard, decoded, shown)
            shown.close()
        return lost

    def _check_manifest(self, rank: int) -> None:
        file = self.out / shards.MANIFEST
        if file.exists() and (changed := differences(shards.read_manifest(self.out), self.about)):
            raise ValueError(f"{self.out} was encoded with other settings ({'; '.join(changed)}); choose "
                             "another --out, or restore these values")
        if rank == 0:
            with atomic_write(file) as tmp:
                tmp.write_text(sealed.seal(self.about, indent=1) + "\n")
            rejects = {self.index[row][0]: why for row, why in self.rejects.items()}
            write_rejects(self.out / "rejects.csv", rejects)

    def _windows_of(self, shard: int) -> range:
        return range(shard * shards.CLIPS, min((shard + 1) * shards.CLIPS, self.windows))

    def _write_text(self, shard: int) -> None:
        file = shards.file_of(self.out, "text", shard)
        if shards.is_written(file, self.about):
            return
        captions = self.captions[shard * shards.TEXTS:(shard + 1) * shards.TEXTS]
        cut = []
        for caption in captions:
            text = self.codec.null_text if not caption else self.codec.encode_text([caption])[0]
            text = text.to("cpu", DTYPES[self.dtype])
            cut.append(text[:length_of(text)])
        ends = torch.tensor([0, *np.cumsum([len(text) for text in cut])])
        shards.write(file, {"text": torch.cat(cut), "ends": ends}, self.about, captions)

    def _window(self, number: int) -> tuple[int, int, int, Tensor | str]:
        """Returns (pass, row, start, pixels, or the reason why the video no longer decodes)."""
        turn, which = divmod(number, len(self.rows))
        row = self.rows[which]
        place, video, _ = self.index[row]
        start = seed_of(self.seed, "window", turn, row) % self.framing.starts(video)
        try:
            return turn, row, start, self.decode.window(self.index.folder, place, video,
                                                        self.framing.choose(video, start), self.framing)
        except ValueError as why:
            return turn, row, start, str(why)

    def _write_clips(self, shard: int, decoded: Iterator, shown: tqdm) -> dict[str, str]:
        rows, parts, lost = [], [], {}
        for _ in self._windows_of(shard):
            turn, row, start, pixels = next(decoded)
            if isinstance(pixels, str):
                lost[str(self.index[row][0])] = pixels
                shown.clear()
                log.warning("left out: %s", pixels)
            else:
                encoded = self.codec.encode_pixels(to_unit(pixels[None].to(self.device)))
                parts.append([None if x is None else x.to("cpu", DTYPES[self.dtype]) for x in encoded])
                rows.append([turn, row, start, self.number[self.index.captions[row]]])
            shown.update()
        if not rows:
            raise ValueError(f"{self.out}: no video of shard {shard} decodes; index the folder again")
        named = dict(zip(("x0", "frames", "image"), zip(*parts)))
        tensors = {name: torch.cat(values) for name, values in named.items() if values[0] is not None}
        shards.write(shards.file_of(self.out, "clips", shard), tensors, self.about, rows, lost)
        return lost


def to_unit(pixels: Tensor) -> Tensor:
    """Converts uint8 to float in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def length_of(text_LE: Tensor) -> int:
    """Returns the number of tokens up to the last non-zero one."""
    return int(text_LE.ne(0).any(1).nonzero().max()) + 1 if text_LE.ne(0).any() else 0


def map_ahead(pool: ThreadPoolExecutor, work: Callable, jobs: Iterable, count: int) -> Iterator:
    """Yields work(job) in order, with `count` jobs submitted ahead."""
    running: deque = deque()
    for job in jobs:
        running.append(pool.submit(work, job))
        if len(running) > count:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
