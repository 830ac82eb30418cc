"""Measurements of one network or one clip set each, so that a process pool can share them."""

import time
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.config import Config, Sample
from swiftvideo_fast.metrics.benchmark import REFERENCE_STEPS, Benchmark, Call, sample
from swiftvideo_fast.objectives.base import AVERAGE
from swiftvideo_fast.seeds import seed_of
from swiftvideo_fast.train.recipe import FILES, TABLES, Parts, Tables
from swiftvideo_fast.train.rounds import averages

PROGRESS_CLIPS = 48                                         # validation clips that progress is measured on
SHOWN = 6                                                   # clips in the report,
FIRST_BATCH = 32                                            # chosen from those measured first
TIMED, TIMINGS = 4, 5                                       # clips a timed batch, times each is timed
REAL_ROWS = {"real, the same frames": "test", "real, the training's": "train"}      # crops, of which split
Measured = dict[int, tuple[dict[str, float], np.ndarray]]   # steps -> figures, pixels of the clips shown


@lru_cache(2)
def benchmark(cfg: Config, part: str, count: int, tables: Tables = TABLES) -> Benchmark:
    """Of the clips a config names.  A process keeps two, the table's and progress's: they hold pixels."""
    parts = Parts(cfg, tables)
    return Benchmark(parts.clips.clips(part, count, cfg.run.seed), parts.codec, cfg.run.seed)


def network(cfg: Config, file: Path | str, tables: Tables = TABLES) -> Call:
    parts = Parts(cfg, tables)
    return partial(parts.family.call, parts.family.load(file))


def preview(cfg: Config, clips: int, steps: tuple[int, ...],
            tables: Tables = TABLES) -> tuple[list[str], np.ndarray, dict[int, np.ndarray]]:
    """Captions and pixels of the clips shown, and the teacher's samples of them.

    Only the first batch is sampled, so this takes seconds; teacher_rows samples the same bits again.
    """
    parts, net = Parts(cfg, tables), network(cfg, cfg.model.weights, tables)
    first = parts.clips.clips("test", min(clips, FIRST_BATCH), cfg.run.seed)
    real, how = parts.codec.decode(first.x0), Sample(guidance=cfg.objective.guidance)
    at = different(real)
    made = {n: sample(net, first, n, how, cfg.run.seed)[at] for n in (REFERENCE_STEPS, *steps)}
    return ([first.captions[i] for i in at], real[at].numpy(),
            {n: parts.codec.decode(z).numpy() for n, z in made.items()})


def different(clips: Tensor) -> list[int]:
    """SHOWN of the clips: the first, then always the one that is farthest from the nearest of those.

    Far by the mean colours of a clip's four quarters, which the eye tells apart where pixels differ anyhow.
    """
    colours, found = F.adaptive_avg_pool3d(clips, (1, 2, 2)).flatten(1).double(), [0]
    nearest = (colours - colours[0]).square().mean(1)
    while len(found) < min(SHOWN, len(clips)):
        nearest[found] = -1.0
        found.append(int(nearest.argmax()))
        nearest = nearest.minimum((colours - colours[found[-1]]).square().mean(1))
    return found


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
    at = different(bench.real[:FIRST_BATCH])
    return bench.figures(z, reference), bench.codec.decode(z[at]).numpy()


def real_rows(cfg: Config, clips: int, tables: Tables = TABLES) -> dict[str, dict[str, float]]:
    """Distances of as many other real crops: of the frames measured, of those the teacher learned from."""
    bench, found, seed = benchmark(cfg, "test", clips, tables), {}, seed_of(cfg.run.seed, "other crops")
    for name, part in REAL_ROWS.items():
        pixels = bench.codec.decode(Parts(cfg, tables).clips.clips(part, clips, seed).x0)
        found[name] = {metric: bench.distance(pixels, metric) for metric in bench.nets}
    return found


def timings(cfg: Config, run: Config, teacher_steps: tuple[int, ...], student_steps: tuple[int, ...],
            tables: Tables = TABLES) -> dict[tuple[bool, int], float]:
    """(is it a student, steps) -> CPU seconds a clip of sampling TIMED clips at once on one core.

    CPU time, since the least wall time of a long sampling suffers more from other processes than that of a
    short one.  Interleaved rounds, the least of TIMINGS each.  The students are networks of the teacher's
    sizes, so that the one of `run` stands for all; the teacher takes two evaluations a step where it is
    guided.
    """
    clips = Parts(cfg, tables).clips.clips("test", TIMED, cfg.run.seed)
    teacher, student = cfg.model.weights, Path(run.run.dir) / FILES[AVERAGE]
    nets = {False: (network(cfg, teacher, tables), Sample(guidance=cfg.objective.guidance)),
            True: (network(run, student, tables), replace(run.sample, guidance=1.0))}
    places = [(False, n) for n in teacher_steps] + [(True, n) for n in student_steps]
    least = dict.fromkeys(places, float("inf"))
    for _ in range(TIMINGS):
        for student, steps in places:
            net, how = nets[student]
            began = time.process_time()
            sample(net, clips, steps, how, cfg.run.seed)
            least[student, steps] = min(least[student, steps], time.process_time() - began)
    return {place: seconds / len(clips) for place, seconds in least.items()}


def progress(cfg: Config, run: Config, steps: int) -> dict[int, float]:
    """Step of a run -> Frechet distance to validation clips then."""
    bench, call = benchmark(cfg, "valid", PROGRESS_CLIPS), Parts(run).family.call
    return {step: bench.distance(bench.codec.decode(bench.sample(partial(call, net), steps, Sample())))
            for step, net in averages(run)}
