"""The command `sample`: generates clips for an image and a prompt, or for a config's held-out data."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from swiftvideo_fast import release
from swiftvideo_fast.cli.parser import Parser
from swiftvideo_fast.config.arguments import clips, natural, sampling_steps, weight
from swiftvideo_fast.config.strict import want
from swiftvideo_fast.data.clips import write_video
from swiftvideo_fast.metrics.benchmark import sample
from swiftvideo_fast.release.sample import check_new
from swiftvideo_fast.train.preflight import check_writable
from swiftvideo_fast.train.recipe import Parts


def add_commands(command: Callable[..., Parser]) -> None:
    p = command(run_sample, "sample", "generate clips for an image and a prompt, or for a config's data",
                'swiftvideo sample MODEL --image first.png --prompt "a ball rolls over the table"')
    p.add_argument("model", help="a run, its weight file, an exported folder, a base model; or a YAML config")
    p.add_argument("--steps", type=sampling_steps, help="sampling steps (default: 4, with --teacher 25)")
    p.add_argument("--guidance", type=weight, help="1 for a student (default: as saved with the weights)")
    p.add_argument("--seed", type=natural, default=0)
    p.add_argument("--force", action="store_true", help="replace existing clips")
    p.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    release.sample.add_arguments(p.add_argument_group("options for a model"))
    p = p.add_argument_group("options for a config (samples its held-out first frames to the folder --out)")
    p.add_argument("overrides", nargs="*", default=[], metavar="key.subkey=value",
                   help="replace the file's values")
    p.add_argument("--weights", help="weight file of a run: student.safetensors or average.safetensors")
    p.add_argument("--count", type=clips, default=8, help="clips")


def run_sample(args: argparse.Namespace) -> None:
    if not args.model.endswith((".yaml", ".yml")):
        want(not args.overrides, "the override", " ".join(args.overrides), "none without a YAML config")
        return release.sample.run(args)
    if not args.weights:
        raise ValueError(f"{args.model}: a config; want the weights to sample: --weights FILE")
    if args.image or args.prompts:
        raise ValueError(f"{args.model}: a config, whose held-out first frames are sampled; --image and "
                         "--prompts need a model: a run, or its weights")
    cfg, out = args.tables.load(args.model, args.overrides), args.out or Path("samples")
    check_writable("--out", out)
    files = [out / f"clip-{i:03d}.mp4" for i in range(args.count)]
    check_new(files, args.force)
    sampling = cfg.sample if args.guidance is None else replace(cfg.sample, guidance=args.guidance)
    parts, steps = Parts(cfg, args.tables), args.steps or 4
    call, codec = partial(parts.family.call, parts.family.load(args.weights)), parts.codec
    if args.dry_run:
        print(f"would write {args.count} clips of {steps} steps, {sampling.sampler}, "
              f"shift {sampling.shift:g}, guidance {sampling.guidance:g}, to {out}")
        return
    given = parts.clips.clips("test", args.count, args.seed)
    pixels = codec.decode(sample(call, given, steps, sampling, args.seed))
    for file, clip, caption in zip(files, pixels, given.captions, strict=True):
        write_video(file, clip)
        print(f"{file}  {caption}")
