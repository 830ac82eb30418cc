"""The clips that models are compared on, in batches that do not depend on the number of ranks."""

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from swiftvideo_fast.config.strict import plain
from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.data.shards import ShardOptions
from swiftvideo_fast.data.source import Source
from swiftvideo_fast.evaluate.models import Model
from swiftvideo_fast.models.family import Codec
from swiftvideo_fast.seeds import generator
from swiftvideo_fast.train.recipe import Tables

LEAST = 16              # clips: of fewer a Frechet distance says nothing
FEW = 256               # clips: of fewer it says little, and the page says so
BATCH, TOKENS = 32, 8192        # clips and tokens at once, at the most


class HeldOut:
    """Batches of clips, first frames and captions.  frames: of a clip's pixels.  about: what decides the
    clips, as plain values."""

    def __init__(self, source: Source, part: str, count: int, seed: int, batch: int, frames: int,
                 about: dict[str, Any]):
        self.source, self.part, self.count, self.seed, self.size = source, part, count, seed, batch
        self.frames = frames
        self.about = about | {"part": part, "count": count, "seed": seed, "batch": batch}

    def __len__(self) -> int:
        """How many batches."""
        return -(-self.count // self.size)

    def numbers(self, k: int) -> range:
        """Of the clips of batch k."""
        return range(k * self.size, min((k + 1) * self.size, self.count))

    def __getitem__(self, k: int) -> Batch:
        numbers = self.numbers(k)
        if self.source.size(self.part) is None:
            return self._drawn[numbers.start:numbers.stop]
        return self.source.clips(self.part, len(numbers), self.seed, numbers.start)

    @cached_property
    def _drawn(self) -> Batch:
        """All clips of a source without end, which draws one after the other."""
        return self.source.clips(self.part, self.count, self.seed)

    def rng(self, purpose: str, k: int) -> list[torch.Generator]:
        """A generator a clip of batch k, by the clip's number alone."""
        return [generator(self.seed, purpose, number) for number in self.numbers(k)]


def open_clips(models: list[Model], part: str, count: int, seed: int, shards: Path | None,
               tables: Tables) -> tuple[HeldOut, Codec]:
    """Of the first model's run, or all of a folder of shards.  ValueError when they are fewer than `count`,
    were trained on, or are another codec's."""
    cfg = models[0].trained
    if count < LEAST:
        raise ValueError(f"--count {count}; want {LEAST} clips at least, and {FEW} for figures that mean "
                         "something: a Frechet distance compares covariances")
    family = tables.families[cfg.model.family]
    data = of_shards(models, shards, tables) if shards else cfg.data
    if getattr(data, "held_out", None) == 0 and not shards:
        raise ValueError(f"{models[0].name}: its run held out no clips (data.held_out is 0), so all were "
                         "trained on; want --data, a folder of other shards")
    codec = family.codec(cfg.model, family.sizes(models[0].weights))
    for model in models[1:]:
        same_codec(models[0], model, codec, tables)
    source = tables.sources[data.name](data, codec, cfg.run.seed)
    there = source.size(part)
    if there is not None and count > there:
        place = f"in {shards}" if shards else "held out"
        raise ValueError(f"--count {count}, and {there} clips are {place}; want at most {there}, none twice")
    T, H, W = data.shape(family.latent)
    batch = max(1, min(BATCH, TOKENS // (T * H * W // family.latent.patch**2)))
    options = {key: value for key, value in asdict(data).items() if key not in ("batch", "pool", "decoder")}
    about = {"data": {"name": data.name} | options, "shards": getattr(source, "about", None)}
    frames = family.latent.frames(0, T).stop
    return HeldOut(source, part, count, seed, batch, frames, plain(about)), codec


def of_shards(models: list[Model], folder: Path, tables: Tables) -> ShardOptions:
    for model in models:
        own = getattr(model.trained and model.trained.data, "folder", None)
        if own and Path(own).resolve() == folder.resolve():
            raise ValueError(f"--data {folder}: {model.name} was trained on these shards; want others, or, "
                             "without --data, the clips that its run held out")
    return ShardOptions(folder=str(folder))


def same_codec(first: Model, other: Model, codec: Codec, tables: Tables) -> None:
    """ValueError unless the latents of both runs are one codec's; files of one name are not read again."""
    a, b = first.trained.model, other.trained and other.trained.model
    if b is None or (a.codec or a.weights) == (b.codec or b.weights):
        return
    family = tables.families[b.family]
    if plain(family.codec(b, family.sizes(other.weights)).identity) != plain(codec.identity):
        raise ValueError(f"{other.name}: its latents are of another codec ({b.codec or b.weights}) than "
                         f"those of {first.name} ({a.codec or a.weights}); evaluate each by itself")
