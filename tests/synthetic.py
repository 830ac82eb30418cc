"""Generates good and bad video files, with each frame's time encoded in its pixels.

    python tests/synthetic.py FOLDER [COUNT]         writes the files and captions.csv

A frame is a board of black and white squares: the bits of its time in milliseconds.  `read_time` decodes it
after any codec, resize and square crop.
"""

import csv
import os
import struct
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

os.environ.setdefault("SVT_LOG", "0")  # silences SVT-AV1 on stderr
BITS, ROWS, COLUMNS = 20, 4, 5          # milliseconds up to 17 minutes
CODECS = {                              # encoder: (suffix, options for speed)
    "libx264": (".mp4", {"preset": "veryfast", "x264-params": "threads=1:open-gop=1"}),
    "libvpx-vp9": (".webm", {"deadline": "realtime", "cpu-used": "8", "threads": "1"}),
    "libx265": (".mp4", {"preset": "ultrafast",
                         "x265-params": "log-level=none:pools=1:frame-threads=1:bframes=3"}),
    "libsvtav1": (".mp4", {"preset": "11", "crf": "20", "svtav1-params": "lp=1"}),
    "mpeg4": (".avi", {"bf": "0"}),
}
CAPTIONS = [
    "a cat sits on a wall", "a red car, a blue car, and a bus", 'she says "good morning" and waves',
    "first line\nsecond line", "雪の中を走る犬", "Öäü, naïve café", "собака бежит по снегу",
    "a cat sits on a wall",
]


@dataclass(frozen=True)
class Videos:
    """good: {path: caption}.  bad: {path: part of the reason}.  short: valid, but shorter than a window."""

    folder: Path
    captions: Path
    good: dict[str, str]
    bad: dict[str, str]
    short: dict[str, str]


def board(milliseconds: int, width: int, height: int) -> np.ndarray:
    """Returns uint8 (height, width, 3) with a board in the middle 3/4 of the largest centred square.

    Red, green and blue differ.
    """
    picture = np.full((height, width, 3), 128, np.uint8)
    side = 3 * min(width, height) // 4
    y, x = np.mgrid[:side, :side]
    bits = np.array([(milliseconds >> i) & 1 for i in range(BITS)])
    grey = np.where(bits[y * ROWS // side * COLUMNS + x * COLUMNS // side], 215, 40)
    top, left = (height - side) // 2, (width - side) // 2
    picture[top:top + side, left:left + side] = np.stack([grey, grey - 20, grey + 20], -1)
    return picture


def read_time(frame_HWC: np.ndarray) -> int:
    """Returns the milliseconds encoded in a square frame."""
    size = len(frame_HWC)
    total = 0
    for i in range(BITS):
        y, x = (int(size * (1 / 8 + 3 / 4 * (place + 0.5) / places))
                for place, places in ((i // COLUMNS, ROWS), (i % COLUMNS, COLUMNS)))
        total |= int(frame_HWC[y - 1:y + 2, x - 1:x + 2].mean() > 128) << i
    return total


def write_video(path: Path, encoder: str, seconds: list[float], *, width: int = 80, height: int = 64,
                sound: bool = False, quarter_turns: int = 0, **options: str) -> Path:
    """Writes a video with these frame times.  quarter_turns: stored rotated, rotation in the header."""
    tick = Fraction(1, 1000)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as file:
        rate = round((len(seconds) - 1) / (seconds[-1] - seconds[0]))
        stream = file.add_stream(encoder, rate=rate, options=CODECS[encoder][1] | {"g": "24"})
        stream.width, stream.height = (height, width) if quarter_turns % 2 else (width, height)
        stream.pix_fmt = "yuv420p"
        if encoder != "libsvtav1":
            stream.bit_rate = 1_000_000
        if encoder != "mpeg4":
            stream.codec_context.time_base = tick
        audio = file.add_stream("aac", rate=44100) if sound else None
        for number, second in enumerate(seconds):
            picture = np.rot90(board(round(1000 * second), width, height), -quarter_turns)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = (number, Fraction(1, rate)) if encoder == "mpeg4" else (
                round(1000 * second), tick)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if sound:
            file.mux(audio.encode(_silence(round(44100 * seconds[-1]))))
            file.mux(audio.encode())
    if quarter_turns:
        turn(path, quarter_turns)
    return path


def turn(path: Path, quarter_turns: int) -> None:
    """Sets a counter-clockwise rotation in an mp4's track header."""
    raw = bytearray(path.read_bytes())
    at = raw.index(b"tkhd") + 4 + 40
    a, b = [(1, 0), (0, -1), (-1, 0), (0, 1)][quarter_turns % 4]
    raw[at:at + 36] = struct.pack(">9i", a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(raw)


def _silence(samples: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts = 44100, 0
    return frame


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=44100)
        file.mux(stream.encode(_silence(44100)))
        file.mux(stream.encode())
    return path


def constant(fps: float, frames: int) -> list[float]:
    return [i / fps for i in range(frames)]


def varying(seed: int, seconds: float) -> list[float]:
    """Returns frame times in whole milliseconds, with gaps of 15 to 120 ms."""
    rng = np.random.default_rng(seed)
    gaps = rng.integers(15, 120, int(seconds / 0.05))
    times = np.concatenate([[0], gaps.cumsum()]) / 1000
    return times[times <= seconds].tolist()


def videos(folder: Path, count: int = 200, seconds: float = 4.6, long: float = 480.0) -> Videos:
    """Writes `count` files, at least 24.  Good ones last at least `seconds`."""
    folder.mkdir(parents=True, exist_ok=True)
    good, bad, short = {}, {}, {}
    encoders = list(CODECS)

    def path(name: str) -> Path:
        return folder / name

    def caption(number: int) -> str:
        return CAPTIONS[number % len(CAPTIONS)] + ("" if number < 2 * len(CAPTIONS) else f" {number // 3}")

    special = {
        "wide é.mp4": lambda p: write_video(p, "libx264", constant(25, int(25 * seconds) + 1),
                                            width=126, height=62),
        "portrait.mp4": lambda p: write_video(p, "libx264", constant(24, int(24 * seconds) + 1),
                                              width=64, height=80, quarter_turns=1),
        "portrait 2.mp4": lambda p: write_video(p, "libx265", constant(30, int(30 * seconds) + 1),
                                                width=64, height=80, quarter_turns=3),
        "long.avi": lambda p: write_video(p, "mpeg4", constant(24, int(24 * long))),
        "twin/a.mp4": lambda p: write_video(p, "libx264", constant(24, int(24 * seconds) + 1), sound=True),
        "other/twin/a.mp4": lambda p: write_video(p, "libx264", constant(30, int(30 * seconds) + 1)),
    }
    for number, (name, make) in enumerate(special.items()):
        make(path(name))
        good[name] = caption(number)
    write_video(path("twelve frames.mp4"), "libx264", constant(24, 12))
    short["twelve frames.mp4"] = "short"

    cut = [("cut-0.mp4", "libx264", {}), ("cut-1.mp4", "libx264", {"movflags": "faststart"}),
           ("cut-2.webm", "libvpx-vp9", {}), ("cut-3.mp4", "libx265", {"movflags": "faststart"}),
           ("cut-4.avi", "mpeg4", {})]
    for name, encoder, options in cut:
        write_video(path(name), encoder, constant(24, 100), **options)
        raw = path(name).read_bytes()
        path(name).write_bytes(raw[:len(raw) * 2 // 3])
        bad[name] = "truncated|damaged"
    for number in range(3):
        path(f"empty-{number}.mp4").write_bytes(b"")
        bad[f"empty-{number}.mp4"] = "empty file"
    path("letter.mp4").write_text("Dear all,\nthis is no video.\n" * 40)
    path("noise.webm").write_bytes(np.random.default_rng(0).bytes(5000))
    write_sound(path("sound.mp4"))
    bad |= {"letter.mp4": "not a video|no video stream", "noise.webm": "not a video",
            "sound.mp4": "only sound"}
    write_video(path("untold.mp4"), "libx264", constant(24, 30))
    bad["untold.mp4"] = "no caption"

    for number in range(count - len(good) - len(bad) - len(short)):
        encoder = encoders[number % len(encoders)]
        suffix, _ = CODECS[encoder]
        vfr = number % 3 == 1 and encoder != "mpeg4"
        times = varying(number, seconds + 0.3) if vfr else constant((24, 25, 30, 16)[number % 4], int(
            (24, 25, 30, 16)[number % 4] * seconds) + 2)
        size = [(80, 64), (98, 66), (64, 64), (120, 64)][number % 4]
        name = f"clips/{number:03d}-{'vfr' if vfr else 'cfr'}{suffix}"
        write_video(path(name), encoder, times, width=size[0], height=size[1])
        good[name] = caption(number)

    told = good | short | {name: f"a caption of {name}" for name in bad if name != "untold.mp4"}
    captions = folder / "captions.csv"
    with captions.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow("video,caption,aesthetic score,motion score,temporal consistency score,camera motion,"
                        "frame,fps,seconds".split(","))
        for name, text in told.items():
            writer.writerow([name, text, 5.1, 2.0, 0.99, "static", 100, 24.0, 4.2])
    return Videos(folder, captions, good, bad, short)


if __name__ == "__main__":
    made = videos(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    print(f"{made.folder}: {len(made.good)} good, {len(made.short)} short, {len(made.bad)} bad")
