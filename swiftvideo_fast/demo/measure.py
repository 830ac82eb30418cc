"""The demo's measurements, each of one network or one set of clips: units of work for a process pool."""

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

PROGRESS_CLIPS = 48                                         # validation clips for measuring progress
SHOWN = 6                                                   # clips in the report,
FIRST_BATCH = 32                                            # chosen among the first of those measured
TIMED, TIMINGS = 4, 5                                       # clips per timed batch, repetitions
REAL_ROWS = {"real, the same frames": "test", "real, the training's": "train"}      # split of the crops
Measured = dict[int, tuple[dict[str, float], np.ndarray]]   # steps -> figures, pixels of the clips shown


@lru_cache(2)
def benchmark(cfg: Config, part: str, count: int, tables: Tables = TABLES) -> Benchmark:
    """Returns the benchmark of a config's clips.  Caches two per process: the tables' and progress's."""
    parts = Parts(cfg, tables)
    return Benchmark(parts.clips.clips(part, count, cfg.run.seed), parts.codec, cfg.run.seed)


def network(cfg: Config, file: Path | str, tables: Tables = TABLES) -> Call:
    parts = Parts(cfg, tables)
    return partial(parts.family.call, parts.family.load(file))


def preview(cfg: Config, clips: int, steps: tuple[int, ...],
            tables: Tables = TABLES) -> tuple[list[str], np.ndarray, dict[int, np.ndarray]]:
    """Returns captions and pixels of the clips shown, and the teacher's samples of them.

    Samples the first batch only, which takes seconds; teacher_rows reproduces the same bits.
    """
    parts, net = Parts(cfg, tables), network(cfg, cfg.model.weights, tables)
    first = parts.clips.clips("test", min(clips, FIRST_BATCH), cfg.run.seed)
    real, sampling = parts.codec.decode(first.x0), Sample(guidance=cfg.objective.guidance)
    at = different(real)
    made = {n: sample(net, first, n, sampling, cfg.run.seed)[at] for n in (REFERENCE_STEPS, *steps)}
    return ([first.captions[i] for i in at], real[at].numpy(),
            {n: parts.codec.decode(z).numpy() for n, z in made.items()})


def different(clips: Tensor) -> list[int]:
    """Returns the indices of SHOWN clips by farthest-point sampling, starting with the first.

    The distance is between mean colours of a clip's four quarters, which are visible differences.
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
    """Measures the teacher; writes its REFERENCE_STEPS-step samples to `file`, for trajectory errors."""
    bench, net = benchmark(cfg, "test", clips, tables), network(cfg, cfg.model.weights, tables)
    guidance = cfg.objective.guidance
    reference = bench.reference(net, guidance)
    with atomic_write(file) as tmp:
        save_file({"reference": reference}, tmp)
    sampled = {n: bench.sample(net, n, Sample(guidance=guidance)) for n in steps}
    return {n: row(bench, z, reference) for n, z in ({REFERENCE_STEPS: reference} | sampled).items()}


def student_rows(cfg: Config, clips: int, steps: tuple[int, ...], file: Path, run: Config,
                 tables: Tables = TABLES) -> Measured:
    """Measures the final student of `run` on the clips of `cfg`."""
    bench, sampling = benchmark(cfg, "test", clips, tables), run.sample
    net = network(run, Path(run.run.dir) / FILES[AVERAGE], tables)
    reference = load_file(file)["reference"]
    return {n: row(bench, bench.sample(net, n, replace(sampling, guidance=1.0)), reference) for n in steps}


def row(bench: Benchmark, z: Tensor, reference: Tensor) -> tuple[dict[str, float], np.ndarray]:
    at = different(bench.real[:FIRST_BATCH])
    return bench.figures(z, reference), bench.codec.decode(z[at]).numpy()


def real_rows(cfg: Config, clips: int, tables: Tables = TABLES) -> dict[str, dict[str, float]]:
    """Returns distances of other real crops, of the test frames and of the training frames."""
    bench, found, seed = benchmark(cfg, "test", clips, tables), {}, seed_of(cfg.run.seed, "other crops")
    for name, part in REAL_ROWS.items():
        pixels = bench.codec.decode(Parts(cfg, tables).clips.clips(part, clips, seed).x0)
        found[name] = {metric: bench.distance(pixels, metric) for metric in bench.nets}
    return found


def timings(cfg: Config, run: Config, teacher_steps: tuple[int, ...], student_steps: tuple[int, ...],
            tables: Tables = TABLES) -> dict[tuple[bool, int], float]:
    """Returns (is a student, steps) -> CPU seconds per clip, sampling TIMED clips in a batch on one core.

    CPU time: other processes raise the minimum wall time of a long sampling more than that of a short one.
    Interleaved rounds; the minimum of TIMINGS.  All students have the teacher's sizes, so `run` represents
    them; a guided teacher takes two evaluations per step.
    """
    clips = Parts(cfg, tables).clips.clips("test", TIMED, cfg.run.seed)
    teacher, student = cfg.model.weights, Path(run.run.dir) / FILES[AVERAGE]
    nets = {False: (network(cfg, teacher, tables), Sample(guidance=cfg.objective.guidance)),
            True: (network(run, student, tables), replace(run.sample, guidance=1.0))}
    places = [(False, n) for n in teacher_steps] + [(True, n) for n in student_steps]
    least = dict.fromkeys(places, float("inf"))
    for _ in range(TIMINGS):
        for student, steps in places:
            net, sampling = nets[student]
            began = time.process_time()
            sample(net, clips, steps, sampling, cfg.run.seed)
            least[student, steps] = min(least[student, steps], time.process_time() - began)
    return {place: seconds / len(clips) for place, seconds in least.items()}


def progress(cfg: Config, run: Config, steps: int) -> dict[int, float]:
    """Returns step of a run -> Frechet distance to validation clips."""
    bench, call = benchmark(cfg, "valid", PROGRESS_CLIPS), Parts(run).family.call
    return {step: bench.distance(bench.codec.decode(bench.sample(partial(call, net), steps, Sample())))
            for step, net in averages(run)}
