"""Parser and argument types of the bench's commands.

A wrong argument exits with one line and status 2, before any measurement.
"""

import argparse
import importlib.util
import math
import os
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn, TypeVar

PICTURES = ".png", ".pdf", ".svg"
Built = TypeVar("Built")


class Parser(argparse.ArgumentParser):
    """Parser of `python -m bench COMMAND`, described by the module's docstring."""

    def __init__(self, command: str, description: str):
        super().__init__(prog=f"python -m bench {command}".strip(), description=description,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")

    def built(self, build: type[Built], *args, **options) -> Built:
        """Returns build(*args, **options); a ValueError becomes the command's error."""
        try:
            return build(*args, **options)
        except ValueError as why:
            self.error(str(why))

    def known(self, what: str, names: Collection[str], choices: Collection[str]) -> None:
        """Exits unless every name is one of the choices; `what` is a singular noun."""
        if unknown := sorted(set(names) - set(choices)):
            self.error(f"no {what} {str(unknown)[1:-1]}; there are {str(list(choices))[1:-1]}")


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; want a whole number, at least 1")
    return int(text)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; want a number of seconds above 0")
    return value


def size(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r}; want WIDTHxHEIGHT in pixels, such as 832x480")
    return int(sides[0]), int(sides[1])


def output(text: str) -> Path:
    """Returns the path of a writable file, tested by opening it; a new file is removed again."""
    path, fresh = Path(text), not os.path.lexists(text)
    try:
        with path.open("ab"):
            pass
    except OSError as why:
        raise argparse.ArgumentTypeError(f"cannot write {text}: {why.strerror}") from why
    if fresh:
        path.unlink()
    return path


def picture(text: str) -> Path:
    if Path(text).suffix not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text!r}; want a name that ends in {', '.join(PICTURES)}")
    return output(text)


def folder(text: str) -> Path:
    """Returns the path of a writable folder, existing or not, tested by a temporary folder inside."""
    if not text:
        raise argparse.ArgumentTypeError("''; want a folder's path")
    path = Path(text)
    above = next(place for place in (path, *path.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryDirectory(dir=above):
            return path
    except OSError as why:
        raise argparse.ArgumentTypeError(
            f"cannot write into {text}: {above} is not a writable folder") from why


def share_of(text: str) -> slice:
    """Returns the slice of every N-th item from the I-th, of I/N."""
    numbers = text.split("/")
    if len(numbers) != 2 or not all(map(str.isdecimal, numbers)) or not int(numbers[0]) < int(numbers[1]):
        raise argparse.ArgumentTypeError(f"{text!r}; want I/N with I from 0 to N - 1, such as 0/4")
    return slice(int(numbers[0]), None, int(numbers[1]))


def peer_name(text: str) -> str:
    """Returns package.module:function; the package must be installed, the function is imported later."""
    module, _, function = text.partition(":")
    if not (function.isidentifier() and all(map(str.isidentifier, module.split(".")))):
        raise argparse.ArgumentTypeError(f"{text!r}; want package.module:function")
    if not importlib.util.find_spec(package := module.partition(".")[0]):
        raise argparse.ArgumentTypeError(f"{text!r}; no package {package} is installed")
    return text
