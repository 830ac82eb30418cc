"""Measured rows into tables: aligned text for a terminal, HTML for the report, JSON for machines.

    rows = [Row("teacher", 4, {"frechet": [117.0, 115.2]}), Row("student", 4, {"frechet": [36.2, 35.9]})]
    print(comparison(rows, against="teacher").text())
"""

import math
from dataclasses import dataclass, field
from html import escape
from statistics import fmean, stdev
from textwrap import fill

from swiftvideo_fast.metrics.fidelity import STILL


@dataclass(frozen=True)
class Metric:
    """label: the column's head.  digits: after the point.  compared: show the ratio to the reference row."""

    label: str
    digits: int
    compared: bool = False


METRICS = {
    "frechet": Metric("Frechet, trained", 1, compared=True),
    "frechet_random": Metric("Frechet, random", 1, compared=True),
    "trajectory": Metric("trajectory error", 4, compared=True),
    "detail": Metric("detail / real", 2),
    "motion": Metric("motion / real", 2),
    "psnr": Metric("first frame, dB", 1),
}


@dataclass(frozen=True)
class Row:
    """One sampler's figures: metric -> one value a seed.  steps None: it takes none (real clips)."""

    name: str
    steps: int | None
    values: dict[str, list[float]]


@dataclass(frozen=True)
class Cell:
    """What a table shows at one place: a figure, its spread in small, and a remark beside them."""

    text: str
    spread: str = ""
    remark: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.text, self.spread, self.remark)))

    def html(self) -> str:
        small = (f' <span class="{name}">{escape(getattr(self, name))}</span>'
                 for name in ("spread", "remark") if getattr(self, name))
        return escape(self.text) + "".join(small)


@dataclass(frozen=True)
class Table:
    """A section of the report: a head and rows of cells.  strong: indices of the rows to look at."""

    title: str
    head: list[str]
    rows: list[list[Cell | str]]
    note: str = ""
    strong: frozenset[int] = field(default_factory=frozenset)

    def text(self) -> str:
        """Columns aligned: the first to the left, the others to the right."""
        lines = [self.head] + [[str(c) for c in row] for row in self.rows]
        width = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        sides = ["<", *">" * (len(width) - 1)]
        printed = ["  ".join(f"{c:{side}{w}}" for c, side, w in zip(line, sides, width, strict=True))
                   for line in lines]
        printed.insert(1, "-" * len(printed[0]))
        note = fill(self.note, max(72, len(printed[0])))
        return "\n".join(line.rstrip() for line in [self.title, "", *printed, "", note]).strip("\n")

    def html(self) -> str:
        head = "".join(f'<th scope="col">{escape(h)}</th>' for h in self.head)
        body = []
        for i, row in enumerate(self.rows):
            first, *rest = (c if isinstance(c, Cell) else Cell(c) for c in row)
            cells = "".join(f"<td>{c.html()}</td>" for c in rest)
            strong = ' class="strong"' if i in self.strong else ""
            body.append(f'<tr{strong}><th scope="row">{first.html()}</th>{cells}</tr>')
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        return (f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(self.title)}"><table>'
                f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>{note}")


def comparison(rows: list[Row], *, against: str = "teacher", title: str = "Quality by sampling steps",
               metrics: dict[str, Metric] = METRICS) -> Table:
    """One line a row: mean +- spread over seeds, and the ratio to row `against` of equal steps.

    Columns that no row has are left out.
    """
    shown = {key: m for key, m in metrics.items() if any(key in row.values for row in rows)}
    pairs = [(row, _reference(rows, row, against)) for row in rows]
    stepped = any(row.steps is not None for row in rows)
    lines = [[row.name, *["" if row.steps is None else str(row.steps)] * stepped,
              *(_cell(row, key, m, reference) for key, m in shown.items())] for row, reference in pairs]
    seeds = max((len(v) for row in rows for v in row.values.values()), default=0)
    notes = [f"Mean ± standard deviation over {seeds} seeds." if seeds > 1 else "One seed.",
             f"× is the ratio to {against} at equal steps (lower is better)." if against else ""]
    moves = {i: fmean(row.values["motion"]) for i, row in enumerate(rows) if "motion" in row.values}
    notes += [f"Static copy: {rows[i].name}{_at(rows[i])} moves ×{motion:.2f} as much as real clips."
              for i, motion in moves.items() if motion < STILL]
    return Table(title, ["", *["steps"] * stepped, *(m.label for m in shown.values())], lines,
                 " ".join(filter(None, notes)), frozenset(i for i, (_, r) in enumerate(pairs) if r))


def ablation(rows: list[Row], groups: dict[str, list[str]], *, steps: int, paper: dict[str, float],
             title: str = "What each stage adds", metrics: dict[str, Metric] = METRICS) -> Table:
    """Table 2's layout: under each question the settings that answer it, at one number of steps.

    groups: question -> names of rows.  paper: name -> the paper's FVD, shown beside ours where it has one.
    × is the ratio to the first setting of the group.
    """
    by_name = {row.name: row for row in rows if row.steps == steps}
    shown = {key: m for key, m in metrics.items() if any(key in row.values for row in by_name.values())}
    lines = []
    for question, names in groups.items():
        first = by_name[names[0]]
        for name in names:
            reference = first if name != first.name else None
            figures = (_cell(by_name[name], key, m, reference) for key, m in shown.items())
            theirs = [f"{paper[name]:.2f}" if name in paper else "–"] * bool(paper)
            lines.append([question, name, *figures, *theirs])
            question = ""
    head = ["", "setting", *(m.label for m in shown.values()), *["FVD in the paper"] * bool(paper)]
    note = ("  The last column is the paper's Table 2, of Wan 1.3B on OpenVid-1M: another network, other "
            "clips, another metric.") * bool(paper)
    return Table(title, head, lines, f"× is the ratio to the first setting of its group.{note}")


def as_json(rows: list[Row], *, against: str = "teacher") -> list[dict]:
    """Plain dictionaries for json.dump: name, steps, and per metric seeds, mean, spread, ratio (or None)."""
    return [{"name": row.name, "steps": row.steps,
             "metrics": {key: {"seeds": list(v), "mean": fmean(v), "spread": stdev(v) if len(v) > 1 else None,
                               "ratio": ratio(row, _reference(rows, row, against), key)}
                         for key, v in row.values.items()}} for row in rows]


def ratio(row: Row, reference: Row | None, key: str) -> float | None:
    """Mean of row over mean of reference; None where either lacks the metric or the reference is 0."""
    if reference is None or key not in row.values or key not in reference.values:
        return None
    below = fmean(reference.values[key])
    return fmean(row.values[key]) / below if below else None


def _reference(rows: list[Row], row: Row, against: str) -> Row | None:
    if row.name == against or row.steps is None:
        return None
    return next((r for r in rows if r.name == against and r.steps == row.steps), None)


def _cell(row: Row, key: str, metric: Metric, reference: Row | None) -> Cell:
    values = row.values.get(key)
    if not values:
        return Cell("–")
    mean, digits = fmean(values), metric.digits
    if not math.isfinite(mean):
        return Cell("not finite")
    spread = f"± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    r = ratio(row, reference, key) if metric.compared else None
    return Cell(f"{mean:.{digits}f}", spread, f"×{r:.2f}" if r is not None else "")


def _at(row: Row) -> str:
    return "" if row.steps is None else f" at {row.steps} step{'s' * (row.steps != 1)}"
