"""Probes a video file by decoding it completely: format, time stamps of frames, or why it is rejected.

Every frame is decoded, because headers are unreliable: a truncated download, a damaged middle or a varying
frame rate shows only in the frames.  Reading the file takes about as long as decoding it.
"""

import io
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

SLACK = 0.1     # seconds, or fraction of the duration, by which streams may end before the header's duration
EVEN = 0.05     # relative deviation of frame intervals from their median at a constant frame rate


@dataclass(frozen=True)
class Video:
    """Format and time stamps of a video file, as the decoders and the index need them.

    width, height: as stored, before rotating by `rotation` degrees counter-clockwise.  aspect: of a stored
    pixel.  matrix: FFmpeg's number of the YUV matrix.  full: luma from 0 to 255 (else 16 to 235).
    times: time stamps in display order, in ticks of `tick` seconds.
    """

    codec: str
    pixels: str
    width: int
    height: int
    rotation: int
    aspect: float
    matrix: int
    full: bool
    tick: Fraction
    times: np.ndarray = field(repr=False)

    @property
    def seconds(self) -> float:
        """Seconds from the first frame to the last."""
        return float((self.times[-1] - self.times[0]) * self.tick)

    @property
    def fps(self) -> float:
        return (len(self.times) - 1) / self.seconds

    @property
    def vfr(self) -> bool:
        """Whether the frame rate varies by more than the rounding to ticks."""
        gaps = np.diff(self.times)
        middle = np.median(gaps)
        return bool(np.abs(gaps - middle).max() > max(1, EVEN * middle))

    def as_dict(self) -> dict:
        """Returns plain numbers and strings; the inverse of `of`."""
        return asdict(self) | {"tick": [self.tick.numerator, self.tick.denominator],
                               "times": [int(self.times[0]), *np.diff(self.times).tolist()]}

    @classmethod
    def of(cls, values: dict) -> "Video":
        return cls(**values | {"tick": Fraction(*values["tick"]), "times": np.cumsum(values["times"])})


def probe(source: Path | io.BytesIO) -> Video:
    """Returns the file's Video.  ValueError, with the reason, when not a video, damaged or truncated."""
    import av

    size = source.stat().st_size if isinstance(source, Path) else len(source.getbuffer())
    if not size:
        raise ValueError("empty file")
    try:
        with av.open(str(source) if isinstance(source, Path) else source) as container:
            return _decoded(container)
    except av.error.FFmpegError as why:
        raise ValueError(f"not a video, or a damaged one ({why.strerror})") from why


def _decoded(container) -> Video:
    import av

    videos = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not videos:
        raise ValueError("no video stream" + (", only sound" if container.streams.audio else ""))
    stream = videos[0]
    stream.thread_type = "NONE"
    times, first, ends = [], None, 0.0
    try:
        for packet in container.demux():
            if packet.pts is not None:
                ends = max(ends, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not stream:
                continue
            for frame in packet.decode():
                first = first or frame
                at = frame.time if frame.pts is not None else len(times)
                if frame.is_corrupt:
                    raise ValueError(f"damaged or truncated: the frame at {at:.2f} s is incomplete")
                if frame.pts is None:
                    raise ValueError("frames without time stamps; remux it: ffmpeg -i IN -c copy OUT.mp4")
                if (frame.width, frame.height, frame.format.name) != _kind(first):
                    raise ValueError(f"its frames change size or format at {at:.2f} s")
                times.append(frame.pts)
    except av.error.FFmpegError as why:
        done = f"after {len(times)} frames" if times else "before its first frame"
        raise ValueError(f"damaged or truncated: decoding fails {done} ({why.strerror})") from why
    if not times:
        raise ValueError("no frame decodes")
    whole = container.duration / av.time_base if container.duration else 0.0
    start = container.start_time / av.time_base if container.start_time else 0.0
    if ends - start < whole - max(SLACK, 0.1 * whole):
        raise ValueError(f"truncated: {ends - start:.2f} s of {whole:.2f} s, {len(times)} frames")
    if len(set(times)) < 2:
        raise ValueError("one frame only: a picture")
    return Video(stream.codec_context.codec.canonical_name, first.format.name, first.width, first.height,
                 round(first.rotation), float(stream.sample_aspect_ratio or 1), int(first.colorspace),
                 int(first.color_range) == int(av.video.reformatter.ColorRange.JPEG), stream.time_base,
                 np.unique(np.array(times, np.int64)))


def _kind(frame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name
