"""Measurements of one network or one clip set each, so that a process pool can share them."""

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.config import Config, Sample
from swiftvideo_fast.metrics.benchmark import REFERENCE_STEPS, Benchmark, Call
from swiftvideo_fast.objectives.base import AVERAGE
from swiftvideo_fast.seeds import seed_of
from swiftvideo_fast.train.recipe import FILES, TABLES, Parts, Tables
from swiftvideo_fast.train.rounds import averages

WATCHED = 48                                                # validation clips that progress is measured on
SHOWN = 6                                                   # clips in the report
REAL_ROWS = {"real, the same frames": "test", "real, the training's": "train"}      # crops, of which split
Measured = dict[int, tuple[dict[str, float], np.ndarray]]   # steps -> figures, pixels of the clips shown


@lru_cache(1)
def benchmark(cfg: Config, part: str, count: int, tables: Tables = TABLES) -> Benchmark:
    """Of the clips a config names.  A process keeps one: it holds their pixels."""
    parts = Parts(cfg, tables)
    return Benchmark(parts.clips.clips(part, count, cfg.run.seed), parts.codec, cfg.run.seed)


def network(cfg: Config, file: Path | str, tables: Tables = TABLES) -> Call:
    parts = Parts(cfg, tables)
    return partial(parts.family.call, parts.family.load(file))


def teacher_rows(cfg: Config, clips: int, steps: tuple[int, ...], file: Path,
                 tables: Tables = TABLES) -> Measured:
    """`file` then holds its samples of REFERENCE_STEPS, for the trajectory errors of all."""
    bench, net = benchmark(cfg, "test", clips, tables), network(cfg, cfg.model.weights, tables)
    guidance = cfg.objective.guidance
    reference = bench.reference(net, guidance)
    with atomic_write(file) as aside:
        save_file({"reference": reference}, aside)
    sampled = {n: bench.sample(net, n, Sample(guidance=guidance)) for n in steps}
    return {n: row(bench, z, reference) for n, z in ({REFERENCE_STEPS: reference} | sampled).items()}


def student_rows(cfg: Config, clips: int, steps: tuple[int, ...], file: Path, run: Config,
                 tables: Tables = TABLES) -> Measured:
    """The student that `run` ended with, on the clips of `cfg`."""
    bench, how = benchmark(cfg, "test", clips, tables), run.sample
    net = network(run, Path(run.run.dir) / FILES[AVERAGE], tables)
    reference = load_file(file)["reference"]
    return {n: row(bench, bench.sample(net, n, replace(how, guidance=1.0)), reference) for n in steps}


def row(bench: Benchmark, z: Tensor, reference: Tensor) -> tuple[dict[str, float], np.ndarray]:
    return bench.figures(z, reference), bench.codec.decode(z[:SHOWN]).numpy()


def real_rows(cfg: Config, clips: int, tables: Tables = TABLES) -> dict[str, dict[str, float]]:
    """Distances of as many other real crops: of the frames measured, of those the teacher learned from."""
    bench, found, seed = benchmark(cfg, "test", clips, tables), {}, seed_of(cfg.run.seed, "other crops")
    for name, part in REAL_ROWS.items():
        pixels = bench.codec.decode(Parts(cfg, tables).clips.clips(part, clips, seed).x0)
        found[name] = {metric: bench.distance(pixels, metric) for metric in bench.nets}
    return found


def shown(cfg: Config, clips: int) -> tuple[list[str], np.ndarray]:
    """The first clips as they are: captions, pixels."""
    bench = benchmark(cfg, "test", clips)
    return bench.clips.captions[:SHOWN], bench.real[:SHOWN].numpy()


def progress(cfg: Config, run: Config, steps: int) -> dict[int, float]:
    """Step of a run -> Frechet distance to validation clips then."""
    bench, call = benchmark(cfg, "valid", WATCHED), Parts(run).family.call
    return {step: bench.distance(bench.codec.decode(bench.sample(partial(call, net), steps, Sample())))
            for step, net in averages(run)}
