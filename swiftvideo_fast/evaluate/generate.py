"""Latents of every sampler, shared out among ranks by the batch.

    OUT/evaluation.json                         which clips; what else is compared there must be of the same
    OUT/MODEL-STEPS/latents-00000.safetensors   of one batch, and in its header what they are of
    OUT/MODEL-STEPS/latents-00000.json          how long it took, and on what

A file is whole or absent.  Its noise depends on the seed and the clips' numbers, its batch on its number: any
number of ranks, killed and started again, gives the same bytes (of one kind of device).
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from swiftvideo_fast import sampler
from swiftvideo_fast.atomic import atomic_write, temporary_of
from swiftvideo_fast.config import differences
from swiftvideo_fast.data import shards
from swiftvideo_fast.evaluate.clips import HeldOut
from swiftvideo_fast.evaluate.models import Model, Sampler, digest
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.models.family import Family
from swiftvideo_fast.train.ranks import Ranks

MANIFEST, LATENTS, COMMAND = "evaluation.json", "latents", "evaluate"


@dataclass(frozen=True)
class Job:
    """An evaluation's folder, what is in it, and who fills it."""

    out: Path
    family: Family
    clips: HeldOut
    samplers: list[Sampler]
    ranks: Ranks
    device: torch.device

    @property
    def mine(self) -> range:
        """Batches of this rank."""
        return range(self.ranks.rank, len(self.clips), self.ranks.world)

    @cached_property
    def weights(self) -> dict[str, str]:
        """Digest of each model's weights, read by one rank for all."""
        def read() -> str:
            places = {s.model.name: s.model.weights for s in self.samplers}
            alone = self.ranks.rank == 0
            return json.dumps({name: digest(place) for name, place in places.items()} if alone else {})

        return json.loads(self.ranks.run_all(read)[0])

    def about(self, one: Sampler) -> dict[str, Any]:
        """What decides the bytes of a sampler's latents."""
        how = {"weights": self.weights[one.model.name], "steps": one.steps, "dtype": one.model.dtype}
        return {"clips": self.clips.about} | how | asdict(one.model.how)

    def file(self, one: Sampler, k: int) -> Path:
        return shards.file_of(self.out / one.folder, LATENTS, k)

    def latents(self, one: Sampler, k: int) -> Tensor:
        return load_file(self.file(one, k))["z"]


def agree(job: Job, write: bool) -> None:
    """Write the manifest if there is none.  ValueError for a folder of other clips, or of something else."""
    file, about = job.out / MANIFEST, job.clips.about
    try:
        changed = differences(json.loads(file.read_text()), about)
    except (FileNotFoundError, NotADirectoryError):
        if job.out.exists() and (not job.out.is_dir() or {*job.out.iterdir()} - {temporary_of(file)}):
            raise ValueError(f"{job.out}: is there and holds no evaluation; choose another --out") from None
        if write:
            with atomic_write(file) as tmp:
                tmp.write_text(json.dumps(about, indent=1) + "\n")
        return
    except (OSError, ValueError, AttributeError) as why:
        raise ValueError(f"{file}: not the manifest of an evaluation ({why}); choose another --out") from why
    if changed:
        raise ValueError(f"{job.out} compares models on other clips ({'; '.join(changed)}); choose another "
                         "--out")


def generate(job: Job) -> None:
    """Write this rank's share of what is missing.  ValueError for latents of something else, or damaged."""
    missing = {one.folder: [k for k in job.mine
                            if not shards.is_whole(job.file(one, k), job.about(one), COMMAND)]
               for one in job.samplers}
    progress = Progress(job)
    for _, group in groupby(job.samplers, key=lambda one: one.model.name):
        todo = [one for one in group if missing[one.folder]]
        if todo:
            made = Sampling(job, todo[0].model)
            for k in job.mine:
                for one in todo:
                    if k in missing[one.folder]:
                        made.write(one, k)
                        progress.show(one)
            del made
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    progress.close()


class Sampling:
    """A network in memory."""

    def __init__(self, job: Job, model: Model):
        self.job, self.how, self.evaluated, self.warm = job, model.how, 0, False
        net = job.family.load(model.weights, dtype=getattr(torch, model.dtype)).to(job.device)
        self.network = partial(job.family.call, net.eval().requires_grad_(False))

    def call(self, x_t: Tensor, t: Tensor, condition: Condition, *s: Tensor) -> Tensor:
        self.evaluated += len(x_t)
        return self.network(x_t, t, condition, *s)

    def write(self, one: Sampler, k: int) -> None:
        clips, numbers = self.job.clips[k], self.job.clips.numbers(k)
        x1 = sampler.noise(clips.x0.shape, self.job.clips.rng("evaluate", k)).to(self.job.device)
        condition = clips.condition.to(self.job.device)
        sampled = partial(sampler.generate, self.call, x1, condition, options=self.how)
        if not self.warm:                               # the first call chooses kernels, or compiles them
            sampled(steps=1, rng=self.job.clips.rng("warm", k))
            self.warm = True
        self.evaluated, start = 0, time.perf_counter()
        z = sampled(steps=one.steps, rng=self.job.clips.rng("fresh", k)).cpu()
        took = {"seconds": (time.perf_counter() - start) / len(z), "evaluations": self.evaluated / len(z),
                "ranks": self.job.ranks.world, "device": name_of(self.job.device)}
        file = self.job.file(one, k)
        with atomic_write(file.with_suffix(".json")) as tmp:
            tmp.write_text(json.dumps(took) + "\n")
        shards.write(file, {"z": z}, self.job.about(one), list(numbers))


class Progress:
    """Evaluations of networks, by all ranks; shown by the first."""

    def __init__(self, job: Job):
        self.job = job
        self.cost = {one.folder: one.steps * (1 + (one.model.how.guidance != 1)) for one in job.samplers}
        self.bar = bar(job.ranks, desc="generate", unit=" evaluations", initial=self.done(),
                       total=sum(self.cost.values()) * job.clips.count)
        self.looked = 0.0

    def done(self) -> int:
        return sum(self.cost[one.folder] * len(self.job.clips.numbers(k)) for one in self.job.samplers
                   for k in range(len(self.job.clips)) if self.job.file(one, k).exists())

    def show(self, one: Sampler) -> None:
        if not self.bar.disable and time.monotonic() - self.looked > 1:         # a folder may be slow to list
            self.looked = time.monotonic()
            self.bar.set_description(f"generate, {one.model.name}, {one.steps} steps", refresh=False)
            self.bar.update(self.done() - self.bar.n)

    def close(self) -> None:
        if not self.bar.disable:
            self.bar.update(self.done() - self.bar.n)
        self.bar.close()


def bar(ranks: Ranks, **options: Any) -> tqdm:
    """The first rank's progress, with rate and time left: each second, or in a log each half minute."""
    return tqdm(disable=ranks.rank > 0, mininterval=1 if sys.stderr.isatty() else 30, **options)


def costs(job: Job, one: Sampler) -> dict[str, float]:
    """"seconds" a clip, the median over batches; "evaluations" of the network a clip."""
    found = [json.loads(job.file(one, k).with_suffix(".json").read_text()) for k in range(len(job.clips))]
    seconds = sorted(took["seconds"] for took in found)
    return {"seconds": seconds[len(seconds) // 2], "evaluations": found[0]["evaluations"]}


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def describe(samplers: Sequence[Sampler]) -> str:
    """One line a sampler, for --dry-run."""
    return "\n".join("{}: {} steps by {sampler}, shift {shift:g}, guidance {guidance:g}, of {}".format(
        one.model.name, one.steps, one.model.given, **asdict(one.model.how)) for one in samplers)
