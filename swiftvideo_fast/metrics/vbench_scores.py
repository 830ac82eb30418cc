"""Reads VBench's results, and computes the paper's four columns.

A column is the weighted mean of its dimensions, each min-max scaled by VBench's range, in percent.  Weights
and ranges are those of VBench's scripts/constant.py; the grouping is the VBench paper's.  camera_motion is in
no column.
"""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Dimension:
    """column: the paper's column, or "".  least, greatest: scores that are scaled to 0 and 1."""

    column: str
    weight: float = 1.0
    least: float = 0.0
    greatest: float = 1.0

    def scaled(self, score: float) -> float:
        return (score - self.least) / (self.greatest - self.least)


DIMENSIONS = {
    "subject_consistency": Dimension("temporal quality", 1.0, 0.1462, 1.0),
    "background_consistency": Dimension("temporal quality", 1.0, 0.2615, 1.0),
    "motion_smoothness": Dimension("temporal quality", 1.0, 0.7060, 0.9975),
    "dynamic_degree": Dimension("temporal quality", 0.5),
    "aesthetic_quality": Dimension("frame quality"),
    "imaging_quality": Dimension("frame quality"),
    "i2v_subject": Dimension("I2V subject", 1.0, 0.1462, 1.0),
    "i2v_background": Dimension("I2V background", 1.0, 0.2615, 1.0),
    "temporal_flickering": Dimension("", 1.0, 0.6293, 1.0),
}
COLUMNS = tuple(dict.fromkeys(d.column for d in DIMENSIONS.values() if d.column))


@dataclass(frozen=True)
class Scores:
    """raw: dimension -> VBench's score, 0 to 1.  videos: dimension -> number of videos."""

    raw: dict[str, float]
    videos: dict[str, int]

    def columns(self) -> dict[str, float]:
        """Returns column -> percent, for columns with all dimensions present."""
        found = {}
        for column in COLUMNS:
            of = {name: d for name, d in DIMENSIONS.items() if d.column == column}
            if of.keys() <= self.raw.keys():
                weighted = sum(d.weight * d.scaled(self.raw[name]) for name, d in of.items())
                found[column] = 100 * weighted / sum(d.weight for d in of.values())
        return found

    def __str__(self) -> str:
        columns = self.columns()
        lines = [f"{name:24}" + (f"{columns[name]:7.2f} %" if name in columns else f"{'-':>7}")
                 for name in COLUMNS]
        lines += ["", *(f"{name:24}{score:7.4f}  {self.videos[name]} videos"
                        for name, score in self.raw.items())]
        missing = [name for name in DIMENSIONS if name not in self.raw]
        return "\n".join(lines + ([f"missing: {', '.join(missing)}"] if missing else []))


def read(folder: Path) -> Scores:
    """Reads VBench's files in folder/results.  ValueError for none, two of one dimension, a damaged file, or
    a score outside 0 to 1.
    """
    raw, videos, source = {}, {}, {}
    for file in sorted((folder / "results").glob("*_eval_results.json")):
        for name, (score, count) in _read(file).items():
            if name in source:
                raise ValueError(f"{name} is in {source[name]} and in {file}; remove one of them")
            if not -1e-6 <= score <= 1 + 1e-6:              # true of NaN
                raise ValueError(f"{file}: {name} is {score}; want a number from 0 to 1 (VBench gives NaN "
                                 "where it finds no video)")
            raw[name], videos[name], source[name] = score, count, file
    if not raw:
        raise ValueError(f"{folder / 'results'}: no *_eval_results.json in it; run {folder / 'run.py'} with "
                         "the python that has vbench")
    return Scores(raw, videos)


def _read(file: Path) -> dict[str, tuple[float, int]]:
    """Returns dimension -> (score, number of videos)."""
    try:
        return {name: (float(score), len(each))
                for name, (score, each) in json.loads(file.read_text()).items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as why:
        raise ValueError(f"{file}: not VBench's results ({why}); remove it and run run.py again") from why
