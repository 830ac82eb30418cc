"""The command line: swiftvideo train | pairs | align | sample | evaluate | export | plan | doctor | ..."""

import argparse
import os
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from swiftvideo_fast import doctor, evaluate, plan, plan_recipe, release
from swiftvideo_fast.cli import sampling, training
from swiftvideo_fast.cli.parser import Parser
from swiftvideo_fast.config import Model
from swiftvideo_fast.config.arguments import clips, natural, positive, sampling_steps
from swiftvideo_fast.config.strict import known_name
from swiftvideo_fast.data import encode, index
from swiftvideo_fast.demo import demo
from swiftvideo_fast.models.family import sizes_of
from swiftvideo_fast.provenance import commit, installed
from swiftvideo_fast.train.preflight import check_writable
from swiftvideo_fast.train.recipe import TABLES, Tables

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

    p = command(evaluate.run, "evaluate", "compare models on the same held-out clips: table and page",
                "swiftvideo evaluate --models runs/ccd runs/da --steps 4 2", resumes=True)
    p.add_argument("--steps", type=sampling_steps, nargs="+", default=[4], help="of each model (default: 4)")
    p.add_argument("--count", type=clips, default=256, help="clips (default: 256)")
    p.add_argument("--seed", type=natural, default=0, help="of clips and noise")
    evaluate.add_arguments(p)

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


def run_encode(args: argparse.Namespace) -> None:
    known_name("--family", args.family, args.tables.families)
    family = args.tables.families[args.family]
    model = Model(family=args.family, codec=args.codec, weights=args.weights, preset=args.preset)
    sizes = sizes_of(family, model) if args.weights or args.preset else None
    encode.run(args, family.codec(model, sizes))


def run_plan(args: argparse.Namespace) -> None:
    planned = plan.from_arguments(args)
    recipe = [plan_recipe.report(args.preset, args.gpus)] if args.recipe else []
    print("\n".join([plan.report(planned, args.tflops), *recipe]))


def run_doctor(args: argparse.Namespace) -> None:
    print(doctor.report())


def run_demo(args: argparse.Namespace) -> None:
    check_writable("--dir", args.dir)
    print(f"report: {demo(args.dir, args.configs, args.seeds, args.clips, args.overrides)}")
