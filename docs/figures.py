"""docs/figures.svg, the README's picture: the three stages, and what was measured on a card (bench/gpu.json).

    python docs/figures.py
"""

import json
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
SVG = ROOT / "docs" / "figures.svg"
CARD = "NVIDIA H100 80GB HBM3"
WIDTH, HEIGHT, BAR = 920, 372, 22
INK, GREY, OURS, THEIRS = "#1f2328", "#59636e", "#0969da", "#afb8c1"

STAGES = [("Wan2.1 teacher", "25 guided steps"), ("1  CCD", "consistency, by exact JVPs"),
          ("2  DA", "an adversary on real clips"), ("3  TA", "8 steps teach 4, 4 teach 2"),
          ("student", "4, 2 or 1 steps")]


def figures(record: Path = ROOT / "bench" / "gpu.json") -> tuple[list, list]:
    """(seconds a clip, milliseconds a forward-mode attention): rows of (name, value, whether it is ours)."""
    card = json.loads(record.read_text())[CARD]
    parts, ways = card["sampling"]["wan_1_3b"]["parts"], card["small"]["ways"]
    clip = [("teacher, 25 guided steps", parts["25 guided"]["s"], False),
            ("student, 4 steps", parts["4 steps"]["s"], True)]
    names = {"torch.func.jvp": "jvp torch.func.jvp, math attention",
             "jvp-flash-attention 0.14": "jvp jvp-flash-attention 0.14.0 (PyPI)",
             "rCM's Triton kernel": "jvp rCM (Triton, best of 6 of its 36 configs)"}
    attention = [(name, ways[key]["ms"], False) for name, key in names.items()]
    by_hand = card["hopper"]["ways"]["(1, 12, 4096, 4096, 128)"]["by hand"]["ms"]
    return clip, [*attention, ("ours, Triton", ways["jvp ours"]["ms"], True), ("ours, Gluon", by_hand, True)]


def text(x: float, y: float, words: str, size: int = 13, colour: str = INK, bold: bool = False,
         anchor: str = "start") -> str:
    weight = ' font-weight="600"' if bold else ""
    return (f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{weight}>'
            f'{escape(words)}</text>')


def stages(y: float) -> str:
    """The road from the teacher to the student."""
    width, gap, drawn = 160, 20, []
    for i, (name, about) in enumerate(STAGES):
        x = 20 + i * (width + gap)
        fill = "#ddf4ff" if 0 < i < len(STAGES) - 1 else "#f6f8fa"
        drawn += [f'<rect x="{x}" y="{y}" width="{width}" height="52" rx="8" fill="{fill}" '
                  'stroke="#d1d9e0"/>',
                  text(x + width / 2, y + 22, name, 14, bold=True, anchor="middle"),
                  text(x + width / 2, y + 40, about, 11, GREY, anchor="middle")]
        if i:
            drawn.append(f'<path d="M{x - gap + 4} {y + 26}h12m-5-4l5 4l-5 4" fill="none" stroke="{GREY}"/>')
    return "".join(drawn)


def bars(x: float, y: float, title: str, rows: list, unit: str) -> str:
    """One panel, a bar a row."""
    room, most = 200, max(value for _, value, _ in rows)
    drawn = [text(x, y, title, 13, bold=True)]
    for i, (name, value, ours) in enumerate(rows):
        top, length = y + 16 + i * (BAR + 10), room * value / most
        drawn += [text(x + 160, top + 16, name, 12, anchor="end"),
                  f'<rect x="{x + 168}" y="{top}" width="{length:.1f}" height="{BAR}" rx="3" '
                  f'fill="{OURS if ours else THEIRS}"/>',
                  text(x + 174 + length, top + 16, f"{value:.3g} {unit}", 12, bold=ours)]
    return "".join(drawn)


def svg() -> str:
    clip, attention = figures()
    drawn = [stages(20), bars(20, 112, "Wan 1.3B, a clip of 61 frames of 832x480", clip, "s"),
             text(188, 222, f"{clip[0][1] / clip[1][1]:.1f} times as fast", 20, OURS, bold=True),
             bars(480, 112, "Forward-mode attention, 12 heads, 4,096 tokens", attention, "ms"),
             text(20, HEIGHT - 44, "Each bar is a row of bench/gpu.json, which `make gpu` writes.", 11, GREY),
             text(20, HEIGHT - 28, f"{CARD}, 2026-11-27, torch 2.11, triton 3.6, random weights; Gluon in "
                  "a run of its own.  No published checkpoint has been distilled yet.", 11, GREY)]
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">'
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#ffffff"/>{"".join(drawn)}</svg>\n')


if __name__ == "__main__":
    SVG.write_text(svg())
    print(f"wrote {SVG}")
