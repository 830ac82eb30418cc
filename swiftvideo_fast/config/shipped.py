"""Lookup of shipped configs and demo weights by name, from any folder.

A path that exists is used as it is.  Otherwise `demo/ccd.yaml` and `configs/demo/ccd.yaml` both name the
shipped file, in swiftvideo_fast/configs of a wheel or configs of a checkout.
"""

import os
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
WHEELS, CHECKOUTS = PACKAGE / "configs", PACKAGE.parent / "configs"
FOLDER = (WHEELS if WHEELS.is_dir() else CHECKOUTS).resolve()


def find(path: Path | str) -> Path | None:
    """Returns the path if it exists, else the shipped file of that name, else None."""
    path = Path(path)
    if os.path.exists(path):            # False, not an error, for names too long for the file system
        return path
    inside = FOLDER.joinpath(*path.parts[path.parts[:1] == (FOLDER.name,):])
    return inside if os.path.isfile(inside) and FOLDER in inside.resolve().parents else None


def configs() -> list[str]:
    """Returns the names of the shipped configs."""
    return sorted(str(file.relative_to(FOLDER)) for file in FOLDER.rglob("*.yaml"))
