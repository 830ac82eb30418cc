"""The command line: swiftvideo train | pairs | align | sample | evaluate | export | plan | doctor | ..."""

import argparse
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import yaml

from swiftvideo_fast import config, doctor, evaluate, plan, plan_recipe, release
from swiftvideo_fast.config import Config, Model, Sample
from swiftvideo_fast.config.strict import known_name
from swiftvideo_fast.data import encode, index
from swiftvideo_fast.data.clips import write_video
from swiftvideo_fast.data.crops import EncodedCrops, fit_codec
from swiftvideo_fast.data.pairs import folder_of
from swiftvideo_fast.demo import demo
from swiftvideo_fast.metrics.benchmark import sample
from swiftvideo_fast.models.family import sizes_of
from swiftvideo_fast.objectives.ta import Ta
from swiftvideo_fast.train import checkpoint, recipe, run_folder
from swiftvideo_fast.train.recipe import TABLES, Parts, Tables
from swiftvideo_fast.train.rounds import make_pairs, rounds, run_ta_rounds


def main(arguments: list[str] | None = None, tables: Tables = TABLES) -> int:
    """Run one command; bad input is one line on stderr and exit code 2.  tables: the plugs of configs."""
    args = parser().parse_args(arguments)
    args.tables = tables
    try:
        args.command(args)
    except (ValueError, OSError, ImportError, FloatingPointError) as why:
        print(f"swiftvideo {args.name}: {why}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"swiftvideo {args.name}: interrupted; the same command goes on from the last checkpoint",
              file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="swiftvideo", description=__doc__)
    top.add_argument("--local_rank", help=argparse.SUPPRESS)        # what the deepspeed launcher passes
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(run, name: str, about: str) -> argparse.ArgumentParser:
        p = commands.add_parser(name, help=about, description=about)
        p.set_defaults(command=run, name=name)
        return p

    def configured(run, name: str, about: str) -> argparse.ArgumentParser:
        p = command(run, name, about)
        p.add_argument("config", help="a YAML file, such as configs/demo/ccd.yaml")
        p.add_argument("overrides", nargs="*", metavar="key.subkey=value", help="replace the file's values")
        p.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
        return p

    index.add_arguments(command(index.run, "index", "a folder of videos and a csv of captions to one table"))
    p = command(run_encode, "encode", "the videos of an index to shards of latents; many ranks may share")
    encode.add_arguments(p)
    p.add_argument("--family", default="wan", help="of the codec: wan or toy (default: wan)")
    p.add_argument("--codec", help="as model.codec: the file or folder that the family's codec is read from")
    p.add_argument("--weights", help="as model.weights: a network's, for the sizes that the codec wants")
    p.add_argument("--preset", help="as model.preset, in place of --weights")

    p = configured(run_train, "train", "train or distil; a run cut short goes on from its last checkpoint")
    p.add_argument("--resume", choices=("auto", "never"), default="auto",
                   help="auto: from the newest good checkpoint in run.dir; never: refuse where there is one")
    p = configured(run_pairs, "pairs", "sample a student's preferences, for alignment; many ranks may share")
    p.add_argument("--steps", type=positive, nargs=2, metavar=("WINNER", "LOSER"), help="as objective.steps")
    p.add_argument("--count", type=positive, help="as objective.count")
    p.add_argument("--winner", choices=("sampled", "real"), help="as objective.winner")
    p.add_argument("--rank", type=natural, default=os.environ.get("RANK", "0"), help="default: $RANK or 0")
    p.add_argument("--world", type=positive, default=os.environ.get("WORLD_SIZE", "1"),
                   help="ranks in all; default: $WORLD_SIZE or 1")

    p = configured(run_align, "align", "rounds of alignment: pairs, training, and again from what came of it")
    p.add_argument("--steps", type=positive, nargs="+", default=[8, 4, 2],
                   help="8 4 2: a round of 8 against 4 steps, then one of 4 against 2")

    configured(run_codec, "codec", "fit the demo's codec to the training clips and write it to model.codec")

    p = command(run_sample, "sample", "generate clips for an image and a prompt, or for a config's data")
    p.add_argument("model", help="a run, its weight file, an exported folder, a base model; or a YAML config")
    p.add_argument("--steps", type=positive, help="sampling steps (default: 4, of --teacher 25)")
    p.add_argument("--guidance", type=float, help="1 for a student (default: as saved with the weights)")
    p.add_argument("--seed", type=natural, default=0)
    release.sample.add_arguments(p.add_argument_group("of a model"))
    p = p.add_argument_group("of a config: its held-out first frames, to the folder --out")
    p.add_argument("overrides", nargs="*", metavar="key.subkey=value", help="replace the file's values")
    p.add_argument("--weights", help="a file by train: student or average.safetensors")
    p.add_argument("--count", type=positive, default=8, help="clips")
    p.add_argument("--dry-run", action="store_true", help="check everything, write nothing")

    p = command(evaluate.run, "evaluate", "compare models on the same held-out clips: table and page")
    p.add_argument("--steps", type=positive, nargs="+", default=[4], help="of each model (default: 4)")
    p.add_argument("--count", type=positive, default=256, help="clips (default: 256)")
    p.add_argument("--seed", type=natural, default=0, help="of clips and noise")
    evaluate.add_arguments(p)

    p = command(release.export.run, "export", "write a student for others to load, and check it")
    release.export.add_arguments(p)
    plan.add_arguments(command(run_plan, "plan", "memory, work and traffic of a run, and what makes it fit"))
    command(run_doctor, "doctor", "what this machine has, what is missing, and the command that installs it")

    p = command(run_demo, "demo", "distil, measure and report on real clips, in minutes")
    p.add_argument("overrides", nargs="*", metavar="key.subkey=value", help="replace values of the configs")
    p.add_argument("--dir", type=Path, default=Path("runs/demo"), help="where runs and report go")
    p.add_argument("--configs", type=Path, default=Path("configs/demo"), help="folder of the demo's configs")
    p.add_argument("--seeds", type=positive, default=1, help="repeat with this many seeds and report means")
    p.add_argument("--clips", type=positive, default=256, help="held-out clips a seed")
    return top


def natural(text: str) -> int:
    """The type of a seed on the command line."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}; want 0 or more")
    return int(text)


def positive(text: str) -> int:
    """The type of a count on the command line."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}; want a positive number")
    return int(text)


def run_encode(args: argparse.Namespace) -> None:
    known_name("--family", args.family, args.tables.families)
    family = args.tables.families[args.family]
    model = Model(family=args.family, codec=args.codec, weights=args.weights, preset=args.preset)
    sizes = sizes_of(family, model) if args.weights or args.preset else None
    encode.run(args, family.codec(model, sizes))


def run_train(args: argparse.Namespace) -> None:
    cfg = args.tables.load(args.config, args.overrides)
    if args.dry_run:
        return describe(cfg, args.tables)
    last = checkpoint.newest(Path(cfg.run.dir))
    if args.resume == "never" and last:
        raise ValueError(f"{last} is there, and --resume never; take another run.dir, or --resume auto")
    print(f"weights in {recipe.train(cfg, args.tables)}")


def run_pairs(args: argparse.Namespace) -> None:
    given = {key: getattr(args, key) for key in ("steps", "count", "winner")}
    flags = [f"objective.{key}={value}" for key, value in given.items() if value is not None]
    cfg = aligning(args, [*args.overrides, *flags])
    if args.rank >= args.world:
        raise ValueError(f"--rank {args.rank} of --world {args.world}; want a rank below it")
    if args.dry_run:
        print(f"would write {cfg.objective.count} pairs to {folder_of(cfg)}")
        return
    make_pairs(cfg, args.rank, args.world, args.tables)
    print(f"pairs in {folder_of(cfg)}")


def run_align(args: argparse.Namespace) -> None:
    cfg = aligning(args, args.overrides)
    if len(args.steps) < 2:
        raise ValueError(f"--steps {args.steps[0]}; want two or more, a winner's and a loser's a round")
    if args.dry_run:
        for one in rounds(cfg, args.steps):
            print(f"would write {cfg.objective.count} pairs to {folder_of(one)} and train in {one.run.dir}")
        return
    print(f"weights in {run_ta_rounds(cfg, args.steps, args.tables)}")


def aligning(args: argparse.Namespace, overrides: list[str]) -> Config:
    """The config, which must be one of alignment."""
    cfg = args.tables.load(args.config, overrides)
    if not isinstance(cfg.objective, Ta):
        raise ValueError(f"{args.config}: objective.name is {cfg.objective.name}; want ta")
    return cfg


def describe(cfg: Config, tables: Tables) -> None:
    """The resolved config and what it amounts to; reads all inputs, writes nothing."""
    run_folder.agree(cfg, tables.complete)
    print(yaml.safe_dump(config.to_dict(cfg), sort_keys=False), end="")
    parts = Parts(cfg, tables)
    net, latent, summary = parts.start(), parts.family.latent, recipe.source(parts).summary()
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    T, H, W = cfg.data.shape(latent)
    print(f"# network: {sum(p.numel() for p in net.parameters()):,} parameters, {trained:,} of them trained")
    print(f"# data: {summary}")
    print(f"# tokens a clip: {T * H * W // latent.patch**2}; {cfg.run.steps} steps of {cfg.data.batch} clips")
    last = checkpoint.newest(Path(cfg.run.dir))
    print(f"# would write to {cfg.run.dir}" + (f", going on from {last.name}" if last else ""))


def run_codec(args: argparse.Namespace) -> None:
    cfg = args.tables.load(args.config, args.overrides)
    crops = args.tables.sources[cfg.data.name]
    if not issubclass(crops, EncodedCrops) or not cfg.model.codec:
        raise ValueError(f"{args.config}: data.name is {cfg.data.name}, model.codec {cfg.model.codec}; "
                         "want crops, and the file to write")
    source = crops.cropper(cfg.data, "train")
    if args.dry_run:
        print(f"would fit to {len(source.windows)} clips and write {cfg.model.codec}")
        return
    fit_codec(source, cfg.run.seed).save(cfg.model.codec)
    print(f"wrote {cfg.model.codec}")


def run_sample(args: argparse.Namespace) -> None:
    if not args.model.endswith((".yaml", ".yml")):
        return release.sample.run(args)
    if not args.weights:
        raise ValueError(f"{args.model}: a config; want the weights to sample: --weights FILE")
    cfg, out = args.tables.load(args.model, args.overrides), args.out or Path("samples")
    parts, how, steps = Parts(cfg, args.tables), _how(args, cfg), args.steps or 4
    call, codec = partial(parts.family.call, parts.family.load(args.weights)), parts.codec
    if args.dry_run:
        print(f"would write {args.count} clips of {steps} steps, {how}, to {out}")
        return
    clips = parts.clips.clips("test", args.count, args.seed)
    pixels = codec.decode(sample(call, clips, steps, how, args.seed))
    for i, (clip, caption) in enumerate(zip(pixels, clips.captions, strict=True)):
        write_video(out / f"clip-{i:03d}.mp4", clip)
        print(f"{out}/clip-{i:03d}.mp4  {caption}")


def run_plan(args: argparse.Namespace) -> None:
    print(plan.report(plan.from_arguments(args), args.tflops))
    if args.recipe:
        print(plan_recipe.report(args.preset.removeprefix("wan-"), args.gpus))


def run_doctor(args: argparse.Namespace) -> None:
    print(doctor.report())


def run_demo(args: argparse.Namespace) -> None:
    print(f"report: {demo(args.dir, args.configs, args.seeds, args.clips, args.overrides)}")


def _how(args: argparse.Namespace, cfg: Config) -> Sample:
    return cfg.sample if args.guidance is None else replace(cfg.sample, guidance=args.guidance)
