"""Decodes a window of a video: frames selected by time stamp, cropped and resized to one size.

Layout of a window: uint8 (3, T, H, W).  Its frames are those nearest to start, start + 1/rate, ..., for any
constant or varying frame rate of the file.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from swiftvideo_fast.data import files
from swiftvideo_fast.data.files import Place
from swiftvideo_fast.data.probe import Video

log = logging.getLogger(__name__)
DECODERS = "auto", "pyav", "dali"
RESIZE = "centre crop to the aspect, then bicubic with antialias"
SMOOTH = 2 | 0x2000 | 0x40000       # swscale: bilinear, chroma interpolated, accurate rounding; DALI's flags


@dataclass(frozen=True)
class Framing:
    """The format of a window: `frames` frames at `rate` per second, width x height pixels."""

    frames: int = 61
    rate: float = 16.0
    width: int = 832
    height: int = 480

    def __post_init__(self):
        if self.frames < 2 or self.rate <= 0 or self.width < 1 or self.height < 1:
            raise ValueError(f"Framing: {self.frames} frames at {self.rate}, {self.width}x{self.height}; "
                             "want 2 frames or more, the rest positive")

    @property
    def seconds(self) -> float:
        """The minimum length of a video, first to last frame; half a frame may be missing."""
        return float(self._span)

    def fits(self, seconds: np.ndarray) -> np.ndarray:
        """Returns a mask of videos, by their lengths in seconds, that contain a window (starts() > 0)."""
        return seconds > self.seconds + 1e-9

    @property
    def _rate(self) -> Fraction:
        return Fraction(self.rate).limit_denominator(1000)

    @property
    def _span(self) -> Fraction:
        return Fraction(2 * self.frames - 3, 2) / self._rate

    def starts(self, video: Video) -> int:
        """Returns the number of frames, from the first, at which a window may start; 0 if too short."""
        last = int(video.times[-1]) - ceil(self._span / video.tick)
        return int(np.searchsorted(video.times, last, side="right"))

    def choose(self, video: Video, start: int) -> np.ndarray:
        """Returns indices of the frames nearest to times[start] + k / rate, ties to the earlier."""
        rate, tick = self._rate, video.tick
        times = (video.times - video.times[0]) * (tick.numerator * rate.numerator)
        step = rate.denominator * tick.denominator              # integer arithmetic: ties are exact
        wanted = times[start] + step * np.arange(self.frames)
        after = np.searchsorted(times, wanted).clip(1, len(times) - 1)
        return np.where(wanted - times[after - 1] <= times[after] - wanted, after - 1, after)


class Decoder(Protocol):
    """A thread-safe video decoder.  name: identifies its pixels in manifests."""

    name: str

    def window(self, folder: Path, place: Place, video: Video, indices: np.ndarray,
               framing: Framing) -> Tensor:
        """Returns a window, uint8 (3, T, H, W).  ValueError when the file no longer has these frames."""


def decoder(which: str, device: torch.device | str = "cpu") -> Decoder:
    """Returns a decoder by name; auto is DALI (NVDEC) on a GPU if installed, else PyAV."""
    if which not in DECODERS:
        raise ValueError(f"decoder is {which!r}; want one of {', '.join(DECODERS)}")
    from swiftvideo_fast.data import dali

    on_gpu = torch.device(device).type == "cuda"
    if which == "dali" or which == "auto" and on_gpu and dali.installed():
        return dali.Dali(torch.device(device))
    return PyAv()


class PyAv:
    """FFmpeg on the CPU, one thread per window.

    smooth: interpolates chroma, as DALI does, at twelve times the cost of the conversion (1.3 ms against
    0.11 ms for a frame of 832x480, a third of its decoding; one core of a shared CPU, November 2026).
    """

    def __init__(self, smooth: bool = False):
        self.smooth = smooth
        self.name = "pyav" + (", smooth chroma" if smooth else "")
        self._log_once = LogOnce()

    def window(self, folder: Path, place: Place, video: Video, indices: np.ndarray,
               framing: Framing) -> Tensor:
        import av

        self._log_once(self.name, video.codec)
        wanted = {}
        for slot, time in enumerate(video.times[indices].tolist()):
            wanted.setdefault(time, []).append(slot)
        shape = len(indices), framing.height, framing.width, 3
        out = torch.from_numpy(np.empty(shape, np.uint8))       # numpy allocates huge pages, torch does not
        scaler = av.video.reformatter.VideoReformatter()        # frame.reformat would start threads

        def take(frame: "av.VideoFrame") -> None:
            flags = SMOOTH if self.smooth else None
            rgb = scaler.reformat(frame, format="rgb24", interpolation=flags, threads=1).to_ndarray()
            fitted = fit(torch.from_numpy(rgb)[None], video, framing)[0]
            for slot in wanted.pop(frame.pts):
                out[slot].copy_(fitted)

        try:
            with av.open(_opened(files.open_file(folder, place))) as container:
                _visit(container, sorted(wanted), video, take)
        except (av.error.FFmpegError, OSError) as why:
            raise ValueError(f"{place}: no longer decodes ({why}); index the folder again") from why
        if wanted:
            raise ValueError(f"{place}: {len(wanted)} indexed frames are missing, the first at "
                             f"{float(min(wanted) * video.tick):.2f} s; index the folder again")
        return out.permute(3, 0, 1, 2)


def _opened(source) -> object:
    return str(source) if isinstance(source, Path) else source


def _visit(container, times: list[int], video: Video, take: Callable) -> None:
    """Calls take(frame) for each frame at one of `times` (sorted), decoding from the keyframe before them.

    A seek may land on a keyframe displayed after the first wanted frame (B-frames of an open GOP precede it
    in display order and need the previous GOP); then it seeks further back.
    """
    stream = next(s for s in container.streams.video if s.codec_context is not None and s.codec_context.width)
    stream.thread_type = "NONE"
    left, back = set(times), 0
    while left:
        target = times[0] - back
        from_start = target <= int(video.times[0])
        if from_start:
            container.seek(min(0, int(video.times[0])), stream=stream) if back else None
        else:
            container.seek(target, stream=stream)
        anchored = from_start
        for frame in container.decode(stream):
            anchored |= bool(frame.key_frame) and frame.pts is not None and frame.pts <= times[0]
            if not anchored and frame.pts is not None and frame.pts >= times[0]:
                break
            if anchored and frame.pts in left:
                left.discard(frame.pts)
                take(frame)
                if not left:
                    return
        if from_start:
            return
        back = max(2 * back, round(1 / video.tick))


def fit(frames_THWC: Tensor, video: Video, framing: Framing) -> Tensor:
    """Rotates frames upright, centre-crops to the framing's aspect, and resizes.  uint8, any device."""
    x = torch.rot90(frames_THWC, round(video.rotation / 90), (1, 2)) if video.rotation else frames_THWC
    aspect = video.aspect if round(video.rotation / 90) % 2 == 0 else 1 / video.aspect
    H, W = x.shape[1:3]
    scale = max(framing.height / H, framing.width / (W * aspect))
    h, w = min(H, round(framing.height / scale)), min(W, round(framing.width / (scale * aspect)))
    top, left = (H - h) // 2, (W - w) // 2
    x = x[:, top:top + h, left:left + w]
    if (h, w) == (framing.height, framing.width):
        return x
    x = x.permute(0, 3, 1, 2)
    x = x if x.device.type == "cpu" else x.float()          # torch resizes bytes on the CPU only
    x = F.interpolate(x, (framing.height, framing.width), mode="bicubic", antialias=True)
    return (x if x.dtype == torch.uint8 else x.round_().clamp_(0, 255).byte()).permute(0, 2, 3, 1)


class LogOnce:
    """Logs, once per codec, which decoder decodes it."""

    def __init__(self):
        self.codecs, self.lock = set(), threading.Lock()

    def __call__(self, name: str, codec: str) -> None:
        with self.lock:
            if codec not in self.codecs:
                self.codecs.add(codec)
                log.info("decoding %s with %s", codec, name)
