"""python -m bench sweep: frames x resolution x pass, as a CSV and a chart: what fits on one device.

    python -m bench sweep --preset wan-1.3b --pass jvp train step --csv sweep.csv --png sweep.png
"""

import argparse
import csv
from itertools import product

from bench.memory import DEVICES_GB, USABLE, faked, setting_arguments, setting_of
from bench.passes import PASSES, Setting

FRAMES = (17, 33, 61, 81, 121)
SIZES = ("832x480", "1280x720")
MARKERS = 2 * "os^Dvp*X"


def rows(settings: list[Setting], passes: list[str]):
    """A dict a setting and pass: tokens, GB held, peak, their sum, and whether each device fits it."""
    for setting, name in product(settings, passes):
        account = faked(PASSES[name], setting)
        total = (account.known_bytes + account.peak) / 1e9
        yield {"preset": setting.preset, "pass": name, "frames": setting.frames,
               "size": "x".join(map(str, setting.size)), "tokens": setting.tokens,
               "held_gb": round(account.known_bytes / 1e9, 3), "peak_gb": round(account.peak / 1e9, 3),
               "total_gb": round(total, 3)} | {f"fits_{gb}": int(total <= USABLE * gb) for gb in DEVICES_GB}


def draw(table: list[dict], png: str) -> None:
    """Total GB over tokens: a line a pass, a marker a size, frames beside the last line, a level a device."""
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
        for tokens, gb, size, frames in points:
            place = sizes.index(size)
            axes.plot(tokens, gb, MARKERS[place], color=f"C{colour}")
            if name == passes[-1]:
                axes.annotate(frames, (tokens, gb), (0, -14 if place % 2 else 7), textcoords="offset points",
                              ha="center", fontsize=8)
    for place, size in enumerate(sizes):
        where = "below" if place % 2 else "above"
        axes.plot([], [], MARKERS[place], color="grey", label=f"{size}, frames {where}")
    for gb in DEVICES_GB:
        axes.axhline(USABLE * gb, color="grey", linestyle=":")
        axes.annotate(f"{USABLE:.0%} of {gb} GB", (0, USABLE * gb), (4, 3), textcoords="offset points")
    axes.set(title=f"wan-{table[0]['preset']}, one clip", xlabel="tokens", ylabel="GB on one device")
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.legend(loc="outside right upper")
    figure.savefig(png, dpi=110)
    pyplot.close(figure)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench sweep", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    setting_arguments(parser)
    parser.add_argument("--frames", type=int, nargs="+", default=FRAMES)
    parser.add_argument("--size", nargs="+", default=SIZES, help="width x height in pixels")
    parser.add_argument("--pass", dest="passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--csv", default="sweep.csv")
    parser.add_argument("--png", help="draw the chart into this file")
    args = parser.parse_args(argv)
    settings = [setting_of(args, frames, size) for size, frames in product(args.size, args.frames)]
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
