"""The video files of a folder, including those inside zip archives.

Split archives (OpenVid_part73_partaa, _partab, ...) are read in place as one OpenVid_part73.zip.
"""

import io
import re
import threading
import zipfile
import zlib
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

PART = re.compile(r"(.+)_part([a-z]{2,})")
IGNORED = {".csv", ".parquet", ".journal", ".md", ".json"}      # suffixes of files that are not videos


@dataclass(frozen=True, order=True)
class Place:
    """The location of a file.  archive: its zip file, or "".  Paths are relative to the folder."""

    archive: str
    path: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.path}" if self.archive else self.path


def walk(folder: Path) -> tuple[dict[Place, int], dict[Place, str]]:
    """Returns ({file: bytes}, {archive: why it cannot be read}), by path.  ValueError without a folder."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; want the folder that holds the videos")
    found, unread, archives = {}, {}, set()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_dir() or any(part.startswith(".") for part in inside.parts):
            continue
        if path.suffix == ".zip":
            archives.add(inside.as_posix())
        elif part := PART.fullmatch(path.name):
            archives.add((inside.parent / f"{part[1]}.zip").as_posix())
        elif path.suffix not in IGNORED:
            found[Place("", inside.as_posix())] = path.stat().st_size
    for archive in sorted(archives):
        try:
            members = open_archive(folder, archive).infolist()
        except (ValueError, OSError, NotImplementedError, zipfile.BadZipFile) as why:
            unread[Place("", archive)] = f"archive: {why}"
            continue
        for member in members:
            hidden = any(part.startswith((".", "__MACOSX")) for part in member.filename.split("/"))
            named = member.filename and not member.is_dir() and not hidden
            if named and Path(member.filename).suffix not in IGNORED:
                found[Place(archive, member.filename)] = member.file_size
    return dict(sorted(found.items())), unread


def open_file(folder: Path, place: Place) -> Path | io.BytesIO:
    """Returns a path or an archive member's bytes, for a decoder.  ValueError outside the folder."""
    return io.BytesIO(read(folder, place)) if place.archive else _inside(folder, place.path)


def read(folder: Path, place: Place) -> bytes:
    """Returns the bytes of a file.  ValueError when its archive cannot be read."""
    if not place.archive:
        return _inside(folder, place.path).read_bytes()
    try:
        return open_archive(folder, place.archive).read(place.path)
    except (KeyError, RuntimeError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as why:
        raise ValueError(f"archive: {why}") from why


@lru_cache(maxsize=256)
def open_archive(folder: Path, archive: str) -> zipfile.ZipFile:
    """Opens a zip file or the parts of one.  Cached: a directory of thousands of members reads slowly."""
    path = _inside(folder, archive)
    return zipfile.ZipFile(path if path.exists() else Concatenated(parts(path)))


def _inside(folder: Path, path: str) -> Path:
    """Returns folder / path; ValueError if outside the folder.  Archive members are never unpacked."""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError(f"{path}: not inside {folder}; index the folder again")
    return folder / path


def parts(path: Path) -> list[Path]:
    """Returns NAME_partaa, NAME_partab, ... of NAME.zip.  ValueError when one is missing."""
    candidates = path.parent.glob(f"{path.stem}_part*")
    found = {match[2]: p for p in candidates if (match := PART.fullmatch(p.name)) and match[1] == path.stem}
    names = sorted(found)
    for number, name in enumerate(names):
        if number != _number(name):
            raise ValueError(f"a part before {found[name].name} is missing; download it again")
    return [found[name] for name in names]


def _number(letters: str) -> int:
    """Returns the index of a suffix of `split`: aa, ab, ... az, ba, ... are 0, 1, ..."""
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - ord("a")
    return number


class Concatenated(io.RawIOBase):
    """Several files read as one concatenated file."""

    def __init__(self, paths: list[Path]):
        self.files = [path.open("rb") for path in paths]
        self.ends, end = [], 0
        for path in paths:
            end += path.stat().st_size
            self.ends.append(end)
        self.at, self.lock = 0, threading.Lock()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.ends[-1]}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer) -> int:
        for file, begin, end in zip(self.files, [0, *self.ends], self.ends):
            if self.at < end:
                with self.lock:
                    file.seek(self.at - begin)
                    count = file.readinto(memoryview(buffer)[:end - self.at])
                self.at += count
                return count
        return 0

    def close(self) -> None:
        for file in self.files:
            file.close()
        super().close()


def group(places, key) -> dict[str, list[Place]]:
    """Returns places grouped by key(place)."""
    groups = defaultdict(list)
    for place in places:
        groups[key(place)].append(place)
    return groups
