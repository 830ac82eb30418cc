"""Line charts as inline SVG, without a plotting library; readable on a phone, in light and dark mode.

    Chart("loss", [Series("ccd", steps, losses, smooth=20)], x_label="step", log_y=True).svg()
"""

import math
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 40, 40      # margins, including tick labels and legend
LINE = 14                                       # line height of the legend
FEW = 12        # up to this many points are marked individually and not smoothed
LEAST = 0.1     # minimum span of an axis relative to its values, so that noise on a constant looks small
COLOURS = ["#2f6fde", "#d9730d", "#1f9d72", "#8a57d6", "#d43d51", "#7b828c"]
CENTRED = 'text-anchor="middle"'
INK, GRID = "var(--muted, #667085)", "var(--line, #d5d9e0)"


@dataclass(frozen=True)
class Series:
    """One line of a chart.  smooth: half-life, in points, of a running mean drawn over the faint raw line;
    with 0, or at most FEW points, the raw line alone."""

    name: str
    x: list[float]
    y: list[float]
    smooth: float = 0.0


@dataclass(frozen=True)
class Chart:
    """One chart; non-finite values, and non-positive ones on a log axis, are left out."""

    title: str
    series: list[Series]
    x_label: str = ""
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False

    def constant(self) -> float | None:
        """Returns the value that all points share to six digits, else None."""
        values = [y for s in self.series for x, y in zip(s.x, s.y, strict=True) if self._drawable(x, y)]
        same = len(values) > 1 and max(values) - min(values) <= 1e-6 * abs(values[0])
        return values[0] if same else None

    def svg(self) -> str:
        """Returns the chart as an <svg> element; ValueError without a point to draw."""
        lines = [(s, [p for p in zip(s.x, s.y, strict=True) if self._drawable(*p)]) for s in self.series]
        points = [p for _, kept in lines for p in kept]
        if not points:
            raise ValueError(f"chart {self.title!r} has no point to draw")
        x_axis = _Axis([p[0] for p in points], LEFT, WIDTH - RIGHT, self.log_x, pad=0.0)
        y_axis = _Axis([p[1] for p in points], HEIGHT - BOTTOM, TOP, self.log_y, pad=0.05, least=LEAST)
        drawn = []
        for i, (s, kept) in enumerate(lines):
            line, pen = _path(kept, x_axis, y_axis), f'fill="none" stroke="{_colour(i)}"'
            if s.smooth and len(kept) > FEW:
                drawn += [f'<path d="{line}" {pen} opacity=".28"/>']
                line = _path(_running_mean(kept, s.smooth), x_axis, y_axis)
            drawn += [f'<path d="{line}" {pen} stroke-width="2" stroke-linejoin="round"/>']
            if len(kept) <= FEW:
                at = ((x_axis.at(x), y_axis.at(y)) for x, y in kept)
                drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{_colour(i)}"/>' for x, y in at]
        legend, above = self._legend()
        return (f'<svg viewBox="0 {-above} {WIDTH} {HEIGHT + above}" role="img" '
                f'aria-label="{escape(self._description(lines))}" '
                f'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" font-size="11" '
                f'fill="{INK}">{self._frame(x_axis, y_axis)}{"".join(drawn)}{legend}</svg>')

    def _drawable(self, x: float, y: float) -> bool:
        return (math.isfinite(x) and math.isfinite(y)
                and not (self.log_x and x <= 0) and not (self.log_y and y <= 0))

    def _frame(self, x_axis: "_Axis", y_axis: "_Axis") -> str:
        parts = []
        for v in y_axis.ticks():
            y = y_axis.at(v)
            parts += [f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{GRID}"/>',
                      f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(v)}</text>']
        parts += [f'<text x="{x_axis.at(v):.1f}" y="{HEIGHT - BOTTOM + 16}" {CENTRED}>{_number(v)}</text>'
                  for v in x_axis.ticks()]
        across, down = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
        turned = f'transform="translate(11 {down}) rotate(-90)"'
        parts += [f'<text x="{across}" y="{HEIGHT - 6}" {CENTRED}>{escape(self.x_label)}</text>',
                  f"<text {turned} {CENTRED}>{escape(self.y_label)}</text>"]
        return "".join(parts)

    def _legend(self) -> tuple[str, int]:
        """Returns (title and, for several series, their legend; its height above 0)."""
        parts, x, y = [], LEFT, 0
        for i, s in enumerate(self.series if len(self.series) > 1 else []):
            wide = 16 + 6 * len(s.name)
            if x > LEFT and x + wide > WIDTH - RIGHT:
                x, y = LEFT, y + LINE
            parts += [f'<rect x="{x}" y="{y + 24}" width="12" height="4" rx="2" fill="{_colour(i)}"/>',
                      f'<text x="{x + 16}" y="{y + 30}">{escape(s.name)}</text>']
            x += wide + 14
        title = (f'<text x="{LEFT}" y="14" font-size="13" font-weight="600" fill="var(--ink, #1d2433)">'
                 f"{escape(self.title)}</text>")
        return f'<g transform="translate(0 {-y})">{title}{"".join(parts)}</g>', y

    def _description(self, lines: list[tuple[Series, list]]) -> str:
        ends = [f"{s.name} from {_number(kept[0][1])} to {_number(kept[-1][1])}" for s, kept in lines if kept]
        return f"Line chart, {self.title}: " + "; ".join(ends)


@dataclass(frozen=True)
class Curves:
    """A report section of charts side by side; constants are stated in the note instead of drawn."""

    title: str
    charts: list[Chart]
    note: str = ""

    def html(self) -> str:
        constants = {id(c): c.constant() for c in self.charts}
        stated = [f"Constant, not drawn: {c.title}, {_number(constants[id(c)])}."
                  for c in self.charts if constants[id(c)] is not None]
        figures = "".join(f"<figure>{c.svg()}</figure>" for c in self.charts if constants[id(c)] is None)
        notes = "".join(f'<p class="note">{escape(line)}</p>' for line in [self.note, *stated] if line)
        return f'<div class="charts">{figures}</div>{notes}'


def logged(log: list[dict], key: str, *, name: str = "", smooth: float = 0.0) -> Series:
    """Returns scalar `key` of a log against its steps.  ValueError, listing the known scalars, if absent."""
    kept = [entry for entry in log if isinstance(entry.get(key), int | float)]
    if not kept:
        known = sorted({k for entry in log for k in entry} - {"step"})
        raise ValueError(f"the log has no scalar {key!r}; it has {known}")
    return Series(name or key, [e["step"] for e in kept], [e[key] for e in kept], smooth)


class _Axis:
    """A linear or logarithmic axis: maps values to pixels, and chooses round tick values."""

    def __init__(self, values: list[float], low: float, high: float, log: bool, pad: float,
                 least: float = 0.0):
        self.log, self.low, self.high = log, low, high
        a, b = (math.log10(min(values)), math.log10(max(values))) if log else (min(values), max(values))
        span = math.log10(1 + least) if log else least * abs(a + b) / 2
        if b - a < span:
            a, b = (a + b - span) / 2, (a + b + span) / 2
        if b - a < 1e-12 * max(1.0, abs(a)):
            a, b = a - 0.5, b + 0.5
        self.a, self.b = a - pad * (b - a), b + pad * (b - a)

    def at(self, value: float) -> float:
        v = math.log10(value) if self.log else value
        return self.low + (v - self.a) / (self.b - self.a) * (self.high - self.low)

    def ticks(self) -> list[float]:
        if self.log:
            low, high = 10 ** (self.a - 1e-9), 10 ** (self.b + 1e-9)
            decades = range(math.floor(self.a), math.ceil(self.b) + 1)
            every = 1 + len(decades) // 8
            for mantissas in ((1,), (1, 3), (1, 2, 5)):
                found = [m * 10.0 ** d for d in decades[::every] for m in mantissas]
                found = [v for v in found if low <= v <= high]
                if len(found) >= 3:
                    return found
            return [v for v in _round_steps(low, high) if v > 0]
        return _round_steps(self.a, self.b)


def _round_steps(a: float, b: float) -> list[float]:
    """Returns four to eight multiples of 1, 2 or 5 times a power of ten within [a, b]."""
    rough = (b - a) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return [k * step for k in range(math.ceil(a / step - 1e-9), math.floor(b / step + 1e-9) + 1)]


def _colour(i: int) -> str:
    """Returns the page's colour of series i, or the light-mode colour in a stand-alone chart."""
    return f"var(--series-{i % len(COLOURS) + 1}, {COLOURS[i % len(COLOURS)]})"


def _path(points: list[tuple[float, float]], x_axis: _Axis, y_axis: _Axis) -> str:
    return "M" + "L".join(f"{x_axis.at(x):.1f} {y_axis.at(y):.1f}" for x, y in points) if points else ""


def _running_mean(points: list[tuple[float, float]], half_life: float) -> list[tuple[float, float]]:
    """Returns an exponentially weighted mean over a window that is symmetric about each point.

    The line therefore does not lag, and starts and ends at the data.
    """
    n, keep, reach = len(points), 0.5 ** (1 / half_life), math.ceil(10 * half_life)
    smoothed = []
    for i, (x, _) in enumerate(points):
        sides = range(-min(i, n - 1 - i, reach), min(i, n - 1 - i, reach) + 1)
        total = sum(keep ** abs(k) for k in sides)
        smoothed.append((x, sum(keep ** abs(k) * points[i + k][1] for k in sides) / total))
    return smoothed


def _number(v: float) -> str:
    if v == 0:
        return "0"
    if 1e-3 <= abs(v) < 1e5:
        return f"{v:.4g}"
    mantissa, exponent = f"{v:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
