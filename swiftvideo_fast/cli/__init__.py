"""The command line: swiftvideo train | pairs | align | sample | evaluate | export | plan | doctor | ..."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from swiftvideo_fast import doctor, plan, plan_recipe, release
from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.cli import sampling, training
from swiftvideo_fast.cli.parser import Parser
from swiftvideo_fast.config import Config, Model, Sample
from swiftvideo_fast.config.arguments import natural, positive, weight
from swiftvideo_fast.config.strict import known_name
from swiftvideo_fast.data import encode, index
from swiftvideo_fast.demo import demo
from swiftvideo_fast.metrics.benchmark import Benchmark
from swiftvideo_fast.models.family import sizes_of
from swiftvideo_fast.provenance import commit, installed
from swiftvideo_fast.report.tables import Row, as_json, comparison
from swiftvideo_fast.train.preflight import check_writable
from swiftvideo_fast.train.recipe import TABLES, Parts, Tables

BAD_INPUT = ValueError, OSError, ImportError, FloatingPointError
RESUMES = "; the same command goes on from where it was"


def main(arguments: list[str] | None = None, tables: Tables = TABLES) -> int:
    """Run one command; bad input is one line on stderr and exit code 2.  tables: the plugs of configs."""
    args = parser().parse_args(arguments)
    args.tables = tables
    said = f"swiftvideo {args.name}:"
    try:
        with one_line_warnings(said):
            args.command(args)
            sys.stdout.flush()
    except BrokenPipeError:                     # of a pager that was left
        sys.stdout = open(os.devnull, "w")      # noqa: SIM115  (for the flush at exit)
        return 141
    except BAD_INPUT as why:
        print(said, why, file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as why:
        if not is_out_of_memory(why):
            raise
        print(said, f"out of memory: {str(why).splitlines()[0]}; lower engine.micro (clips a backward pass), "
              "set model.recompute=blocks, or see what fits with `swiftvideo plan`", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(said, f"interrupted{RESUMES if args.resumes else ''}", file=sys.stderr)
        return 130
    return 0


@contextmanager
def one_line_warnings(said: str) -> Generator[None]:
    """Warnings meant for users (UserWarning) as one line, without the line of source."""
    def line(message, category, filename, lineno, source=None) -> str:
        if issubclass(category, UserWarning):
            return f"{said} {' '.join(str(message).split())}\n"
        return usual(message, category, filename, lineno, source)

    usual, warnings.formatwarning = warnings.formatwarning, line
    try:
        yield
    finally:
        warnings.formatwarning = usual


def is_out_of_memory(why: Exception) -> bool:
    known = isinstance(why, MemoryError | torch.OutOfMemoryError)
    return known or "DefaultCPUAllocator: " in str(why)


class Version(argparse.Action):
    """--version: ours, the commit, torch's and Python's, found only when asked for."""

    def __call__(self, parser, namespace, values, option_string=None):
        of, python = commit(), ".".join(map(str, sys.version_info[:3]))
        print(f"swiftvideo_fast {installed('swiftvideo_fast')}{f' ({of})' if of else ''}, "
              f"torch {torch.__version__}, Python {python}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="swiftvideo", description=__doc__)
    top.example = "swiftvideo train configs/demo/ccd.yaml run.steps=400"
    top.add_argument("--version", action=Version, nargs=0, help="versions and commit")
    top.add_argument("--local_rank", help=argparse.SUPPRESS)        # what the deepspeed launcher passes
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(run, name: str, about: str, example: str = "", resumes: bool = False) -> Parser:
        p = commands.add_parser(name, help=about, description=about,
                                epilog=f"example: {example}" if example else None)
        p.set_defaults(command=run, name=name, resumes=resumes)
        p.example = example
        return p

    p = command(index.run, "index", "a folder of videos and a csv of captions to one table", resumes=True,
                example="swiftvideo index VIDEOS --captions captions.csv --out index.parquet")
    index.add_arguments(p)
    p = command(run_encode, "encode", "the videos of an index to shards of latents; many ranks may share",
                "swiftvideo encode index.parquet --out latents --codec Wan2.1-Fun-1.3B-InP", resumes=True)
    encode.add_arguments(p)
    p.add_argument("--family", default="wan", help="of the codec: wan or toy (default: wan)")
    p.add_argument("--codec", help="as model.codec: the file or folder that the family's codec is read from")
    p.add_argument("--weights", help="as model.weights: a network's, for the sizes that the codec wants")
    p.add_argument("--preset", help="as model.preset, in place of --weights")

    training.add_commands(command)
    sampling.add_commands(command)

    p = training.configured(command(run_evaluate, "evaluate", "the table of figures on held-out clips, "
                                    "against the teacher"))
    _sampling(p)
    p.add_argument("--steps", type=positive, nargs="+", default=[4], help="sampling steps, a row each")
    p.add_argument("--count", type=positive, default=256, help="clips")
    p.add_argument("--part", choices=("valid", "test"), default="test", help="valid to choose by, test else")
    p.add_argument("--json", type=Path, help="also write the figures there")

    p = command(release.export.run, "export", "write a student for others to load, and check it",
                "swiftvideo export runs/ccd student --to diffusers")
    release.export.add_arguments(p)
    p = command(run_plan, "plan", "memory, work and traffic of a run, and what makes it fit",
                "swiftvideo plan --preset 1.3b --gpus 8 --memory 80")
    plan.add_arguments(p)
    command(run_doctor, "doctor", "what this machine has, what is missing, and the command that installs it")

    p = command(run_demo, "demo", "distil, measure and report on real clips, in minutes", resumes=True)
    p.add_argument("overrides", nargs="*", default=[], metavar="key.subkey=value",
                   help="replace values of the configs")
    p.add_argument("--dir", type=Path, default=Path("runs/demo"), help="where runs and report go")
    p.add_argument("--configs", type=Path, default=Path("configs/demo"), help="folder of the demo's configs")
    p.add_argument("--seeds", type=positive, default=1, help="repeat with this many seeds and report means")
    p.add_argument("--clips", type=positive, default=256, help="held-out clips a seed")
    return top


def _sampling(p: argparse.ArgumentParser) -> None:
    p.add_argument("--weights", required=True, help="a file by train: student or average.safetensors")
    p.add_argument("--guidance", type=weight, help="1 for a student (default: the config's sample.guidance)")
    p.add_argument("--seed", type=natural, default=0)


def run_encode(args: argparse.Namespace) -> None:
    known_name("--family", args.family, args.tables.families)
    family = args.tables.families[args.family]
    model = Model(family=args.family, codec=args.codec, weights=args.weights, preset=args.preset)
    sizes = sizes_of(family, model) if args.weights or args.preset else None
    encode.run(args, family.codec(model, sizes))


def run_evaluate(args: argparse.Namespace) -> None:
    cfg = args.tables.load(args.config, args.overrides)
    parts = Parts(cfg, args.tables)
    net, teacher = (partial(parts.family.call, parts.family.load(file))
                    for file in (args.weights, cfg.model.weights or args.weights))
    guidance = getattr(cfg.objective, "guidance", 3.0)
    if args.dry_run:
        print(f"would measure {args.weights} at {args.steps} steps on {args.count} {args.part} clips")
        return
    clips = parts.clips.clips(args.part, args.count, args.seed)
    bench, rows = Benchmark(clips, parts.codec, args.seed), []
    reference = bench.reference(teacher, guidance)
    for steps in args.steps:
        for name, n, how in (("teacher", teacher, Sample(guidance=guidance)),
                             ("student", net, _how(args, cfg))):
            figures = bench.figures(bench.sample(n, steps, how), reference)
            rows.append(Row(name, steps, {metric: [value] for metric, value in figures.items()}))
    print(comparison(rows, title=f"{args.count} {args.part} clips").text())
    if args.json:
        with atomic_write(args.json) as aside:
            aside.write_text(json.dumps(as_json(rows), indent=1) + "\n")


def run_plan(args: argparse.Namespace) -> None:
    planned = plan.from_arguments(args)
    recipe = [plan_recipe.report(args.preset, args.gpus)] if args.recipe else []
    print("\n".join([plan.report(planned, args.tflops), *recipe]))


def run_doctor(args: argparse.Namespace) -> None:
    print(doctor.report())


def run_demo(args: argparse.Namespace) -> None:
    check_writable("--dir", args.dir)
    print(f"report: {demo(args.dir, args.configs, args.seeds, args.clips, args.overrides)}")


def _how(args: argparse.Namespace, cfg: Config) -> Sample:
    return cfg.sample if args.guidance is None else replace(cfg.sample, guidance=args.guidance)
