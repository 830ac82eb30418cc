"""The data pipeline end to end, and under kill -9.  The long forms of test_pipeline.py, run by hand:

    python tests/pipeline.py set [--count 200]      generated videos, index, encode, both sources, two codecs
    python tests/pipeline.py kills [--count 30]     kill -9 at random points of index, encode and an epoch
"""

import argparse
import hashlib
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

import encoders  # noqa: E402
import numpy as np  # noqa: E402
import synthetic  # noqa: E402
import torch  # noqa: E402

from swiftvideo_fast.data.decode import Framing, PyAv  # noqa: E402
from swiftvideo_fast.data.encode import Job  # noqa: E402
from swiftvideo_fast.data.index import Index, index  # noqa: E402
from swiftvideo_fast.data.shards import ShardOptions, ShardSource  # noqa: E402
from swiftvideo_fast.data.videos import VideoOptions, VideoSource  # noqa: E402

FRAMING = Framing(frames=33, rate=16.0, width=64, height=64)


def job(table: Path, out: Path, codec=None, framing: Framing = FRAMING, **options) -> Job:
    return Job(Index(table), out, codec or encoders.toy(), framing, decode=PyAv(), **options)


def shards_of(folder: Path, codec=None, pixels: bool = False, **options) -> ShardSource:
    return ShardSource(ShardOptions(folder=str(folder), **options), codec or encoders.toy(), pixels=pixels)


def videos_of(table: Path, codec=None, pixels: bool = False, **options) -> VideoSource:
    framing = VideoOptions(index=str(table), **asdict(FRAMING), threads=2, **options)
    return VideoSource(framing, codec or encoders.toy(), pixels=pixels)


def check_rejects(videos: synthetic.Videos, rejects: dict) -> None:
    """Checks that exactly the bad files are rejected, each with its reason."""
    import re

    why = {str(place): reason for place, reason in rejects.items()}
    assert why.keys() == videos.bad.keys(), why.keys() ^ videos.bad.keys()
    for name, wanted in videos.bad.items():
        assert re.search(wanted, why[name]), f"{name}: {why[name]}; want {wanted}"


def check_frames(pixels_3THW: torch.Tensor, times: np.ndarray, start: int) -> None:
    """Checks that each frame is the source frame nearest to its time.  times: seconds, from the index."""
    frames = pixels_3THW.permute(1, 2, 3, 0).numpy()
    shown = np.array([synthetic.read_time(frame) for frame in frames]) / 1000
    wanted = times[start] + np.arange(len(shown)) / FRAMING.rate
    far = np.abs(times[:, None] - shown).min(0)
    assert far.max() < 0.001, f"no frame at {shown[far.argmax()]}"
    worse = np.abs(shown - wanted) - np.abs(times[:, None] - wanted).min(0)
    assert worse.max() < 0.002, f"{shown[worse.argmax()]} for {wanted[worse.argmax()]}"


def check_source(source, table: Index, captions: dict[str, str], batch: int, seed: int = 0) -> None:
    """Checks that an epoch has each clip once, with its caption and frames, and the next another order."""
    count = len(source)
    assert count == len(captions)
    orders = []
    for epoch in range(2):
        rows = []
        for position in range(epoch * count, (epoch + 1) * count, batch):
            size = min(batch, (epoch + 1) * count - position)
            drawn = source.draw(size, seed, position)
            for i in range(size):
                row, start = place_of(source, seed, position + i)
                place, video, caption = table[row]
                assert drawn.captions[i] == caption == captions[str(place)]
                if epoch == 0:
                    check_frames(drawn.pixels[i], video.times * float(video.tick), start)
                rows.append(str(place))
        assert Counter(rows) == Counter(captions.keys())
        orders.append(rows)
    assert orders[0] != orders[1]


def place_of(source, seed: int, position: int) -> tuple[int, int]:
    """Returns (index row, index of the window's first frame)."""
    from swiftvideo_fast.seeds import seed_of

    if isinstance(source, ShardSource):
        row = source.order.at(seed, position)
        return row.row, row.start
    epoch, row = source.at(seed, position)
    return row, seed_of(seed, "window", epoch, row) % source.framing.starts(source.index[row][1])


def run_set(folder: Path, count: int, **options) -> None:
    """Runs all checks of generated videos; AssertionError names the one that fails."""
    begin = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - begin:6.1f} s  {what}", flush=True)

    videos = synthetic.videos(folder / "set", count, **options)
    say(f"made {len(videos.good)} good, {len(videos.short)} short, {len(videos.bad)} bad")
    rows, rejects = index(videos.folder, videos.captions, folder / "index.parquet", workers=2)
    assert rows == len(videos.good) + len(videos.short)
    check_rejects(videos, rejects)
    table = Index(folder / "index.parquet")
    say(f"index: {rows} videos, {len(rejects)} left out, each for its reason")
    for codec in (encoders.toy(), encoders.tiny_wan()):
        name = codec.identity["codec"]
        work = job(table.path, folder / name, codec)
        work.write(range(work.shards), threads=2)
        assert [str(table[row][0]) for row in work.rejects] == list(videos.short)
        check_source(shards_of(folder / name, codec, pixels=True), table, videos.good, batch=8)
        say(f"{name}: encoded, and each good clip once an epoch from shards, with its caption and frames")
        if name == "toy":
            source = videos_of(table.path, codec, pixels=True)
            check_source(source, table, videos.good, batch=8)
            say("videos: the same")


def work(what: str, folder: Path, out: Path) -> None:
    """Runs or resumes one of the three kinds of work that are killed."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    if what == "index":
        index(folder / "set", folder / "set/captions.csv", out / "index.parquet")
    elif what == "encode":
        one = job(folder / "index.parquet", out, passes=3)
        one.write(range(one.shards), threads=1)
    else:
        epoch(folder / "shards", out / "seen.txt")


def epoch(shards: Path, seen: Path, batch: int = 2) -> None:
    """Draws two epochs, logging each batch; resumes after the last complete line."""
    source = shards_of(shards)
    raw = seen.read_bytes() if seen.exists() else b""
    whole = raw[:raw.rfind(b"\n") + 1]
    os.truncate(seen, len(whole)) if seen.exists() else None
    with seen.open("a") as lines:
        for position in range(batch * whole.count(b"\n"), 2 * len(source), batch):
            drawn = source.draw(batch, 0, position)
            digest = hashlib.sha256(drawn.x0.numpy().tobytes())
            digest.update(drawn.condition.text.float().numpy().tobytes())
            print(position, digest.hexdigest(), drawn.captions, file=lines, flush=True)


def prepare(folder: Path, count: int) -> synthetic.Videos:
    """Writes a small set of videos, its index and shards."""
    videos = synthetic.videos(folder / "set", count, seconds=2.6, long=12.0)
    index(folder / "set", folder / "set/captions.csv", folder / "index.parquet")
    one = job(folder / "index.parquet", folder / "shards", dtype="float32", passes=3)
    one.write(range(one.shards), threads=2)
    return videos


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def warm() -> multiprocessing.context.BaseContext:
    """Returns a forkserver context with all imports done, so that a kill hits the work."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline"])
    return context


def kill(folder: Path, what: str, times: int, seed: int) -> float:
    """Kills `what` `times` times, lets it finish, compares bytes; returns an uninterrupted run's seconds."""
    context = warm()

    def run(out: Path, seconds: float | None = None) -> int:
        process = context.Process(target=work, args=(what, folder, out))
        process.start()
        process.join(seconds)
        process.kill()
        process.join()
        return process.exitcode

    wanted, out = folder / f"{what}-wanted", folder / f"{what}-killed-{seed}"
    if not wanted.exists():
        run(folder / "warm")
        begin = time.monotonic()
        assert run(wanted) == 0
        (folder / f"{what}.seconds").write_text(str(time.monotonic() - begin))
    takes, draws, killed = float((folder / f"{what}.seconds").read_text()), random.Random(seed), 0
    while killed < times:
        if run(out, draws.uniform(0.1, 0.8) * takes) == 0:     # finished before the kill: start over
            for path in out.rglob("*"):
                path.unlink()
        else:
            killed += 1
    assert run(out) == 0
    assert contents(out) == contents(wanted), f"{what}: killed {times} times, other bytes"
    return takes


def run_kills(folder: Path, count: int) -> None:
    prepare(folder, 60)
    for what in ("index", "encode", "epoch"):
        for seed in range(max(1, count // 6)):
            takes = kill(folder, what, times=2, seed=seed)
        print(f"{what} ({takes:.2f} s): killed {2 * max(1, count // 6)} times, the same bytes", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("set", "kills"))
    parser.add_argument("--count", type=int, help="files (200), or kills (30)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if args.what == "set":
            run_set(Path(name), args.count or 200)
        else:
            run_kills(Path(name), args.count or 30)
