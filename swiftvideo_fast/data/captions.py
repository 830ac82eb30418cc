"""Captions from a csv, matched to files by name.

The csv has the columns `video` and `caption`, as OpenVid-1M.csv; other columns are ignored.  `video` is a
path in the folder (or in the archive), or a bare file name if it is unique.
"""

import csv
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from swiftvideo_fast.data.files import Place, group

COLUMNS = "video", "caption"


def read(path: Path) -> dict[str, set[str]]:
    """Returns {video: set of its captions}.  ValueError when the file is not such a csv."""
    csv.field_size_limit(sys.maxsize if sys.maxsize < 2**31 else 2**31 - 1)
    captions: dict[str, set[str]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header = [name.strip().lower() for name in next(rows, [])]
            if missing := [name for name in COLUMNS if name not in header]:
                raise ValueError(f"{path}: columns are {', '.join(header) or 'none'}; it lacks {missing[0]}; "
                                 "want a header with video and caption, as in OpenVid-1M.csv")
            video, caption = (header.index(name) for name in COLUMNS)
            for row in rows:
                if len(row) > video and row[video].strip():
                    text = row[caption].strip() if len(row) > caption else ""
                    captions.setdefault(_name(row[video]), set()).add(text)
    except (OSError, UnicodeDecodeError, csv.Error) as why:
        raise ValueError(f"{path}: not a csv of captions ({why}); want UTF-8 with a header") from why
    return captions


def match(places: Iterable[Place], captions: dict[str, set[str]],
          source: str) -> tuple[dict[Place, str], dict[Place, str]]:
    """Returns ({file: caption}, {file: reason for having none}), the latter with csv rows without a file."""
    places = list(places)
    by_path = group(places, lambda place: _name(place.path))
    by_name = group(places, lambda place: _name(PurePosixPath(place.path).name))
    matched, rejected = {}, {}
    for name, texts in captions.items():
        found = by_path.get(name) or by_name.get(name) or []
        if not found:
            rejected[Place("", name)] = f"listed in {source}, but there is no such file"
        for place in found:
            text = next(iter(texts))
            if len(found) > 1:
                others = ", ".join(str(other) for other in found if other != place)
                rejected[place] = f"{source} says {name}, which is also {others}; give the path there"
            elif len(texts) > 1 or matched.get(place, text) != text:
                rejected[place] = f"different captions in {source}"
            elif not text:
                rejected[place] = f"an empty caption in {source}"
            else:
                matched[place] = text
    for place in places:
        if place not in matched and place not in rejected:
            rejected[place] = f"no caption in {source}"
    return {place: text for place, text in matched.items() if place not in rejected}, rejected


def _name(text: str) -> str:
    """Normalises a name to NFC; macOS stores accents decomposed."""
    return unicodedata.normalize("NFC", text.strip()).removeprefix("./")
