"""Types of values on the command line; what they refuse is argparse's one-line error."""

import argparse
import math
import os

import torch

MOST_STEPS = 10_000             # of a sampler
MOST_CLIPS = 100_000


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


def sampling_steps(text: str) -> int:
    if (steps := positive(text)) > MOST_STEPS:
        raise argparse.ArgumentTypeError(f"{text!r}; want at most {MOST_STEPS:,} sampling steps")
    return steps


def clips(text: str) -> int:
    """The type of a count of clips that are made at once."""
    if (count := positive(text)) > MOST_CLIPS:
        raise argparse.ArgumentTypeError(f"{text!r}; want at most {MOST_CLIPS:,} clips")
    return count


def weight(text: str) -> float:
    """The type of a guidance."""
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
    """The type of --device."""
    try:
        found = torch.device(text)
    except RuntimeError as why:
        raise argparse.ArgumentTypeError(f"{text!r}; want cpu or cuda") from why
    if found.type == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"{text!r}, and torch finds no GPU; `swiftvideo doctor` says why")
    return found


def size(text: str) -> tuple[int, int]:
    """(width, height) of 832x480."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r}; want WIDTHxHEIGHT, such as 832x480")
    return int(width), int(height)


def add_ranks(parser: argparse.ArgumentParser) -> None:
    """--rank and --world, of processes that share out one command's work."""
    parser.add_argument("--rank", type=natural, default=os.environ.get("RANK", "0"),
                        help="default: $RANK or 0")
    parser.add_argument("--world", type=positive, default=os.environ.get("WORLD_SIZE", "1"),
                        help="processes in all; default: $WORLD_SIZE or 1")


def check_ranks(args: argparse.Namespace) -> None:
    if args.rank >= args.world:
        raise ValueError(f"--rank {args.rank} of --world {args.world}; want a rank below it")
