"""Atomic writes of files and folders (temporary path, fsync, rename), and their digests."""

import hashlib
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def atomic_write(target: Path | str) -> Generator[Path]:
    """Yields a temporary path for a file or folder, which replaces `target` when the block succeeds.

    The content is synced before the rename.  On an error the temporary path is removed and target is
    unchanged.  A kill leaves at most temporary_of(target), which the next write removes.  OSError, naming
    the target, on a failed write.
    """
    target = Path(target)
    tmp = temporary_of(target)
    try:
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir(parents=True)
        yield tmp / target.name
        for path in tmp.rglob("*"):
            if path.is_file():
                path.chmod(tmp.stat().st_mode & 0o666)        # as open() would; safetensors says 0600
            _sync(path)
        (tmp / target.name).replace(target)
        _sync(target.parent)
    except (OSError, SafetensorError) as why:
        raise OSError(f"{target}: could not be written ({why}); free disk space, or choose another "
                      "place") from why
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def digest(file: Path | str) -> str:
    """Returns the sha256 of a file's bytes."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def temporary_of(target: Path) -> Path:
    """Returns the hidden folder that holds `target` and its writer's temporary files until the rename."""
    return target.with_name(f".{target.name}.part")


def sweep(folder: Path) -> None:
    """Removes temporary folders that killed writers left in `folder`."""
    for tmp in folder.glob(temporary_of(Path("*")).name):
        shutil.rmtree(tmp)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
