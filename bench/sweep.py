"""python -m bench sweep: memory over frames x resolution x pass, as a CSV and a chart.

    python -m bench sweep --preset 1.3b --pass jvp train step --csv sweep.csv --png sweep.png

A point is predicted on networks of two and three blocks and extrapolated to the preset's number.
"""

import csv
from dataclasses import replace
from itertools import product
from pathlib import Path

from bench.account import Account
from bench.memory import DEVICES_GB, USABLE, faked, setting_arguments, setting_of
from bench.options import Parser, count, output, picture, size
from bench.passes import PASSES, Setting

FRAMES = (17, 33, 61, 81, 121)
SIZES = ((832, 480), (1280, 720))
MARKERS = 2 * "os^Dvp*X"


BLOCKS = 2, 3


def continued(name: str, setting: Setting) -> tuple[int, int]:
    """Returns (bytes held, peak beyond them) of a pass, extrapolated exactly from networks of few blocks.

    Within a phase live bytes change by a constant per block, so the phase's peak is at the first or the last
    block; at both it changes by a constant with every block added to the network.
    """
    few, many = (faked(PASSES[name], replace(setting, layers=n)) for n in BLOCKS)
    more = setting.config.layers - BLOCKS[1]
    if [phase for _, phase in few.phases] != [phase for _, phase in many.phases]:
        raise ValueError(f"sweep: the phases of {name} depend on the number of blocks")

    def at_ends(account: Account, blocks: int) -> dict:
        named = {None: "none", 0: "first", blocks - 1: "last"}
        return {(phase, named[block]): top for (phase, block), top in account.tops.items() if block in named}

    low, high = at_ends(few, BLOCKS[0]), at_ends(many, BLOCKS[1])
    peak = max(high[key] + more * (high[key] - low[key]) for key in low.keys() & high.keys())
    return many.known_bytes + more * (many.known_bytes - few.known_bytes), peak


def rows(settings: list[Setting], passes: list[str]):
    """Yields a dict per setting and pass: tokens, GB held, peak, their sum, and fit on each device."""
    for setting, name in product(settings, passes):
        held, peak = continued(name, setting)
        total = (held + peak) / 1e9
        yield {"preset": setting.preset, "pass": name, "frames": setting.frames,
               "size": "x".join(map(str, setting.size)), "tokens": setting.tokens,
               "held_gb": round(held / 1e9, 3), "peak_gb": round(peak / 1e9, 3),
               "total_gb": round(total, 3)} | {f"fits_{gb}": int(total <= USABLE * gb) for gb in DEVICES_GB}


def draw(table: list[dict], png: Path) -> None:
    """Plots total GB over tokens: a line per pass, a marker per size, frames as labels, device capacities."""
    import matplotlib
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    sizes = list(dict.fromkeys(row["size"] for row in table))
    passes = list(dict.fromkeys(row["pass"] for row in table))
    for colour, name in enumerate(passes):
        points = sorted((row["tokens"], row["total_gb"], row["size"], row["frames"])
                        for row in table if row["pass"] == name)
        axes.plot(*zip(*(point[:2] for point in points)), color=f"C{colour}", label=name)
        for tokens, gb, pixels, frames in points:
            place = sizes.index(pixels)
            axes.plot(tokens, gb, MARKERS[place], color=f"C{colour}")
            if name == passes[-1]:
                axes.annotate(frames, (tokens, gb), (0, -14 if place % 2 else 7), textcoords="offset points",
                              ha="center", fontsize=8)
    for place, pixels in enumerate(sizes):
        where = "below" if place % 2 else "above"
        axes.plot([], [], MARKERS[place], color="grey", label=f"{pixels}, frames {where}")
    for gb in DEVICES_GB:
        axes.axhline(USABLE * gb, color="grey", linestyle=":")
        axes.annotate(f"{USABLE:.0%} of {gb} GB", (0, USABLE * gb), (4, 3), textcoords="offset points")
    axes.set(title=f"{table[0]['preset']}, one clip", xlabel="tokens", ylabel="GB on one device")
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.legend(loc="outside right upper")
    figure.savefig(png, dpi=110)
    pyplot.close(figure)


def main(argv: list[str]) -> int:
    parser = Parser("sweep", __doc__)
    setting_arguments(parser)
    parser.add_argument("--frames", type=count, nargs="+", default=FRAMES)
    parser.add_argument("--size", type=size, nargs="+", default=SIZES, help="width x height in pixels")
    parser.add_argument("--pass", dest="passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--csv", type=output, default="sweep.csv")
    parser.add_argument("--png", type=picture, help="draw the chart into this file")
    args = parser.parse_args(argv)
    settings = [setting_of(parser, args, frames, pixels)
                for pixels, frames in product(args.size, args.frames)]
    table = []
    with open(args.csv, "w", newline="") as file:
        for row in rows(settings, args.passes):
            if not table:
                writer = csv.DictWriter(file, row)
                writer.writeheader()
                print(" ".join(f"{name:>9}" for name in row))
            writer.writerow(row)
            file.flush()
            table.append(row)
            print(" ".join(f"{value:>9}" for value in row.values()), flush=True)
    if args.png:
        draw(table, args.png)
    return 0
