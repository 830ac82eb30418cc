"""swiftvideo index: a folder of videos and a csv of captions to one table of usable videos.

    index.parquet           one row per video: location, caption, format, time stamp of each frame
    index.rejects.csv       rejected videos with the reason
    index.parquet.journal   while running: one line per probed file, to resume after an interruption

The table depends on the files and the csv alone, not on process order or interruptions.
"""

import argparse
import csv
import hashlib
import json
import logging
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.config.arguments import positive
from swiftvideo_fast.config.strict import want
from swiftvideo_fast.data import captions, files
from swiftvideo_fast.data.files import Place
from swiftvideo_fast.data.probe import Video, probe

if TYPE_CHECKING:
    import pyarrow

log = logging.getLogger(__name__)
CRASHED = "the decoder crashes on it"


class Index:
    """A finished index, memory-mapped.  ValueError when the file is damaged, not an index, or empty."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not self.path.exists():
            raise ValueError(f"{path}: no such file; write an index with `swiftvideo index`")
        parquet = _parquet()
        from pyarrow import ArrowException

        try:
            self.table = parquet.read_table(self.path, memory_map=True)
            about = {key.decode(): value.decode() for key, value in self.table.schema.metadata.items()}
            self.folder = self.path.parent / about["folder"]
            if "sha256" in about and about["sha256"] != _digest(self.table, about["folder"]):
                raise ValueError("its rows differ from those written")
        except (ArrowException, OSError, AttributeError, KeyError, TypeError, ValueError) as why:
            why = " ".join(str(why).split())
            raise ValueError(f"{path}: not an index ({why}); write one with `swiftvideo index`") from None
        if not len(self.table):
            raise ValueError(f"{path}: lists no video; see {rejects_of(self.path)}")

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> tuple[Place, Video, str]:
        """Returns (place, video, caption)."""
        values, = self.table.slice(row, 1).to_pylist()
        place, caption = Place(values.pop("archive"), values.pop("path")), values.pop("caption")
        for derived in ("frames", "fps", "vfr", "seconds"):
            del values[derived]
        return place, Video.of(values), caption

    @cached_property
    def seconds(self) -> np.ndarray:
        """Length of each video, first to last frame."""
        return self.table["seconds"].to_numpy()

    @cached_property
    def captions(self) -> list[str]:
        return self.table["caption"].to_pylist()

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="videos, in folders and (split) zip archives")
    parser.add_argument("--captions", type=Path, required=True, metavar="CSV",
                        help="columns video and caption, as in OpenVid-1M.csv")
    parser.add_argument("--out", type=Path, required=True, metavar="PARQUET", help="the index to write")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1,
                        help="processes (default: all cores)")


def run(args: argparse.Namespace) -> None:
    want(args.out.suffix == ".parquet", "--out", args.out, "a name that ends in .parquet")
    rows, rejects = index(args.folder, args.captions, args.out, args.workers)
    see = f", see {rejects_of(args.out)}" if rejects else ""
    print(f"{args.out}: {rows} videos; {len(rejects)} left out{see}")
    kinds = Counter(why.split("(")[0].split(":")[0].strip() for why in rejects.values())
    for reason, count in kinds.most_common(9):
        print(f"{count:8}  {reason}")


def index(folder: Path, csv_file: Path, out: Path, workers: int = 1) -> tuple[int, dict[Place, str]]:
    """Writes the index; returns (number of videos, {rejected: reason}).  Resumes an interrupted call.

    ValueError without the folder or the csv.
    """
    _parquet()
    if not csv_file.is_file():
        raise ValueError(f"{csv_file}: no such file; want a csv with the columns video and caption")
    found, rejects = files.walk(folder)
    texts, unmatched = captions.match(found, captions.read(csv_file), csv_file.name)
    rejects |= unmatched
    journal = out.with_name(f"{out.name}.journal")
    out.parent.mkdir(parents=True, exist_ok=True)
    done = _read_journal(journal, found)
    todo = [place for place in texts if place not in done]
    with journal.open("a", encoding="utf-8") as lines:
        shown = tqdm(_probed(folder, todo, workers), "index", len(texts), initial=len(texts) - len(todo),
                     unit=" files", mininterval=1)
        for place, result in shown:
            line = {"archive": place.archive, "path": place.path, "bytes": found[place]} | result
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            done[place] = result
    rows = {place: done[place]["video"] for place in texts if "video" in done[place]}
    rejects |= {place: done[place]["reason"] for place in texts if "reason" in done[place]}
    rejects = dict(sorted(rejects.items()))
    write_rejects(rejects_of(out), rejects)
    _write(out, folder, {place: (rows[place], texts[place], found[place]) for place in sorted(rows)})
    journal.unlink()
    return len(rows), rejects


def rejects_of(out: Path) -> Path:
    return out.with_suffix(".rejects.csv")


def write_rejects(path: Path, rejects: dict[Place, str]) -> None:
    """Writes a csv of files and reasons, atomically."""
    with atomic_write(path) as tmp, tmp.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "reason"])
        table.writerows([str(place), why] for place, why in rejects.items())


def _probe(folder: Path, place: Place) -> dict:
    """Returns {"video": ...} or {"reason": ...}."""
    try:
        return {"video": probe(files.open_file(folder, place)).as_dict()}
    except (ValueError, OSError) as why:
        return {"reason": str(why)}


def _probed(folder: Path, places: list[Place], workers: int) -> Iterator[tuple[Place, dict]]:
    """Yields (place, result) in completion order.  Survives files that crash their worker process."""
    if workers < 2 or len(places) < 2:
        yield from ((place, _probe(folder, place)) for place in places)
        return
    context = multiprocessing.get_context("forkserver")     # a fork would share the archives' file offsets
    context.set_forkserver_preload([__name__])
    left = iter(places)
    while True:
        running = {}
        try:
            with ProcessPoolExecutor(workers, context) as pool:
                while True:
                    taken = islice(left, 4 * workers - len(running))
                    running |= {pool.submit(_probe, folder, place): place for place in taken}
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        yield running.pop(future), result
        except BrokenProcessPool:
            for place in running.values():
                yield place, _probe_isolated(context, folder, place)


def _probe_isolated(context, folder: Path, place: Place) -> dict:
    try:
        with ProcessPoolExecutor(1, context) as pool:
            return pool.submit(_probe, folder, place).result()
    except BrokenProcessPool:
        return {"reason": CRASHED}


def _read_journal(path: Path, found: dict[Place, int]) -> dict[Place, dict]:
    """Returns the journal's results of files with unchanged size; truncates an incomplete last line."""
    done, good = {}, 0
    if path.exists():
        with path.open("rb") as lines:
            for raw in lines:
                if not raw.endswith(b"\n"):
                    break
                good += len(raw)
                line = json.loads(raw)
                place = Place(line.pop("archive"), line.pop("path"))
                if line.pop("bytes") == found.get(place):
                    done[place] = line
        os.truncate(path, good)
        log.info("%s: resuming after %d files", path, len(done))
    return done


def _write(out: Path, folder: Path, rows: dict[Place, tuple[dict, str, int]]) -> None:
    import pyarrow as pa

    videos = [Video.of(values) for values, _, _ in rows.values()]
    ticks = pa.list_(pa.int64())

    def column(kind, values) -> "pyarrow.Array":
        return pa.array(list(values), kind)

    columns = {
        "archive": column(pa.string(), (place.archive for place in rows)),
        "path": column(pa.string(), (place.path for place in rows)),
        "caption": column(pa.string(), (caption for _, caption, _ in rows.values())),
        "codec": column(pa.string(), (v.codec for v in videos)),
        "pixels": column(pa.string(), (v.pixels for v in videos)),
        "width": column(pa.int32(), (v.width for v in videos)),
        "height": column(pa.int32(), (v.height for v in videos)),
        "rotation": column(pa.int32(), (v.rotation for v in videos)),
        "aspect": column(pa.float64(), (v.aspect for v in videos)),
        "matrix": column(pa.int32(), (v.matrix for v in videos)),
        "full": column(pa.bool_(), (v.full for v in videos)),
        "frames": column(pa.int64(), (len(v.times) for v in videos)),
        "fps": column(pa.float64(), (v.fps for v in videos)),
        "vfr": column(pa.bool_(), (v.vfr for v in videos)),
        "seconds": column(pa.float64(), (v.seconds for v in videos)),
        "tick": column(ticks, ([v.tick.numerator, v.tick.denominator] for v in videos)),
        "times": column(ticks, (values["times"] for values, _, _ in rows.values())),     # first, then steps
    }
    table, place = pa.table(columns), os.path.relpath(folder, out.parent)
    table = table.replace_schema_metadata({"folder": place, "sha256": _digest(table, place)})
    with atomic_write(out) as tmp:
        _parquet().write_table(table, tmp, compression="zstd", row_group_size=65536)


def _digest(table: "pyarrow.Table", folder: str) -> str:
    """Returns the sha256 of the rows' values and the folder, independent of chunking."""
    from pyarrow import compute, types

    found = hashlib.sha256(f"{folder} {len(table)} {table.column_names}".encode())
    for column in table.columns:
        kind = column.type.value_type if types.is_list(column.type) else column.type
        found.update(str(kind).encode())                        # list types change when written
        if types.is_string(column.type):
            found.update(compute.binary_length(column).to_numpy().tobytes())
            found.update("".join(column.to_pylist()).encode())
        elif types.is_list(column.type):
            found.update(compute.list_value_length(column).to_numpy().tobytes())
            found.update(compute.list_flatten(column).to_numpy().tobytes())
        else:
            found.update(column.to_numpy().tobytes())
    return found.hexdigest()


def _parquet():
    try:
        from pyarrow import parquet
    except ImportError as why:
        raise ImportError("an index is a parquet file: pip install 'swiftvideo_fast[data]'") from why
    return parquet
