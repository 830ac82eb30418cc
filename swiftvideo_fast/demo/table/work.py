"""The table's units of work: trainings and measurements.  Each writes one record and is done once.

A record contains its inputs; if these have changed, the work is repeated.
"""

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file

from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.config import Config, Sample, to_dict
from swiftvideo_fast.data.crops import EncodedCrops
from swiftvideo_fast.demo.measure import network, real_rows
from swiftvideo_fast.demo.table.methods import METHODS, PAIRED, rate_source, uses_pairs
from swiftvideo_fast.metrics.benchmark import REFERENCE_STEPS, Benchmark
from swiftvideo_fast.models.family import Family
from swiftvideo_fast.objectives.base import AVERAGE
from swiftvideo_fast.objectives.flowmap import central_difference, total_derivative
from swiftvideo_fast.objectives.ta import Ta
from swiftvideo_fast.seeds import generator
from swiftvideo_fast.train import checkpoint, recipe
from swiftvideo_fast.train.recipe import FILES, Parts, by_name
from swiftvideo_fast.train.rounds import averages, make_pairs

TEACHER = "teacher"
TEACHER_STEPS = (8, 4, 2, 1)                    # and REFERENCE_STEPS
FIRST_SEED = 0                                  # used to choose the rates


class CachedCrops(EncodedCrops):
    """The source `crops` with a cache per process.  All runs of the table have one codec."""

    cache: ClassVar[dict] = {}

    def clips(self, split, count, seed):
        key = type(self), self.options, self.pixels, split, count, seed
        if key not in self.cache:
            self.cache[key] = super().clips(split, count, seed)
        return self.cache[key]


TABLES = replace(recipe.TABLES, sources=recipe.TABLES.sources | by_name(CachedCrops))


@dataclass(frozen=True)
class Table:
    """A table's folder and settings.  steps: student steps of every method.  clips: test clips; half as many
    for validation."""

    folder: Path
    configs: Path
    steps: int = 200
    clips: int = 256

    def config(self, name: str, seed: int, rate: float | None = None) -> Config:
        """Returns a method's config.  rate: from the grid; None: the chosen one (LookupError if none)."""
        method, rate = METHODS[name], rate or self.rate(name)
        steps = math.ceil(method.share * self.steps) * method.moves
        values = {"rate": rate, "steps": steps, "quarter": steps // 4, "third": max(1, steps // 3),
                 "half": self.steps // 2, "twice": 2 * self.steps, "pairs": "null"}
        if uses_pairs(method):
            values["pairs"] = f"{self.run(PAIRED, seed)}/pairs"
        student = f"{self.run(method.start, seed)}/{FILES[AVERAGE]}" if method.start else "null"
        options = [f"run.dir={self.run(name, seed, rate)}", f"run.steps={steps}", f"run.seed={seed}",
                   f"run.save_every={max(1, steps // 3)}", "run.keep=1", "run.log_every=2",
                   "run.watch_every=0", f"optim.lr={rate}", "data.batch=8", f"model.student={student}",
                   *(o.format(**values) for o in method.options)]
        return TABLES.load(self.configs / method.file, options)

    def base(self, seed: int) -> Config:
        """Returns the config that defines teacher and clips."""
        return TABLES.load(self.configs / "ccd.yaml", [f"run.seed={seed}"])

    def run(self, name: str, seed: int, rate: float | None = None) -> Path:
        folder = "".join(c if c.isalnum() else "-" for c in name)
        return self.folder / f"seed-{seed}" / folder / f"lr-{rate or self.rate(name):g}"

    def rate(self, name: str) -> float:
        """Returns the rate with the smallest Frechet distance on validation clips, seed 0."""
        scores = self.scores(rate_source(name))
        return min(scores, key=scores.get)

    def scores(self, name: str) -> dict[float, float]:
        """Returns rate -> Frechet distance on validation clips; infinite for aborted runs.  LookupError
        before all are measured."""
        rates = METHODS[name].rates
        if len(rates) == 1:
            return {rates[0]: 0.0}
        found = {rate: read(self.run(name, FIRST_SEED, rate) / "valid.json") for rate in rates}
        if missing := [rate for rate, record in found.items() if not record]:
            raise LookupError(f"{name} is not validated at {missing}")
        return {rate: math.inf if record["frechet"] is None else record["frechet"]
                for rate, record in found.items()}


def read(file: Path) -> dict | None:
    return json.loads(file.read_text()) if file.exists() else None


def once(file: Path, name: str, source: dict, make: Callable[[], dict]) -> None:
    """Writes make()'s record with its method, source and CPU seconds, unless it exists."""
    found, source = read(file), json.loads(json.dumps(source))
    if found and found["of"] == source:
        return
    began = time.process_time()
    record = make()
    record = {"name": name, "cpu_s": time.process_time() - began} | record | {"of": source}
    with atomic_write(file) as tmp:
        tmp.write_text(json.dumps(record, indent=1))


def train(table: Table, name: str, seed: int, rate: float | None = None) -> None:
    """Trains one run.  After an interruption, CPU seconds are extrapolated from the last start."""
    cfg = table.config(name, seed, rate)
    run, source = Path(cfg.run.dir), to_dict(cfg)
    done = read(run / "trained.json")
    old = done or read(run / "begun.json")
    same = old and TABLES.fill_defaults(old["of"]) == source
    if done and same:
        return
    if old and not same:
        shutil.rmtree(run)                      # its config or its initial student has changed
    once(run / "begun.json", name, source, dict)

    def make() -> dict:
        last = checkpoint.newest(run)
        began, first = time.process_time(), checkpoint.Saved(last).state["step"] if last else 0
        try:
            if isinstance(cfg.objective, Ta):
                make_pairs(cfg, tables=TABLES)
            recipe.train(cfg, TABLES)
        except FloatingPointError as why:       # the rate is too high: a valid result
            return {"broke_off": str(why)}
        share = (cfg.run.steps - first) / cfg.run.steps or 1
        return {"broke_off": None, "cpu_s": (time.process_time() - began) / share}

    once(run / "trained.json", name, source, make)


@lru_cache(4)
def benchmark(table: Table, seed: int, part: str) -> Benchmark:
    parts = Parts(table.base(seed), TABLES)
    count = table.clips if part == "test" else table.clips // 2
    return Benchmark(parts.clips.clips(part, count, seed), parts.codec, seed)


def broke_off(cfg: Config) -> bool:
    return bool(read(Path(cfg.run.dir) / "trained.json")["broke_off"])


def student(table: Table, cfg: Config):
    """Returns (network, sampling settings)."""
    return (network(cfg, Path(cfg.run.dir) / FILES[AVERAGE], TABLES), replace(cfg.sample, guidance=1.0))


def validate(table: Table, name: str, rate: float) -> None:
    """Measures the validation distance of one rate."""
    cfg, steps = table.config(name, FIRST_SEED, rate), METHODS[name].chosen_at

    def make() -> dict:
        if broke_off(cfg):
            return {"frechet": None}
        bench, (net, sampling) = benchmark(table, FIRST_SEED, "valid"), student(table, cfg)
        return {"frechet": bench.distance(bench.codec.decode(bench.sample(net, steps, sampling)))}

    once(Path(cfg.run.dir) / "valid.json", name, {"steps": steps, "clips": table.clips // 2}, make)


def measure_teacher(table: Table, seed: int) -> None:
    cfg, place = table.base(seed), table.folder / f"seed-{seed}"

    def make() -> dict:
        bench, net = benchmark(table, seed, "test"), network(cfg, cfg.model.weights, TABLES)
        guidance = cfg.objective.guidance
        reference = bench.reference(net, guidance)
        with atomic_write(place / "reference.safetensors") as tmp:
            save_file({"reference": reference}, tmp)
        rows = {REFERENCE_STEPS: bench.figures(reference, reference)}
        for steps in TEACHER_STEPS:
            rows[steps] = bench.figures(bench.sample(net, steps, Sample(guidance=guidance)), reference)
        return {"rows": rows}

    once(place / "teacher.json", TEACHER, {"clips": table.clips}, make)


def measure_real(table: Table, seed: int) -> None:
    """Measures other real crops: the distance of a perfect sampler."""
    once(table.folder / f"seed-{seed}/real.json", "real", {"clips": table.clips},
         lambda: {"rows": real_rows(table.base(seed), table.clips, TABLES)})


def measure(table: Table, name: str, seed: int) -> None:
    """Measures the student with the chosen rate on the test clips."""
    cfg, all_steps = table.config(name, seed), METHODS[name].measured

    def make() -> dict:
        if broke_off(cfg):
            return {"rows": {}}
        bench, (net, sampling) = benchmark(table, seed, "test"), student(table, cfg)
        reference = load_file(table.folder / f"seed-{seed}/reference.safetensors")["reference"]
        return {"rows": {n: bench.figures(bench.sample(net, n, sampling), reference) for n in all_steps}}

    once(Path(cfg.run.dir) / "test.json", name, {"steps": all_steps, "clips": table.clips}, make)


def watch(table: Table, name: str, seed: int) -> None:
    """Measures the Frechet distance at 4 steps on validation clips at every checkpoint (Figures 6 and 9)."""
    cfg = table.config(name, seed)

    def make() -> dict:
        bench, call = benchmark(table, seed, "valid"), Parts(cfg, TABLES).family.call
        return {"progress": {step: bench.distance(bench.codec.decode(
            bench.sample(partial(call, net), 4, Sample()))) for step, net in averages(cfg, TABLES)}}

    once(Path(cfg.run.dir) / "progress.json", name, {"clips": table.clips // 2}, make)


def compare_derivatives(table: Table, name: str, seed: int) -> None:
    """Measures errors of du/dt of a trained map with weights and arithmetic rounded to bf16."""
    cfg = table.config(name, seed)

    def make() -> dict:
        parts, bench = Parts(cfg, TABLES), benchmark(table, seed, "valid")
        return derivative_errors(parts.family, Path(cfg.run.dir) / FILES[AVERAGE],
                                 parts.family.load(cfg.model.weights), bench.clips[:16], seed)

    once(Path(cfg.run.dir) / "derivative.json", name, {}, make)


@torch.no_grad()
def derivative_errors(family: Family, file: Path, teacher, clips, seed: int) -> dict[str, float]:
    """Returns relative errors, exact and finite, against the rounded weights' exact derivative in float64."""
    rounded = family.cast(family.load(file), torch.bfloat16)
    precise = family.load(file)
    precise.load_state_dict(rounded.state_dict())
    precise.double()
    rng = generator(seed, "derivative")
    t = 0.1 + 0.8 * torch.rand(len(clips), generator=rng)
    x_t = torch.lerp(clips.x0, torch.randn(clips.x0.shape, generator=rng), t[:, None, None, None, None])
    v = family.call(teacher, x_t, t, clips.condition)

    def du_dt(net, derivative, dtype: torch.dtype) -> torch.Tensor:
        def u(x, t):
            return family.call(net, x, t, condition, s)
        condition, s = clips.condition.to(dtype), (t / 2).to(dtype)
        return derivative(u, x_t.to(dtype), t.to(dtype), v.to(dtype))[1].double()

    want = du_dt(precise, total_derivative, torch.float64)
    return {name: ((du_dt(rounded, derivative, torch.float32) - want).norm() / want.norm()).item()
            for name, derivative in (("exact", total_derivative), ("finite", central_difference))}
