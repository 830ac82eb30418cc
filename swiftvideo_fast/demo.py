"""The whole road in minutes: distil the teacher in both regimes, measure held-out clips, show it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from swiftvideo_fast import config
from swiftvideo_fast.evaluate.benchmark import REFERENCE_STEPS, Benchmark, Sampling
from swiftvideo_fast.evaluate.charts import Chart, Curves, logged
from swiftvideo_fast.evaluate.report import Headline, Text, write_report
from swiftvideo_fast.evaluate.samples import Samples
from swiftvideo_fast.evaluate.tables import Row, as_json, comparison, ratio
from swiftvideo_fast.models import weights
from swiftvideo_fast.models.codec import PcaCodec
from swiftvideo_fast.models.wan import Wan
from swiftvideo_fast.train.loop import AVERAGE, load_latents, train
from swiftvideo_fast.train.report import read_log

REGIMES = {"CCD": "ccd.yaml", "CCD, full": "ccd-full.yaml"}
TEACHER_STEPS = (REFERENCE_STEPS, 8, 4, 2, 1)
STUDENT_STEPS = (4, 2, 1)
SHOWN = 6       # clips in the report
TITLE = "From 25 steps to 4, 2 and 1"


@dataclass(frozen=True)
class Seed:
    """One seed's figures, logs and the first few samples: name -> steps -> ..."""

    rows: dict[tuple[str, int | None], dict[str, float]]
    logs: dict[str, list[dict]]
    pixels: dict[tuple[str, int], Tensor]
    captions: list[str]


def demo(folder: Path, configs: Path, seeds: int = 1, clips: int = 256, overrides: list[str] = ()) -> Path:
    """Train, measure and report under `folder`; returns the report.  A second call goes on from the first."""
    results = [run_seed(folder / f"seed-{seed}", configs, seed, clips, overrides) for seed in range(seeds)]
    rows = [Row(name, steps, {m: [r.rows[name, steps][m] for r in results] for m in figures})
            for (name, steps), figures in results[0].rows.items()]
    table = comparison(rows, title=f"{clips} held-out clips")
    print(f"\n{table.text()}\n")
    (folder / "table.json").write_text(json.dumps(as_json(rows), indent=1) + "\n")
    return write_report(folder / "report.html", TITLE, [
        Text("", INTRODUCTION.format(clips=clips, seeds=f"{seeds} seed{'s' * (seeds > 1)}")),
        Headline("", headline(rows)), table, curves(results[0]), samples(results[0])])


def run_seed(folder: Path, configs: Path, seed: int, clips: int, overrides: list[str]) -> Seed:
    """Both students of one seed, and every row of the table."""
    cfgs = {}
    for name, file in REGIMES.items():
        cfg = config.load(configs / file, overrides)
        cfgs[name] = replace(cfg, run=replace(cfg.run, seed=seed, dir=str(folder / Path(file).stem)))
    students = {name: train(cfg) for name, cfg in cfgs.items()}

    cfg = next(iter(cfgs.values()))
    teacher, codec = weights.load(cfg.model.weights), PcaCodec.load(cfg.model.codec)
    held_out = load_latents(cfg, "test", teacher.config.text_dim, clips, seed)
    guidance = cfg.objective.guidance
    print(f"sampling and measuring {clips} held-out clips, seed {seed}", flush=True)
    bench = Benchmark(held_out, codec, teacher, seed, guidance)
    rows, pixels = {}, {}

    def measure(name: str, net: Wan, how: Sampling) -> None:
        z = bench.reference if (name, how.steps) == ("teacher", REFERENCE_STEPS) else bench.sample(net, how)
        rows[name, how.steps] = bench.figures(z)
        pixels[name, how.steps] = codec.decode(z[:SHOWN])

    for steps in TEACHER_STEPS:
        measure("teacher", teacher, Sampling(steps, guidance=guidance))
    for name, run in students.items():
        net = weights.load(run / AVERAGE)
        for steps in STUDENT_STEPS:
            measure(name, net, Sampling(steps, cfgs[name].sample.sampler, cfgs[name].sample.shift))
    pixels["real", 0] = bench.real[:SHOWN]
    logs = {name: read_log(run) for name, run in students.items()}
    return Seed(rows, logs, pixels, held_out.captions[:SHOWN])


def headline(rows: list[Row]) -> list[tuple[str, str]]:
    """The three figures that say it."""
    by = {(r.name, r.steps): r for r in rows}

    def against(name: str, steps: int, metric: str) -> str:
        return f"×{ratio(by[name, steps], by['teacher', steps], metric):.2f}"

    return [(against("CCD", 4, "trajectory"), "trajectory error at 4 steps, of the teacher's"),
            (against("CCD", 4, "frechet"), "Frechet distance at 4 steps, of the teacher's"),
            (against("CCD, full", 1, "frechet"), "Frechet distance at 1 step, full distillation")]


def curves(result: Seed) -> Curves:
    def chart(title: str, key: str) -> Chart:
        lines = [logged(log, key, name=name, smooth=3) for name, log in result.logs.items()]
        return Chart(title, lines, x_label="step", log_y=True)

    return Curves("Training", [
        chart("loss", "loss"), chart("tangent ‖g‖ before normalisation", "tangent"),
        chart("dF/dt, root mean square", "dF_dt")])


def samples(result: Seed) -> Samples:
    shown = [("condition", None), ("real", ("real", 0))]
    shown += [(f"teacher, {s}", ("teacher", s)) for s in (REFERENCE_STEPS, 4)]
    shown += [(f"{name}, {s}", (name, s)) for name in REGIMES for s in STUDENT_STEPS]
    rows = [[result.pixels["real", 0][i, :, :1] if key is None else result.pixels[key][i] for _, key in shown]
            for i in range(SHOWN)]
    return Samples("Samples", [name for name, _ in shown], result.captions, rows,
                   note="The number is the count of steps.  Real clips went through the codec, as measured.")


INTRODUCTION = """
A small image-to-video network with Wan's architecture, trained on three real clips, is distilled by the
paper's continuous-time consistency objective, then sampled on {clips} crops of frames that were held out: the
same first frames, captions and noise for every sampler. {seeds} in all.

`CCD` is the paper's regime: the literal L2 norm of the tangent, few iterations, Euler sampling. `CCD, full`
carries the same objective further (RMS norm) and samples it with fresh noise, which is what a
nearly converged consistency network wants.
"""
