"""The held-out clips of an evaluation, in batches independent of the number of ranks."""

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

LEAST = 16              # clips: an error below this, where a Frechet distance is meaningless
FEW = 256               # clips: a note on the page below this, where it is mostly bias
BATCH, TOKENS = 32, 8192        # maximum clips and tokens per batch


class HeldOut:
    """Batches of held-out clips.  frames: pixel frames per clip.  about: plain values that determine the
    clips."""

    def __init__(self, source: Source, part: str, count: int, seed: int, batch: int, frames: int,
                 about: dict[str, Any]):
        self.source, self.part, self.count, self.seed, self.size = source, part, count, seed, batch
        self.frames = frames
        self.about = about | {"part": part, "count": count, "seed": seed, "batch": batch}

    def __len__(self) -> int:
        """Number of batches."""
        return -(-self.count // self.size)

    def numbers(self, k: int) -> range:
        """Returns the clip numbers of batch k."""
        return range(k * self.size, min((k + 1) * self.size, self.count))

    def __getitem__(self, k: int) -> Batch:
        numbers = self.numbers(k)
        if self.source.size(self.part) is None:
            return self._drawn[numbers.start:numbers.stop]
        return self.source.clips(self.part, len(numbers), self.seed, numbers.start)

    @cached_property
    def _drawn(self) -> Batch:
        """All clips of an unlimited source, which draws sequentially."""
        return self.source.clips(self.part, self.count, self.seed)

    def rng(self, purpose: str, k: int) -> list[torch.Generator]:
        """Returns one generator per clip of batch k, a function of seed, purpose and clip number."""
        return [generator(self.seed, purpose, number) for number in self.numbers(k)]


def open_clips(models: list[Model], part: str, count: int, seed: int, shards: Path | None,
               tables: Tables) -> tuple[HeldOut, Codec]:
    """Returns the held-out clips of the first model's run, or all clips of a folder of shards, and the codec.
    ValueError when there are fewer than `count`, or they were trained on, or have another codec."""
    cfg = models[0].trained
    if count < LEAST:
        raise ValueError(f"--count {count}; want at least {LEAST} clips, and {FEW} for meaningful figures: a "
                         "Frechet distance compares covariances")
    family = tables.families[cfg.model.family]
    data = shard_options(models, shards, tables) if shards else cfg.data
    if getattr(data, "held_out", None) == 0 and not shards:
        raise ValueError(f"{models[0].name}: its run held out no clips (data.held_out is 0), so all were "
                         "trained on; want --data, a folder of other shards")
    codec = family.codec(cfg.model, family.sizes(models[0].weights))
    for model in models[1:]:
        check_same_codec(models[0], model, codec, tables)
    source = tables.sources[data.name](data, codec, cfg.run.seed)
    available = source.size(part)
    if available is not None and count > available:
        place = f"in {shards}" if shards else "held out"
        raise ValueError(f"--count {count}, but {available} clips are {place}; want at most {available}")
    T, H, W = data.shape(family.latent)
    batch = max(1, min(BATCH, TOKENS // (T * H * W // family.latent.patch**2)))
    options = {key: value for key, value in asdict(data).items() if key not in ("batch", "pool", "decoder")}
    about = {"data": {"name": data.name} | options, "shards": getattr(source, "about", None)}
    frames = family.latent.frames(0, T).stop
    return HeldOut(source, part, count, seed, batch, frames, plain(about)), codec


def shard_options(models: list[Model], folder: Path, tables: Tables) -> ShardOptions:
    """Returns the options of a folder of shards; ValueError when a model was trained on it."""
    for model in models:
        trained_on = getattr(model.trained and model.trained.data, "folder", None)
        if trained_on and Path(trained_on).resolve() == folder.resolve():
            raise ValueError(f"--data {folder}: {model.name} was trained on these shards; want others, or, "
                             "without --data, the clips that its run held out")
    return ShardOptions(folder=str(folder))


def check_same_codec(first: Model, other: Model, codec: Codec, tables: Tables) -> None:
    """Raises ValueError unless both runs have the same codec.  Files with equal paths are not read again."""
    a, b = first.trained.model, other.trained and other.trained.model
    if b is None or (a.codec or a.weights) == (b.codec or b.weights):
        return
    family = tables.families[b.family]
    if plain(family.codec(b, family.sizes(other.weights)).identity) != plain(codec.identity):
        raise ValueError(f"{other.name}: its codec ({b.codec or b.weights}) is not that of {first.name} "
                         f"({a.codec or a.weights}); evaluate each separately")
