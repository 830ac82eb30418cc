"""One seed of the demo: every student trained, every row of the tables measured."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from swiftvideo_fast import config
from swiftvideo_fast.config import Config
from swiftvideo_fast.demo.crew import train_all
from swiftvideo_fast.evaluate.benchmark import REFERENCE_STEPS, Benchmark
from swiftvideo_fast.models import weights
from swiftvideo_fast.models.codec import PcaCodec
from swiftvideo_fast.models.wan import Wan
from swiftvideo_fast.sampler import Sampling
from swiftvideo_fast.train.loop import AVERAGE, load_latents
from swiftvideo_fast.train.report import read_log
from swiftvideo_fast.train.rounds import averages, rounds

STAGES = {"CCD": "ccd.yaml", "CCD + DA": "da.yaml"}             # each from the student of the one before
FIRST, LAST = STAGES
UNJUDGED = "CCD + CCD"                                          # the steps of DA without its adversary
FULL = "CCD, full"
ALIGNED = f"{LAST} + TA", f"{LAST} + TA + TA"
ROUNDS = [8, 4, 2]
VARIANTS = {                                                    # of the first round of alignment
    "DPO alone": {"reflow": 0.0},
    "reflow alone": {"beta": 0.0},
    "real winners": {"winner": "real", "pairs": None},
}
TEACHER_STEPS, STUDENT_STEPS, VARIANT_STEPS = (REFERENCE_STEPS, 8, 4, 2, 1), (8, 4, 2, 1), (4, 2)
WATCHED = 128   # validation clips that progress is measured on
SHOWN = 6       # clips in the report


@dataclass(frozen=True)
class Seed:
    """One seed's figures, logs and first few samples: name -> steps -> ...

    backbone: the adversary's.  progress: run of alignment -> step -> Frechet distance at 4 steps.
    """

    captions: list[str]
    backbone: str
    logs: dict[str, list[dict]]
    rows: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)
    pixels: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    progress: dict[str, dict[int, float]] = field(default_factory=dict)


def run_seed(folder: Path, configs: Path, seed: int, clips: int, overrides: list[str]) -> Seed:
    """Train what is not trained yet, then sample and measure."""
    runs = dict(students(folder, configs, seed, overrides))
    for name, cfg in runs.items():
        if cfg.da:
            print(f"{name}: real and generated clips are told apart through {cfg.da.backbone}", flush=True)
    train_all(list(runs.values()))

    cfg = runs[FIRST]
    teacher, codec = weights.load(cfg.model.weights), PcaCodec.load(cfg.model.codec)
    guidance = cfg.objective.guidance

    def benchmark(part: str, count: int) -> Benchmark:
        held_out = load_latents(cfg, part, teacher.config.text_dim, count, seed)
        return Benchmark(held_out, codec, teacher, seed, guidance)

    print(f"sampling and measuring {clips} held-out clips, seed {seed}", flush=True)
    bench = benchmark("test", clips)
    logs = {name: read_log(Path(cfg.run.dir)) for name, cfg in runs.items()}
    found = Seed(bench.clips.captions[:SHOWN], runs[LAST].da.backbone, logs)

    def measure(name: str, net: Wan, how: Sampling) -> None:
        z = bench.reference if (name, how.steps) == ("teacher", REFERENCE_STEPS) else bench.sample(net, how)
        found.rows[name, how.steps] = bench.figures(z)
        found.pixels[name, how.steps] = codec.decode(z[:SHOWN])

    for steps in TEACHER_STEPS:
        measure("teacher", teacher, Sampling(steps, guidance=guidance))
    for name, cfg in runs.items():
        net = weights.load(Path(cfg.run.dir) / AVERAGE)
        for steps in VARIANT_STEPS if name in (UNJUDGED, *VARIANTS) else STUDENT_STEPS:
            measure(name, net, Sampling(steps, cfg.sample.sampler, cfg.sample.shift))
    found.pixels["real", 0] = bench.real[:SHOWN]

    watch = benchmark("valid", WATCHED)
    for name in (ALIGNED[0], *VARIANTS):
        found.progress[name] = {step: watch.distance(codec.decode(watch.sample(net, Sampling(ROUNDS[1]))))
                                for step, net in averages(runs[name])}
    return found


def students(folder: Path, configs: Path, seed: int, overrides: list[str]) -> Iterator[tuple[str, Config]]:
    """Every run by name, in an order in which each finds the student that it starts from."""
    def load(file: str, student: str | None) -> Config:
        cfg = config.load(configs / file, overrides)
        return replace(cfg, run=replace(cfg.run, seed=seed, dir=str(folder / Path(file).stem)),
                       model=replace(cfg.model, student=student))

    def elsewhere(cfg: Config, name: str, **changes) -> Config:
        return replace(cfg, run=replace(cfg.run, dir=str(folder / name.replace(" ", "-"))), **changes)

    student = None
    for name, file in STAGES.items():
        cfg = load(file, student)
        yield name, cfg
        student = f"{cfg.run.dir}/{AVERAGE}"
    yield UNJUDGED, elsewhere(cfg, "da-unjudged", da=None)
    yield FULL, load("ccd-full.yaml", None)

    first, *_ = aligned = [*rounds(load("ta.yaml", student), ROUNDS)]
    yield from zip(ALIGNED, aligned, strict=True)
    for name, options in VARIANTS.items():
        objective = replace(first.objective, **{"pairs": f"{first.run.dir}/pairs"} | options)
        yield name, elsewhere(first, name, objective=objective)
