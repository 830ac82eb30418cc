"""Files and folders on disk that are whole or absent: written aside, synced, renamed; digests of them."""

import hashlib
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def atomic_write(target: Path | str) -> Generator[Path]:
    """A path to write a file or a folder at; it takes the place of `target` when the block ends well.

    Everything in it is on the disk before it gets its name.  When the block fails nothing of it stays, and
    what target was before does; a kill leaves at most aside_of(target), which the next write replaces.
    OSError names the target when the disk refuses.
    """
    target = Path(target)
    aside = aside_of(target)
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside / target.name
        for path in aside.rglob("*"):
            if path.is_file():
                path.chmod(aside.stat().st_mode & 0o666)        # as open() would; safetensors says 0600
            _sync(path)
        (aside / target.name).replace(target)
        _sync(target.parent)
    except (OSError, SafetensorError) as why:
        raise OSError(f"{target}: could not be written ({why}); make room, or choose another place") from why
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def digest(file: Path | str) -> str:
    """sha256 of a file's bytes."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def aside_of(target: Path) -> Path:
    """The hidden folder that holds `target`, and its writer's own temporary files, until it is whole."""
    return target.with_name(f".{target.name}.part")


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left in a folder."""
    for aside in folder.glob(aside_of(Path("*")).name):
        shutil.rmtree(aside)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
