"""Generates the latents of every sampler, with batches distributed over ranks.

    OUT/evaluation.json                         the clips; all models in the folder are compared on these
    OUT/MODEL-STEPS/latents-00000.safetensors   one batch; the header has everything it depends on
    OUT/MODEL-STEPS/latents-00000.json          seconds, network evaluations, device

Files are written atomically.  Noise depends on seed and clip number, a batch on its number: any number of
ranks, also after interruptions, writes the same bytes (on one kind of device).
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
    """An evaluation: output folder, clips, samplers, and the ranks that share the work."""

    out: Path
    family: Family
    clips: HeldOut
    samplers: list[Sampler]
    ranks: Ranks
    device: torch.device

    @property
    def mine(self) -> range:
        """Batch numbers of this rank."""
        return range(self.ranks.rank, len(self.clips), self.ranks.world)

    @cached_property
    def weights(self) -> dict[str, str]:
        """model name -> digest of its weights, computed by rank 0."""
        def read() -> str:
            places = {s.model.name: s.model.weights for s in self.samplers}
            first = self.ranks.rank == 0
            return json.dumps({name: digest(place) for name, place in places.items()} if first else {})

        return json.loads(self.ranks.run_all(read)[0])

    def about(self, one: Sampler) -> dict[str, Any]:
        """Returns everything that determines the bytes of a sampler's latents."""
        settings = {"weights": self.weights[one.model.name], "steps": one.steps, "dtype": one.model.dtype}
        return {"clips": self.clips.about} | settings | asdict(one.model.sampling)

    def file(self, one: Sampler, k: int) -> Path:
        return shards.file_of(self.out / one.folder, LATENTS, k)

    def latents(self, one: Sampler, k: int) -> Tensor:
        return load_file(self.file(one, k))["z"]


def check_manifest(job: Job, write: bool) -> None:
    """Writes a missing manifest if `write`.  ValueError for a folder with other clips or other content."""
    file, about = job.out / MANIFEST, job.clips.about
    try:
        changed = differences(json.loads(file.read_text()), about)
    except (FileNotFoundError, NotADirectoryError):
        if job.out.exists() and (not job.out.is_dir() or {*job.out.iterdir()} - {temporary_of(file)}):
            raise ValueError(f"{job.out}: exists and is not an evaluation; choose another --out") from None
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
    """Writes this rank's missing latents.  ValueError for damaged latents, or latents with other settings."""
    missing = {one.folder: [k for k in job.mine
                            if not shards.is_written(job.file(one, k), job.about(one), COMMAND)]
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
    """A loaded network, which writes batches of latents."""

    def __init__(self, job: Job, model: Model):
        self.job, self.sampling, self.evaluated, self.warm = job, model.sampling, 0, False
        net = job.family.load(model.weights, dtype=getattr(torch, model.dtype)).to(job.device)
        self.network = partial(job.family.call, net.eval().requires_grad_(False))

    def call(self, x_t: Tensor, t: Tensor, condition: Condition, *s: Tensor) -> Tensor:
        self.evaluated += len(x_t)
        return self.network(x_t, t, condition, *s)

    def write(self, one: Sampler, k: int) -> None:
        clips, numbers = self.job.clips[k], self.job.clips.numbers(k)
        x1 = sampler.noise(clips.x0.shape, self.job.clips.rng("evaluate", k)).to(self.job.device)
        condition = clips.condition.to(self.job.device)
        sampled = partial(sampler.generate, self.call, x1, condition, options=self.sampling)
        if not self.warm:                               # the first call selects or compiles kernels
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
    """A progress bar over the network evaluations of all ranks, shown by rank 0."""

    def __init__(self, job: Job):
        self.job = job
        self.cost = {one.folder: one.steps * (1 + (one.model.sampling.guidance != 1)) for one in job.samplers}
        self.bar = bar(job.ranks, desc="generate", unit=" evaluations", initial=self.done(),
                       total=sum(self.cost.values()) * job.clips.count)
        self.looked = 0.0

    def done(self) -> int:
        return sum(self.cost[one.folder] * len(self.job.clips.numbers(k)) for one in self.job.samplers
                   for k in range(len(self.job.clips)) if self.job.file(one, k).exists())

    def show(self, one: Sampler) -> None:
        if not self.bar.disable and time.monotonic() - self.looked > 1:         # listing a folder may be slow
            self.looked = time.monotonic()
            self.bar.set_description(f"generate, {one.model.name}, {one.steps} steps", refresh=False)
            self.bar.update(self.done() - self.bar.n)

    def close(self) -> None:
        if not self.bar.disable:
            self.bar.update(self.done() - self.bar.n)
        self.bar.close()


def bar(ranks: Ranks, **options: Any) -> tqdm:
    """Returns a progress bar on rank 0, updated every second, or every 30 s without a terminal."""
    return tqdm(disable=ranks.rank > 0, mininterval=1 if sys.stderr.isatty() else 30, **options)


def costs(job: Job, one: Sampler) -> dict[str, float]:
    """Returns "seconds" per clip, median over batches, and network "evaluations" per clip."""
    found = [json.loads(job.file(one, k).with_suffix(".json").read_text()) for k in range(len(job.clips))]
    seconds = sorted(took["seconds"] for took in found)
    return {"seconds": seconds[len(seconds) // 2], "evaluations": found[0]["evaluations"]}


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def describe(samplers: Sequence[Sampler]) -> str:
    """Returns one line per sampler, for --dry-run."""
    return "\n".join("{}: {} steps by {sampler}, shift {shift:g}, guidance {guidance:g}, of {}".format(
        one.model.name, one.steps, one.model.given, **asdict(one.model.sampling)) for one in samplers)
