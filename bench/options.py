"""Parser and argument types of the bench's commands.

A wrong argument ends the command with one line and status 2, before anything is measured.
"""

import argparse
import math
import os
from pathlib import Path
from typing import NoReturn, TypeVar

PICTURES = ".png", ".pdf", ".svg"
Built = TypeVar("Built")


class Parser(argparse.ArgumentParser):
    """Of `python -m bench COMMAND`; its description is the module's docstring."""

    def __init__(self, command: str, description: str):
        super().__init__(prog=f"python -m bench {command}".strip(), description=description,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")

    def built(self, build: type[Built], *args, **options) -> Built:
        """build(*args, **options); its ValueError is the command's."""
        try:
            return build(*args, **options)
        except ValueError as why:
            self.error(str(why))


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
    """A file that can be written; it is opened to find out, and not left behind if it is new."""
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
    """A folder that exists or can be made, and written to."""
    path = Path(text)
    above = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write into {text}: {above} is not a writable folder")
    return path
