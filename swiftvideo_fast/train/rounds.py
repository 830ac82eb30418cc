"""Rounds of trajectory alignment (TA): each samples pairs from a student and trains it on them."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from swiftvideo_fast import sampler
from swiftvideo_fast.config import Config
from swiftvideo_fast.data import pairs
from swiftvideo_fast.data.pairs import Pairs
from swiftvideo_fast.models import lora
from swiftvideo_fast.objectives.base import AVERAGE
from swiftvideo_fast.seeds import generator, seed_of
from swiftvideo_fast.train import checkpoint, preflight, recipe
from swiftvideo_fast.train.ranks import local_device
from swiftvideo_fast.train.recipe import FILES, TABLES, Parts, Tables


def rounds(cfg: Config, steps: list[int]) -> Iterator[Config]:
    """Yields one config per round.  Steps 8, 4, 2: first 8 against 4, then 4 against 2 from that student.

    Rounds and their pairs are in run.dir/8-4 and run.dir/4-2.
    """
    student = cfg.model.student
    for winner, loser in zip(steps, steps[1:], strict=False):
        run = replace(cfg.run, dir=f"{cfg.run.dir}/{winner}-{loser}")
        yield replace(cfg, run=run, model=replace(cfg.model, student=student),
                      objective=replace(cfg.objective, steps=(winner, loser), pairs=None))
        student = f"{run.dir}/{FILES[AVERAGE]}"


def run_ta_rounds(cfg: Config, steps: list[int], tables: Tables = TABLES) -> Path:
    """Runs all rounds; returns the last run's folder.  After an interruption, a second call resumes.

    Ranks write disjoint shards of pairs; training starts once all are written.
    """
    preflight.check(cfg, tables.families[cfg.model.family])
    for round_cfg in rounds(cfg, steps):
        ranks = recipe.start_engine(round_cfg).ranks
        ranks.run_all(partial(make_pairs, round_cfg, ranks.rank, ranks.world, tables))
        folder = recipe.train(round_cfg, tables)
    return folder


def averages(cfg: Config, tables: Tables = TABLES) -> Iterator[tuple[int, nn.Module]]:
    """Yields (step, average network) per kept checkpoint of a run.  The network is reused: its weights are
    overwritten by the next."""
    parts = Parts(cfg, tables)
    net = parts.start()
    for folder in checkpoint.folders(Path(cfg.run.dir)):
        saved = checkpoint.Saved(folder)
        net.load_state_dict(saved.tensors(f"{AVERAGE}/weight/"), strict=False)
        yield saved.state["step"], lora.merged(net) if parts.adapter_rank else net


def make_pairs(cfg: Config, rank: int = 0, world: int = 1, tables: Tables = TABLES) -> str:
    """Writes this rank's missing shards of the config's TA pairs; returns their folder."""
    o, s, device, parts = cfg.objective, cfg.sample, local_device(), Parts(cfg, tables)
    net = parts.family.load(cfg.model.start).to(device)

    def make(shard: int, size: int) -> Pairs:
        place = cfg.run.seed, "pairs", *o.steps, shard
        clips, rng = parts.clips.clips("train", size, seed_of(*place)), generator(*place)
        x1, condition = torch.randn(clips.x0.shape, generator=rng), clips.condition.to(device)

        def sampled(steps: int) -> Tensor:
            call = partial(parts.family.call, net)
            return sampler.generate(call, x1.to(device), condition, steps, s, rng).cpu()

        winner = clips.x0 if o.winner == "real" else sampled(o.steps[0])
        return Pairs(winner, clips.condition, clips.captions, sampled(o.steps[1]), x1)

    numbers = range(rank, pairs.shards(o.count), world)
    bar = tqdm(numbers, "pairs, {} against {} steps".format(*o.steps), unit="shard", disable=None)
    pairs.write(cfg, parts.codec.identity, bar, make)
    return str(pairs.folder_of(cfg))
