"""The source `videos`: decodes and encodes windows on the fly, without stored latents.

Epoch e uses the windows of pass e of `swiftvideo encode` with the same seed.
"""

import logging
from bisect import bisect_left
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swiftvideo_fast.config.strict import NATURAL, POSITIVE, one_of, option
from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.data.decode import DECODERS, Framing, decoder
from swiftvideo_fast.data.encode import length_of, to_unit
from swiftvideo_fast.data.index import Index
from swiftvideo_fast.data.order import Order, held_out
from swiftvideo_fast.data.source import SourceOptions
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.models.family import Codec, Latent
from swiftvideo_fast.seeds import seed_of

log = logging.getLogger(__name__)
TEXTS = 4096        # caption embeddings cached
TRIES = 8           # consecutive videos that fail to decode before an error


@dataclass(frozen=True)
class VideoOptions(SourceOptions):
    """Windows of videos, decoded and encoded during training.

    index: written by `swiftvideo index`.  frames: frames per window, 4n + 1.  rate: frames per second.
    width, height: pixels, multiples of 16.  held_out: clips kept from training for each of validation and
    test; with 0, both use training clips.  decoder: pyav, dali or auto.  threads: windows decoded at once.
    """

    name = "videos"
    index: str
    frames: int = option(POSITIVE, 61)
    rate: float = option(POSITIVE, 16.0)
    width: int = option(POSITIVE, 832)
    height: int = option(POSITIVE, 480)
    held_out: int = option(NATURAL, 0)
    decoder: str = option(one_of(*DECODERS), "auto")
    threads: int = option(POSITIVE, 4)

    def shape(self, latent: Latent) -> tuple[int, int, int]:
        return latent.shape(self.frames, self.height, self.width, "data")


class VideoSource:
    """Clips of an index, each once per epoch, in an order drawn from (seed, epoch).

    A video that no longer decodes is replaced by the next decodable one in the index, and logged.
    """

    Options = VideoOptions
    prefetch = True

    def __init__(self, options: VideoOptions, codec: Codec, seed: int = 0, pixels: bool = False):
        self.index, self.codec, self.pixels = Index(options.index), codec, pixels
        self.framing = Framing(options.frames, options.rate, options.width, options.height)
        self.device = torch.device(getattr(codec, "device", "cpu"))
        self.decode = decoder(options.decoder, self.device)
        self.rows = np.flatnonzero(self.framing.fits(self.index.seconds)).tolist()
        self.held = held_out(self.rows, options.held_out)
        out = {row for part in self.held.values() for row in part}
        self.order = Order([[row for row in self.rows if row not in out]])
        if not self.order.total:
            raise ValueError(f"{options.index}: no clip is left to train on: {len(self.index)} videos, "
                             f"{len(self.rows)} of {self.framing.seconds:.2f} s or more, {len(out)} held out"
                             "; lower data.held_out, data.frames, or index more")
        self.pool = ThreadPoolExecutor(options.threads, initializer=torch.set_num_threads, initargs=(1,))
        self.texts: OrderedDict[str, Tensor] = OrderedDict()
        self.failed: set[int] = set()

    def __len__(self) -> int:
        return self.order.total

    def draw(self, count: int, seed: int, position: int) -> Batch:
        """Returns the clips at positions position to position + count - 1 of the run."""
        return self.batch([self.at(seed, p) for p in range(position, position + count)], seed)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def at(self, seed: int, position: int) -> tuple[int, int]:
        """Returns (epoch, index row)."""
        epoch, which, number = self.order.place(seed, position)
        return epoch, self.order.passes[which][number]

    def summary(self) -> str:
        short, out = len(self.index) - len(self.rows), sum(map(len, self.held.values()))
        return f"{self.order.total} videos; {short} too short for a window, {out} held out"

    def clips(self, split: str, count: int, seed: int, first: int = 0) -> Batch:
        """Returns held-out clips (training clips if none are held out), in an order drawn from the seed."""
        order = Order([self.held[split]]) if self.held.get(split) else self.order
        return self.batch([(0, order.at(seed, p)) for p in range(first, first + count)], seed)

    def size(self, split: str) -> int:
        return len(self.held.get(split) or self.order.passes[0])

    def batch(self, picked: list[tuple[int, int]], seed: int) -> Batch:
        windows = list(self.pool.map(lambda one: self.window(*one, seed), picked))
        pixels = torch.stack([window.to(self.device) for window, _ in windows])
        captions = [caption for _, caption in windows]
        with torch.no_grad():
            x0, frames, image = self.codec.encode_pixels(to_unit(pixels))
            text = torch.stack([self.text(caption) for caption in captions])
        condition = Condition(frames, text, self.codec.null_text.to(text), image)
        return Batch(x0.float(), condition, captions, pixels=pixels if self.pixels else None)

    def window(self, epoch: int, row: int, seed: int) -> tuple[Tensor, str]:
        """Returns (pixels uint8 (3, T, H, W), caption).  ValueError after TRIES undecodable videos."""
        number = bisect_left(self.rows, row)
        for attempt in range(TRIES):
            row = self.rows[(number + attempt) % len(self.rows)]
            place, video, caption = self.index[row]
            start = seed_of(seed, "window", epoch, row) % self.framing.starts(video)
            try:
                return self.decode.window(self.index.folder, place, video, self.framing.choose(video, start),
                                          self.framing), caption
            except ValueError as why:
                if row not in self.failed:
                    self.failed.add(row)
                    log.warning("replaced: %s", why)
                failure = why
        raise ValueError(f"{TRIES} videos in a row do not decode, the last: {failure}")

    def text(self, caption: str) -> Tensor:
        """Returns a caption's embedding, (L, E), zero-padded; cached without padding."""
        if caption not in self.texts:
            encoded = self.codec.encode_text([caption])[0].to(self.device)
            self.texts[caption] = encoded[:length_of(encoded)].clone()
            if len(self.texts) > TEXTS:
                self.texts.popitem(last=False)
        cut = self.texts[caption]
        return torch.nn.functional.pad(cut, (0, 0, 0, len(self.codec.null_text) - len(cut)))
