"""The configs and the demo's weights that come with the package, found by name from any folder.

A path that exists is taken as it is.  Else `demo/ccd.yaml` and `configs/demo/ccd.yaml` both name the file
that a wheel carries in swiftvideo_fast/configs, and a checkout in configs.
"""

import os
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
WHEELS, CHECKOUTS = PACKAGE / "configs", PACKAGE.parent / "configs"
FOLDER = (WHEELS if WHEELS.is_dir() else CHECKOUTS).resolve()


def find(path: Path | str) -> Path | None:
    """The file, the shipped one of that name, or None."""
    path = Path(path)
    if os.path.exists(path):            # which is False, and no error, for a name too long for the disk
        return path
    inside = FOLDER.joinpath(*path.parts[path.parts[:1] == (FOLDER.name,):])
    return inside if os.path.isfile(inside) and FOLDER in inside.resolve().parents else None


def configs() -> list[str]:
    """Names of the shipped configs."""
    return sorted(str(file.relative_to(FOLDER)) for file in FOLDER.rglob("*.yaml"))
