"""Rounds of trajectory alignment: pairs from a student, the student trained on them, and so on from there."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from swiftvideo_fast import sampler
from swiftvideo_fast.config import Config
from swiftvideo_fast.data import pairs
from swiftvideo_fast.data.latents import encode_crops
from swiftvideo_fast.data.pairs import Pairs
from swiftvideo_fast.models import lora, weights
from swiftvideo_fast.models.codec import PcaCodec
from swiftvideo_fast.models.encoders import WordVectors
from swiftvideo_fast.models.wan.network import Wan
from swiftvideo_fast.sampler import Sampling
from swiftvideo_fast.seeds import generator, seed_of
from swiftvideo_fast.train import checkpoint
from swiftvideo_fast.train.loop import AVERAGE, adapted, crop_source, start_engine, starting_network, train
from swiftvideo_fast.train.ranks import own_device


def rounds(cfg: Config, steps: list[int]) -> Iterator[Config]:
    """For steps 8, 4, 2: the config of 8 against 4, then of 4 against 2 from the student of the first.

    Each has its folder in run.dir, "8-4" and "4-2", and its pairs there.
    """
    student = cfg.model.student
    for winner, loser in zip(steps, steps[1:], strict=False):
        run = replace(cfg.run, dir=f"{cfg.run.dir}/{winner}-{loser}")
        yield replace(cfg, run=run, model=replace(cfg.model, student=student),
                      objective=replace(cfg.objective, steps=(winner, loser), pairs=None))
        student = f"{run.dir}/{AVERAGE}"


def align(cfg: Config, steps: list[int]) -> Path:
    """All rounds; returns the last run's folder.  A second call goes on from where the first was cut.

    The ranks share out the pairs, and none trains before all are there.
    """
    for one in rounds(cfg, steps):
        ranks = start_engine(one).ranks
        ranks.together(partial(make_pairs, one, ranks.rank, ranks.world))
        folder = train(one)
    return folder


def averages(cfg: Config) -> Iterator[tuple[int, Wan]]:
    """(step, the average then) of every checkpoint that a run has kept; each takes the place of the last."""
    net = starting_network(cfg)
    for folder in checkpoint.folders(Path(cfg.run.dir)):
        saved = checkpoint.Saved(folder)
        net.load_state_dict(saved.tensors("average/weight/"), strict=False)
        yield saved.state["step"], lora.merged(net) if adapted(cfg) else net


def make_pairs(cfg: Config, rank: int = 0, world: int = 1) -> str:
    """Write this rank's share of the config's pairs, those that are not there yet; returns their folder."""
    o, s, device = cfg.objective, cfg.sample, own_device()
    net, codec = weights.load(cfg.model.start).to(device), PcaCodec.load(cfg.model.codec)
    source, text = crop_source(cfg, "train"), WordVectors(net.config.text_dim)

    def make(shard: int, size: int) -> Pairs:
        place = cfg.run.seed, "pairs", *o.steps, shard
        clips, rng = encode_crops(source, size, seed_of(*place), codec, text), generator(*place)
        x1, condition = torch.randn(clips.x0.shape, generator=rng), clips.condition.to(device)

        def sampled(steps: int) -> Tensor:
            how = Sampling(steps, s.sampler, s.shift, s.guidance)
            return sampler.generate(net, x1.to(device), condition, how, rng).cpu()

        won = clips.x0 if o.winner == "real" else sampled(o.steps[0])
        return Pairs(won, clips.condition, clips.captions, sampled(o.steps[1]), x1)

    numbers = range(rank, pairs.shards(o.count), world)
    bar = tqdm(numbers, "pairs, {} against {} steps".format(*o.steps), unit="shard", disable=None)
    pairs.write(cfg, bar, make)
    return str(pairs.folder_of(cfg))
