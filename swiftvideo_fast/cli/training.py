"""The commands train, pairs, align, codec and runs."""

import argparse
from collections.abc import Callable
from pathlib import Path

import yaml

from swiftvideo_fast import config
from swiftvideo_fast.cli.parser import Parser
from swiftvideo_fast.config import Config
from swiftvideo_fast.config.arguments import add_ranks, check_ranks, positive, sampling_steps
from swiftvideo_fast.config.strict import want
from swiftvideo_fast.data.crops import EncodedCrops, fit_codec
from swiftvideo_fast.data.pairs import folder_of
from swiftvideo_fast.objectives.ta import Ta
from swiftvideo_fast.train import checkpoint, listing, recipe
from swiftvideo_fast.train.preflight import check_writable
from swiftvideo_fast.train.ranks import rank_and_world
from swiftvideo_fast.train.recipe import Parts, Tables
from swiftvideo_fast.train.rounds import make_pairs, rounds, run_ta_rounds


def add_commands(command: Callable[..., Parser]) -> None:
    """Adds the commands.  command(function, name, help, example, resumes) returns a subparser."""
    p = configured(command(
        run_train, "train", "train or distil; resumes an interrupted run, and extends a finished one when "
        "run.steps is raised", "swiftvideo train configs/demo/ccd.yaml run.steps=400", resumes=True))
    p.add_argument("--resume", choices=("auto", "never"), default="auto",
                   help="auto: from the newest good checkpoint in run.dir; never: an error if there is one")

    p = configured(command(
        run_pairs, "pairs", "sample a student's preference pairs for alignment, on many ranks",
        "swiftvideo pairs configs/demo/ta.yaml --steps 8 4", resumes=True))
    p.add_argument("--steps", type=sampling_steps, nargs=2, metavar=("WINNER", "LOSER"),
                   help="as objective.steps")
    p.add_argument("--count", type=positive, help="as objective.count")
    p.add_argument("--winner", choices=("sampled", "real"), help="as objective.winner")
    add_ranks(p)

    p = configured(command(
        run_align, "align", "rounds of alignment, each: sample pairs, then train on them",
        "swiftvideo align configs/demo/ta.yaml --steps 8 4 2", resumes=True))
    p.add_argument("--steps", type=sampling_steps, nargs="+", default=[8, 4, 2],
                   help="8 4 2: a round of 8 against 4 steps, then one of 4 against 2")

    p = configured(command(
        run_codec, "codec", "fit the demo's codec to the training clips and write it to model.codec",
        "swiftvideo codec configs/demo/ccd.yaml model.codec=my.safetensors"))
    p.add_argument("--force", action="store_true", help="replace the file")

    p = command(run_runs, "runs", "list the runs in a folder: steps, state, loss, age", "swiftvideo runs")
    p.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="default: runs")


def configured(p: Parser) -> Parser:
    """Adds the arguments of commands that take a config and overrides."""
    p.add_argument("config", help="a YAML file, such as configs/demo/ccd.yaml")
    p.add_argument("overrides", nargs="*", default=[], metavar="key.subkey=value",
                   help="replace the file's values; anywhere on the line")
    p.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    return p


def run_train(args: argparse.Namespace) -> None:
    cfg = args.tables.load(args.config, args.overrides)
    last = checkpoint.newest(Path(cfg.run.dir))
    if args.resume == "never" and last:
        raise ValueError(f"{last} exists, with --resume never; choose another run.dir, or --resume auto")
    if args.dry_run:
        return describe(cfg, args.tables)
    _print_weights(recipe.train(cfg, args.tables))


def describe(cfg: Config, tables: Tables) -> None:
    """Checks a run without writing anything; prints its resolved config and summary."""
    run, last = recipe.dry_run(cfg, tables), checkpoint.newest(Path(cfg.run.dir))
    print(yaml.safe_dump(config.to_dict(cfg), sort_keys=False), end="")
    print(f"# network: {run.parameters:,} parameters, {run.trained:,} of them trained")
    print(f"# data: {run.data}")
    print(f"# tokens a clip: {run.tokens}; {cfg.run.steps} steps of {cfg.data.batch} clips")
    print(f"# would write to {cfg.run.dir}" + (f", resuming from {last.name}" if last else ""))


def run_pairs(args: argparse.Namespace) -> None:
    given = {key: getattr(args, key) for key in ("steps", "count", "winner")}
    flags = [f"objective.{key}={value}" for key, value in given.items() if value is not None]
    cfg = aligning(args, [*args.overrides, *flags])
    check_ranks(args)
    if args.dry_run:
        check_start(cfg, args.tables)
        print(f"would write {cfg.objective.count} pairs to {folder_of(cfg)}")
        return
    make_pairs(cfg, args.rank, args.world, args.tables)
    print(f"pairs in {folder_of(cfg)}")


def run_align(args: argparse.Namespace) -> None:
    cfg, steps = aligning(args, args.overrides), args.steps
    text = " ".join(map(str, steps))
    want(len(steps) > 1, "--steps", text, "two or more: each round has a winner's and a loser's")
    want(all(winner > loser for winner, loser in zip(steps, steps[1:], strict=False)), "--steps", text,
         "decreasing numbers, such as 8 4 2: the winner of a round has more steps than the loser")
    if args.dry_run:
        check_start(cfg, args.tables)
        for one in rounds(cfg, steps):
            print(f"would write {cfg.objective.count} pairs to {folder_of(one)} and train in {one.run.dir}")
        return
    _print_weights(run_ta_rounds(cfg, steps, args.tables))


def _print_weights(folder: Path) -> None:
    rank, _ = rank_and_world()
    if rank == 0:
        print(f"weights in {folder}")


def aligning(args: argparse.Namespace, overrides: list[str]) -> Config:
    """Returns the config; ValueError unless its objective is ta."""
    cfg = args.tables.load(args.config, overrides)
    if not isinstance(cfg.objective, Ta):
        raise ValueError(f"{args.config}: objective.name is {cfg.objective.name}; want ta")
    return cfg


def check_start(cfg: Config, tables: Tables) -> None:
    """Raises the errors that sampling pairs would; training can be checked once the pairs exist."""
    recipe.dry_run_pairs(Parts(cfg, tables))


def run_codec(args: argparse.Namespace) -> None:
    cfg = args.tables.load(args.config, args.overrides)
    crops = args.tables.sources[cfg.data.name]
    if not issubclass(crops, EncodedCrops) or not cfg.model.codec:
        raise ValueError(f"{args.config}: data.name is {cfg.data.name}, model.codec {cfg.model.codec}; "
                         "want crops, and the file to write")
    source, file = crops.cropper(cfg.data, "train"), Path(cfg.model.codec)
    want(not file.is_dir(), "model.codec", f"{file}, a folder", "the name of a file")
    check_writable("model.codec", file.parent)
    if file.exists() and not args.force:
        raise ValueError(f"{file} exists; name another file with model.codec=..., or --force to replace it")
    if args.dry_run:
        print(f"would fit to {len(source.windows)} clips and write {file}")
        return
    fit_codec(source, cfg.run.seed).save(file)
    print(f"wrote {file}")


def run_runs(args: argparse.Namespace) -> None:
    print(listing.table(args.folder))
