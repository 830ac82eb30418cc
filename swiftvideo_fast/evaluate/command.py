"""swiftvideo evaluate: compares models on the same held-out clips, first frames and noise.

The first model's run defines clips, codec and teacher.  Under torchrun the work is split over processes.  An
interrupted command resumes when repeated; more models or steps are added to the output folder.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.evaluate import clips, generate, measure, models, nets, page
from swiftvideo_fast.evaluate.models import Sampler
from swiftvideo_fast.models.family import Codec
from swiftvideo_fast.train.ranks import init_gloo, local_device

FIGURES, REPORT = "figures.json", "report.html"


def add_arguments(p: argparse.ArgumentParser) -> None:
    """Adds the options of `evaluate`, except --steps, --count and --seed, which the CLI adds."""
    p.add_argument("--models", type=models.model_argument, nargs="+", required=True, metavar="[NAME=]PATH",
                   help="run folders or weight files; the first defines clips, codec and teacher")
    p.add_argument("--against", type=models.against, metavar="teacher:25,8,4",
                   help="steps of the teacher, or none (default: 25 and those of --steps)")
    p.add_argument("--guidance", type=models.guidance,
                   help="teacher's guidance scale (default: that of the first model's run)")
    p.add_argument("--fvd", type=nets.published, nargs="+", action="extend", default=[], metavar="i3d=PATH",
                   help="also FVD, with weights of I3D (i3d=PATH) or VideoMAE-v2 (videomae=PATH)")
    p.add_argument("--part", choices=("valid", "test"), default="test", help="valid: to choose settings")
    p.add_argument("--data", type=Path, help="a folder of shards, instead of the run's held-out clips")
    p.add_argument("--out", type=Path, default=Path("evaluation"), help="folder (default: evaluation)")
    p.add_argument("--dry-run", action="store_true", help="check everything, write nothing")


def run(args: argparse.Namespace) -> None:
    with ExitStack() as held:
        found = models.open_models(args.models, held, args.tables)
        steps, teacher_steps = dict.fromkeys(args.steps), args.against
        if teacher_steps is None:
            teacher_steps = tuple(dict.fromkeys([models.MOST, *steps]))
        teacher = models.teacher(found, args.guidance, args.tables) if teacher_steps else None
        samplers = [Sampler(teacher, n) for n in sorted(teacher_steps, reverse=True)] + [
            Sampler(model, n) for model in found for n in steps]
        held_out, codec = clips.open_clips(found, args.part, args.count, args.seed, args.data, args.tables)
        family = args.tables.families[found[0].trained.model.family]
        for model in dict.fromkeys(one.model for one in samplers):
            family.sizes(model.weights)             # fails on a bad file before anything is written
        job = generate.Job(args.out, family, held_out, samplers, init_gloo(), local_device())
        opened = nets.open_nets(family.name, held_out.frames, args.fvd, job.device)
        notes = models.notes(found, teacher, held_out.about["data"], args.tables)
        if args.dry_run:
            generate.check_manifest(job, write=False)
            print(f"would sample {held_out.count} clips to {args.out}:\n{generate.describe(samplers)}",
                  *notes, sep="\n")
            return
        evaluate(job, codec, opened, notes)


def evaluate(job: generate.Job, codec: Codec, opened: nets.Nets, notes: list[str]) -> None:
    """Generates and measures on every rank; rank 0 writes figures and report."""
    first = job.ranks.rank == 0

    def run_all(step: Callable[[], None]) -> None:
        job.ranks.run_all(lambda: step() or "")

    run_all(lambda: first and generate.check_manifest(job, write=True))
    run_all(partial(generate.generate, job))
    run_all(partial(measure.measure, job, codec, opened))
    if first:
        result = page.Result(job, opened, measure.figures(job, opened), notes)
        print("\n\n".join(table.text() for table in result.tables()))
        with atomic_write(job.out / FIGURES) as tmp:
            tmp.write_text(json.dumps(result.as_json(), indent=1) + "\n")
        print(f"\nreport: {result.write(job.out / REPORT, codec)}")
