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
RESUMES = "; repeat the command to resume"


def main(arguments: list[str] | None = None, tables: Tables = TABLES) -> int:
    """Runs one command; returns its exit code.  Bad input prints one line on stderr and returns 2.

    tables: objectives, sources and families that configs may name.
    """
    args = parser().parse_args(arguments)
    args.tables = tables
    prefix = f"swiftvideo {args.name}:"
    try:
        with one_line_warnings(prefix):
            args.command(args)
            sys.stdout.flush()
    except BrokenPipeError:                     # a pager was closed
        sys.stdout = open(os.devnull, "w")      # noqa: SIM115  (for the flush at exit)
        return 141
    except BAD_INPUT as why:
        print(prefix, why, file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as why:
        if not is_out_of_memory(why):
            raise
        print(prefix, f"out of memory: {str(why).splitlines()[0]}; lower engine.micro (clips per backward "
              "pass), set model.recompute=blocks, or see what fits with `swiftvideo plan`", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(prefix, f"interrupted{RESUMES if args.resumes else ''}", file=sys.stderr)
        return 130
    return 0


@contextmanager
def one_line_warnings(prefix: str) -> Generator[None]:
    """Prints UserWarnings as one line, without the source line."""
    def line(message, category, filename, lineno, source=None) -> str:
        if issubclass(category, UserWarning):
            return f"{prefix} {' '.join(str(message).split())}\n"
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
    """--version: prints our version and commit, and those of torch and Python."""

    def __call__(self, parser, namespace, values, option_string=None):
        of, python = commit(), ".".join(map(str, sys.version_info[:3]))
        print(f"swiftvideo_fast {installed('swiftvideo_fast')}{f' ({of})' if of else ''}, "
              f"torch {torch.__version__}, Python {python}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="swiftvideo", description="Few-step image-to-video distillation: from videos and a "
                 "released checkpoint to a student of 4, 2 or 1 steps.  COMMAND --help has the options.")
    top.example = "swiftvideo train configs/demo/ccd.yaml run.steps=400"
    top.add_argument("--version", action=Version, nargs=0, help="versions and commit")
    top.add_argument("--local_rank", help=argparse.SUPPRESS)        # passed by the deepspeed launcher
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(run, name: str, about: str, example: str = "", resumes: bool = False) -> Parser:
        p = commands.add_parser(name, help=about, description=about,
                                epilog=f"example: {example}" if example else None)
        p.set_defaults(command=run, name=name, resumes=resumes)
        p.example = example
        return p

    p = command(index.run, "index", "index a folder of videos and a csv of captions", resumes=True,
                example="swiftvideo index VIDEOS --captions captions.csv --out index.parquet")
    index.add_arguments(p)
    p = command(run_encode, "encode", "encode the videos of an index to shards of latents, on many ranks",
                "swiftvideo encode index.parquet --out latents --codec Wan2.1-Fun-1.3B-InP", resumes=True)
    encode.add_arguments(p)
    p.add_argument("--family", default="wan", help="codec family: wan or toy (default: wan)")
    p.add_argument("--codec", help="as model.codec: the codec's file or folder")
    p.add_argument("--weights", help="as model.weights: a network, whose sizes some codecs need")
    p.add_argument("--preset", help="as model.preset, instead of --weights")

    training.add_commands(command)
    sampling.add_commands(command)

    p = command(evaluate.run, "evaluate", "compare models on the same held-out clips: table and page",
                "swiftvideo evaluate --models runs/ccd runs/da --steps 4 2", resumes=True)
    p.add_argument("--steps", type=sampling_steps, nargs="+", default=[4],
                   help="sampling steps of each model (default: 4)")
    p.add_argument("--count", type=clips, default=256, help="clips (default: 256)")
    p.add_argument("--seed", type=natural, default=0, help="seed of clips and noise")
    evaluate.add_arguments(p)

    p = command(release.export.run, "export", "write a student in another program's format, and verify it",
                "swiftvideo export runs/ccd student --to diffusers")
    release.export.add_arguments(p)
    p = command(run_plan, "plan", "estimate a run's memory, FLOPs and communication, and how to make it fit",
                "swiftvideo plan --preset 1.3b --gpus 8 --memory 80")
    plan.add_arguments(p)
    command(run_doctor, "doctor", "list devices and packages, and the commands that install missing ones")

    p = command(run_demo, "demo", "distil, measure and report on real clips, in minutes", resumes=True)
    p.add_argument("overrides", nargs="*", default=[], metavar="key.subkey=value",
                   help="replace values of the configs")
    p.add_argument("--dir", type=Path, default=Path("runs/demo"),
                   help="folder of runs and report (default: runs/demo)")
    p.add_argument("--configs", type=Path, default=Path("configs/demo"),
                   help="folder of the demo's configs (default: configs/demo)")
    p.add_argument("--seeds", type=positive, default=1,
                   help="repeat with this many seeds and report means (default: 1)")
    p.add_argument("--clips", type=positive, default=256, help="held-out clips per seed (default: 256)")
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
