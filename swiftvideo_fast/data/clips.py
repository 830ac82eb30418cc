"""Reading and writing whole clips: the demo's videos, and samples as H.264."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from torch import Tensor

from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.data.shots import open_video, packaged_clips, probe

DEMO_CAPTIONS = {
    "bikes": "a street with bicycles and cars",
    "bigbuckbunny": "a grey rabbit stretches on green grass",
    "carphone_pristine": "a man with a red tie talks in a car",
}


@dataclass(frozen=True)
class Clip:
    """frames: uint8 (T, H, W, 3), RGB.  fps: frames per second."""

    name: str
    caption: str
    fps: float
    frames: np.ndarray


def decode(path: Path | str, *, height: int) -> tuple[np.ndarray, float]:
    """Returns (frames uint8 (T, height, W, 3), fps), scaled to `height` with the aspect kept and W even.

    ValueError, naming the file, when it is missing, damaged or not a video.
    """
    file = probe(path)
    width = 2 * max(1, round(file.width * height / file.height / 2))
    with open_video(path) as (_, frames):
        pixels = [f.to_ndarray(format="rgb24", width=width, height=height) for f in frames]
    return np.stack(pixels), file.fps


@cache
def demo_clips(height: int = 72) -> tuple[Clip, ...]:
    """Returns the demo's three real clips, scaled to `height` rows; cached per process."""
    paths = packaged_clips(list(DEMO_CAPTIONS))
    decoded = ((p.stem, *decode(p, height=height)) for p in paths)
    return tuple(Clip(name, DEMO_CAPTIONS[name], fps, frames) for name, frames, fps in decoded)


def write_video(path: Path | str, clip_3THW: Tensor, fps: int = 25) -> None:
    """Writes a clip (3, T, H, W) in [-1, 1] as H.264, atomically.  ValueError unless H and W are even."""
    C, _, H, W = clip_3THW.shape
    if C != 3 or H % 2 or W % 2:
        raise ValueError(f"write_video: clip is {tuple(clip_3THW.shape)}; want (3, T, H, W), H and W even")
    write_frames(path, ((clip_3THW.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy(), fps)


def write_frames(path: Path | str, frames_THWC: np.ndarray, fps: int) -> None:
    """Writes uint8 (T, H, W, 3), H and W even, as H.264, atomically."""
    import av

    with atomic_write(path) as tmp, av.open(str(tmp), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "12"})
        _, stream.height, stream.width, _ = frames_THWC.shape
        stream.pix_fmt = "yuv420p"
        for frame in frames_THWC:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
