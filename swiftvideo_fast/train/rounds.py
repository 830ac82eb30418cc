"""Rounds of trajectory alignment: pairs from a student, the student trained on them, and so on from there."""

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
from swiftvideo_fast.train.ranks import own_device
from swiftvideo_fast.train.recipe import FILES, TABLES, Parts, Tables


def rounds(cfg: Config, steps: list[int]) -> Iterator[Config]:
    """For steps 8, 4, 2: the config of 8 against 4, then of 4 against 2 from the student of the first.

    Each has its folder in run.dir, "8-4" and "4-2", and its pairs there.
    """
    student = cfg.model.student
    for winner, loser in zip(steps, steps[1:], strict=False):
        run = replace(cfg.run, dir=f"{cfg.run.dir}/{winner}-{loser}")
        yield replace(cfg, run=run, model=replace(cfg.model, student=student),
                      objective=replace(cfg.objective, steps=(winner, loser), pairs=None))
        student = f"{run.dir}/{FILES[AVERAGE]}"


def run_ta_rounds(cfg: Config, steps: list[int], tables: Tables = TABLES) -> Path:
    """All rounds; returns the last run's folder.  A second call goes on from where the first was cut.

    The ranks share out the pairs, and none trains before all are there.
    """
    preflight.check(cfg, tables.families[cfg.model.family])
    for one in rounds(cfg, steps):
        ranks = recipe.start_engine(one).ranks
        ranks.together(partial(make_pairs, one, ranks.rank, ranks.world, tables))
        folder = recipe.train(one, tables)
    return folder


def averages(cfg: Config, tables: Tables = TABLES) -> Iterator[tuple[int, nn.Module]]:
    """(step, the average then) of every checkpoint that a run has kept; each takes the place of the last."""
    parts = Parts(cfg, tables)
    net = parts.start()
    for folder in checkpoint.folders(Path(cfg.run.dir)):
        saved = checkpoint.Saved(folder)
        net.load_state_dict(saved.tensors(f"{AVERAGE}/weight/"), strict=False)
        yield saved.state["step"], lora.merged(net) if parts.adapter_rank else net


def make_pairs(cfg: Config, rank: int = 0, world: int = 1, tables: Tables = TABLES) -> str:
    """Write this rank's share of the config's pairs, those that are not there yet; returns their folder."""
    o, s, device, parts = cfg.objective, cfg.sample, own_device(), Parts(cfg, tables)
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
