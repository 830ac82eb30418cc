"""argparse types of the command line; bad values are argparse's one-line errors."""

import argparse
import math
import os

import torch

MOST_STEPS = 10_000             # sampling steps
MOST_CLIPS = 100_000


def natural(text: str) -> int:
    """argparse type of seeds: an integer, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}; want 0 or more")
    return int(text)


def positive(text: str) -> int:
    """argparse type of counts: a positive integer."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}; want a positive number")
    return int(text)


def sampling_steps(text: str) -> int:
    if (steps := positive(text)) > MOST_STEPS:
        raise argparse.ArgumentTypeError(f"{text!r}; want at most {MOST_STEPS:,} sampling steps")
    return steps


def clips(text: str) -> int:
    """argparse type of clip counts: 1 to MOST_CLIPS."""
    if (count := positive(text)) > MOST_CLIPS:
        raise argparse.ArgumentTypeError(f"{text!r}; want at most {MOST_CLIPS:,} clips")
    return count


def weight(text: str) -> float:
    """argparse type of guidance scales: a finite number, 0 or more."""
    if not 0 <= (value := _number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; want a number, 0 or more")
    return value


def positive_number(text: str) -> float:
    if not 0 < (value := _number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; want a positive number")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def device(text: str) -> torch.device:
    """argparse type of --device."""
    try:
        found = torch.device(text)
    except RuntimeError as why:
        raise argparse.ArgumentTypeError(f"{text!r}; want cpu or cuda") from why
    if found.type == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"{text!r}, and torch finds no GPU; `swiftvideo doctor` says why")
    return found


def size(text: str) -> tuple[int, int]:
    """argparse type of sizes such as 832x480; returns (width, height)."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r}; want WIDTHxHEIGHT, such as 832x480")
    return int(width), int(height)


def add_ranks(parser: argparse.ArgumentParser) -> None:
    """Adds --rank and --world, for commands whose work is split over processes."""
    parser.add_argument("--rank", type=natural, default=os.environ.get("RANK", "0"),
                        help="default: $RANK or 0")
    parser.add_argument("--world", type=positive, default=os.environ.get("WORLD_SIZE", "1"),
                        help="processes in all; default: $WORLD_SIZE or 1")


def check_ranks(args: argparse.Namespace) -> None:
    if args.rank >= args.world:
        raise ValueError(f"--rank {args.rank} of --world {args.world}; want a rank below it")
