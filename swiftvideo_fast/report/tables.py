"""Tables of measured rows: aligned text for a terminal, HTML for the report, JSON for programs.

    rows = [Row("teacher", 4, {"frechet": [117.0, 115.2]}), Row("student", 4, {"frechet": [36.2, 35.9]})]
    print(comparison(rows, against="teacher").text())
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from statistics import fmean, stdev
from textwrap import fill

from swiftvideo_fast.metrics.fidelity import STILL


@dataclass(frozen=True)
class Metric:
    """A column.  label: its head.  digits: decimals.  about: its meaning in one line.
    better: "lower", "higher", "one" (a ratio that should be 1), or "" for neither.
    compared: whether the ratio to the reference row is shown.
    """

    label: str
    digits: int
    about: str = ""
    better: str = "lower"
    compared: bool = False


METRICS = {
    "frechet": Metric(
        "Frechet, trained", 1, "distance between the distributions of generated and real clips, in features "
        "of a small video network trained on real clips; lower is better", compared=True),
    "frechet_random": Metric(
        "Frechet, random", 1, "the same distance in features of a network with random weights: a check that "
        "depends on no training; lower is better", compared=True),
    "trajectory": Metric(
        "trajectory error", 4, "mean squared difference, in latents, to the teacher's 25-step sample from "
        "the same noise; 0 is the same clip", compared=True),
    "detail": Metric("detail / real", 2, "high-frequency energy, as a ratio to the real clips': below 1 is "
                     "blurred, above 1 noisy", better="one"),
    "motion": Metric("motion / real", 2, "mean change from frame to frame, as a ratio to the real clips': "
                     f"below {STILL:g} is a still picture", better="one"),
    "psnr": Metric("first frame, dB", 1, "how closely the first frame keeps the condition (PSNR); higher is "
                   "better", better="higher"),
    "seconds": Metric("seconds a clip", 3,
                      "CPU time of sampling on one core, without decoding; lower is better"),
}
COLOURED = "Green is better than the reference, red worse, by more than the noise between seeds."
WITHIN = 0.03       # relative difference within noise for one seed: seeds differ by 1 to 2 %


@dataclass(frozen=True)
class Row:
    """One sampler's figures.  values: metric -> one value per seed.  steps: None for real clips."""

    name: str
    steps: int | None
    values: dict[str, list[float]]


@dataclass(frozen=True)
class Cell:
    """A table cell: a figure, its spread in small type, and a remark.

    tone: "better" or "worse" than the reference, which colours it; "" for neither.
    """

    text: str
    spread: str = ""
    remark: str = ""
    tone: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.text, self.spread, self.remark)))

    def html(self) -> str:
        small = (f' <span class="{name}">{escape(getattr(self, name))}</span>'
                 for name in ("spread", "remark") if getattr(self, name))
        return f"<b>{escape(self.text)}</b>" + "".join(small)


@dataclass(frozen=True)
class Table:
    """A report section: a head and rows of cells, the first of which is the row's name.

    groups: row index -> heading above it.  strong: indices of emphasised rows.
    explained: column head -> its meaning in one line.
    """

    title: str
    head: list[str]
    rows: list[list[Cell | str]]
    note: str = ""
    strong: frozenset[int] = field(default_factory=frozenset)
    groups: Mapping[int, str] = field(default_factory=dict)
    explained: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """Returns aligned text: the first column left-aligned, the others right-aligned."""
        indent = "  " * bool(self.groups)
        lines = [self.head] + [[indent + str(row[0]), *map(str, row[1:])] for row in self.rows]
        width = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        sides = ["<", *">" * (len(width) - 1)]
        printed = ["  ".join(f"{c:{side}{w}}" for c, side, w in zip(line, sides, width, strict=True))
                   for line in lines]
        rule, below = "-" * len(printed[0]), []
        for i, line in enumerate(printed[1:]):
            below += [self.groups[i], line] if i in self.groups else [line]
        note = fill(self.note, max(72, len(rule)))
        lines = [self.title, "", printed[0], rule, *below, "", note]
        return "\n".join(line.rstrip() for line in lines).strip("\n")

    def html(self) -> str:
        head = "".join(f'<th scope="col">{escape(h)}</th>' for h in self.head)
        body = []
        for i, row in enumerate(self.rows):
            if i in self.groups:
                body.append(f'<tr class="group"><th colspan="{len(self.head)}" scope="rowgroup">'
                            f"{escape(self.groups[i])}</th></tr>")
            first, *rest = (c if isinstance(c, Cell) else Cell(c) for c in row)
            cells = "".join(_td(c, label) for c, label in zip(rest, self.head[1:], strict=True))
            strong = ' class="strong"' if i in self.strong else ""
            body.append(f'<tr{strong}><th scope="row">{escape(str(first))}</th>{cells}</tr>')
        meanings = "".join(f"<div><dt>{escape(h)}</dt><dd>{escape(line)}</dd></div>"
                           for h, line in self.explained.items())
        coloured = any(isinstance(c, Cell) and c.tone for row in self.rows for c in row)
        text = " ".join(filter(None, (self.note, COLOURED * coloured)))
        note = f'<p class="note">{escape(text)}</p>' if text else ""
        return (f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>{note}"
                + f'<dl class="explained">{meanings}</dl>' * bool(meanings))


def _td(cell: Cell, label: str) -> str:
    """Returns a table cell.  label: the column's, which CSS shows next to the figure on narrow screens."""
    tone = f' class="{cell.tone}"' if cell.tone else ""
    return f'<td data-label="{escape(label)}"{tone}><span>{cell.html()}</span></td>'


def comparison(rows: list[Row], *, against: str = "teacher", title: str = "Quality by sampling steps",
               metrics: dict[str, Metric] = METRICS) -> Table:
    """Returns a table with one line per row: mean +- spread over seeds, ratio to row `against` at equal
    steps.

    Metrics that no row has are left out.
    """
    shown = {key: m for key, m in metrics.items() if any(key in row.values for row in rows)}
    pairs = [(row, _reference(rows, row, against)) for row in rows]
    stepped = any(row.steps is not None for row in rows)
    lines = [[row.name, *["" if row.steps is None else str(row.steps)] * stepped,
              *(_cell(row, key, m, reference) for key, m in shown.items())] for row, reference in pairs]
    notes = [_seeds(rows), f"× is the ratio to {against} at equal steps." * bool(against)]
    moves = {i: fmean(row.values["motion"]) for i, row in enumerate(rows) if "motion" in row.values}
    notes += [f"Static copy: {rows[i].name}{_at(rows[i])} moves ×{motion:.2f} as much as real clips."
              for i, motion in moves.items() if motion < STILL]
    return Table(title, ["", *["steps"] * stepped, *(m.label for m in shown.values())], lines,
                 " ".join(filter(None, notes)), frozenset(i for i, (_, r) in enumerate(pairs) if r),
                 explained={m.label: m.about for m in shown.values() if m.about})


def ablation(rows: list[Row], groups: dict[str, list[str]], *, steps: int, paper: dict[str, float],
             title: str = "What each stage adds", metrics: dict[str, Metric] = METRICS) -> Table:
    """Returns a table in Table 2's layout: settings grouped by question, at one number of steps.

    groups: question -> names of rows.  paper: name -> the paper's FVD, shown next to ours.
    × is the ratio to the group's first setting.  Metrics are explained by a comparison table above it.
    """
    by_name = {row.name: row for row in rows if row.steps == steps}
    shown = {key: m for key, m in metrics.items() if any(key in row.values for row in by_name.values())}
    lines, above = [], {}
    for question, names in groups.items():
        first = by_name[names[0]]
        above[len(lines)] = question
        for name in names:
            reference = first if name != first.name else None
            figures = (_cell(by_name[name], key, m, reference) for key, m in shown.items())
            lines.append([name, *figures, *[f"{paper[name]:.2f}" if name in paper else "–"] * bool(paper)])
    head = ["setting", *(m.label for m in shown.values()), *["FVD in the paper"] * bool(paper)]
    theirs = "Table 2, of Wan 1.3B on OpenVid-1M: another network, other clips, another metric"
    note = f"{_seeds(rows)} × is the ratio to the first setting of its group."
    return Table(title, head, lines, note, groups=above,
                 explained={"FVD in the paper": theirs} if paper else {})


def as_json(rows: list[Row], *, against: str = "teacher") -> list[dict]:
    """Returns dicts for json.dump: name, steps, and per metric seeds, mean, spread, ratio (or None)."""
    return [{"name": row.name, "steps": row.steps,
             "metrics": {key: {"seeds": list(v), "mean": fmean(v), "spread": stdev(v) if len(v) > 1 else None,
                               "ratio": ratio(row, _reference(rows, row, against), key)}
                         for key, v in row.values.items()}} for row in rows]


def ratio(row: Row, reference: Row | None, key: str) -> float | None:
    """Returns mean of row over mean of reference; None if either lacks the metric or the reference is 0."""
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
    tone = _tone(values, reference.values.get(key, []), metric.better) if reference else ""
    return Cell(f"{mean:.{digits}f}", spread, f"×{r:.2f}" if r is not None else "", tone)


def _tone(values: list[float], reference: list[float], better: str) -> str:
    """Returns "better", "worse", or "" if within two standard errors (with one seed: WITHIN)."""
    if not values or not reference or not better:
        return ""
    scale = 1.0 if better == "one" else abs(fmean(reference))
    if better == "one":
        values, reference = ([abs(v - 1) for v in side] for side in (values, reference))
    errors = [stdev(v) / math.sqrt(len(v)) for v in (values, reference) if len(v) > 1]
    margin = 2 * math.hypot(*errors) if len(errors) == 2 else WITHIN * scale
    gain = (fmean(values) - fmean(reference)) * (1 if better == "higher" else -1)
    return "better" if gain > margin else "worse" if gain < -margin else ""


def _seeds(rows: list[Row]) -> str:
    seeds = max((len(v) for row in rows for v in row.values.values()), default=0)
    return f"Mean ± standard deviation over {seeds} seeds." if seeds > 1 else "One seed."


def _at(row: Row) -> str:
    return "" if row.steps is None else f" at {row.steps} step{'s' * (row.steps != 1)}"
