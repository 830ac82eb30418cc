"""swiftvideo evaluate: compare models on the same held-out clips, from the same first frames and noise.

The first model's run says the clips, the codec and the teacher.  Any number of processes shares the work,
under torchrun.  A command that was cut short goes on; one with more models or steps adds to what is there.
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
    """But --steps, --count and --seed, whose types are the command line's."""
    p.add_argument("--models", type=models.given, nargs="+", required=True, metavar="[NAME=]PATH",
                   help="folders of runs or weight files, the first of which says clips, codec and teacher")
    p.add_argument("--against", type=models.against, metavar="teacher:25,8,4",
                   help="steps of the teacher, or none (default: 25 and those of --steps)")
    p.add_argument("--guidance", type=models.guidance,
                   help="of the teacher (default: as the first model's run has it)")
    p.add_argument("--fvd", type=nets.published, nargs="+", action="extend", default=[], metavar="i3d=PATH",
                   help="also FVD, by weights of I3D (i3d=PATH) or VideoMAE-v2 (videomae=PATH)")
    p.add_argument("--part", choices=("valid", "test"), default="test", help="valid to choose by, test else")
    p.add_argument("--data", type=Path, help="a folder of shards, in place of clips that the run held out")
    p.add_argument("--out", type=Path, default=Path("evaluation"), help="folder (default: evaluation)")
    p.add_argument("--dry-run", action="store_true", help="check everything, write nothing")


def run(args: argparse.Namespace) -> None:
    with ExitStack() as held:
        found = models.open_models(args.models, held, args.tables)
        steps, taught = dict.fromkeys(args.steps), args.against
        if taught is None:
            taught = tuple(dict.fromkeys([models.MOST, *steps]))
        teacher = models.teacher(found, args.guidance, args.tables) if taught else None
        samplers = [Sampler(teacher, n) for n in sorted(taught, reverse=True)] + [
            Sampler(model, n) for model in found for n in steps]
        held_out, codec = clips.open_clips(found, args.part, args.count, args.seed, args.data, args.tables)
        family = args.tables.families[found[0].trained.model.family]
        for model in dict.fromkeys(one.model for one in samplers):
            family.sizes(model.weights)             # a bad file is found before anything is made
        job = generate.Job(args.out, family, held_out, samplers, init_gloo(), local_device())
        opened = nets.open_nets(family.name, held_out.frames, args.fvd, job.device)
        notes = models.notes(found, teacher, held_out.about["data"], args.tables)
        if args.dry_run:
            generate.agree(job, write=False)
            print(f"would sample {held_out.count} clips to {args.out}:\n{generate.describe(samplers)}",
                  *notes, sep="\n")
            return
        evaluate(job, codec, opened, notes)


def evaluate(job: generate.Job, codec: Codec, opened: nets.Nets, notes: list[str]) -> None:
    """All of it, on every rank; the first writes what is read by people."""
    first = job.ranks.rank == 0

    def together(step: Callable[[], None]) -> None:
        job.ranks.run_all(lambda: step() or "")

    together(lambda: first and generate.agree(job, write=True))
    together(partial(generate.generate, job))
    together(partial(measure.measure, job, codec, opened))
    if first:
        result = page.Result(job, opened, measure.figures(job, opened), notes)
        print("\n\n".join(table.text() for table in result.tables()))
        with atomic_write(job.out / FIGURES) as tmp:
            tmp.write_text(json.dumps(result.as_json(), indent=1) + "\n")
        print(f"\nreport: {result.write(job.out / REPORT, codec)}")
