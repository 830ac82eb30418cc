"""python -m bench growth: time and memory against tokens, and the slopes of both on a log-log chart.

Attention's time should grow quadratically with the tokens and its memory linearly; the rest linearly in both.
On a CPU the network is the tiny preset, on a GPU the 1.3B one.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch

from bench.bench_network import draw
from bench.harness import allocated, heading, rounds
from bench.options import Parser, count, picture
from bench.passes import Setting, velocity
from swiftvideo_fast import jvp
from swiftvideo_fast.ops.attention import attention_jvp
from swiftvideo_fast.ops.modulate import modulate_jvp

FRAMES = {"cpu": (5, 13, 29, 61), "cuda": (13, 29, 61, 125)}      # 2, 4, 8, 16; 4, 8, 16, 32 latent frames
SIDES = {"cpu": (256, 256), "cuda": (832, 480)}
SECONDS = 0.3                                                     # timing per point


def passes(frames: int, device: str, dtype: torch.dtype) -> tuple[int, dict[str, Callable]]:
    """Returns (tokens, {name: pass on that many tokens})."""
    preset = {"cpu": "tiny", "cuda": "1.3b"}[device]
    setting, net, point, condition = draw(preset, frames, *SIDES[device], device, dtype)
    N, C, H = setting.tokens, net.config.dim, net.config.heads
    q, tq, k, tk, v, tv = (torch.randn(1, H, N, C // H, device=device, dtype=dtype) for _ in range(6))
    x, tx = (torch.randn(1, N, C, device=device, dtype=dtype) for _ in range(2))
    s, ts, b, tb = (torch.randn(1, C, device=device) for _ in range(4))

    @torch.no_grad()
    def network():
        return jvp(lambda x, t: velocity(net, x, t, condition), (point.x_t, point.t),
                   (point.velocity, torch.ones_like(point.t)))

    return N, {"attention_jvp": lambda: attention_jvp(q, tq, k, tk, v, tv, (C // H) ** -0.5, False),
               "modulate_jvp": lambda: modulate_jvp(x, tx, s, ts, b, tb, 1e-6),
               "network_jvp": network}


def slope(xs: list[float], ys: list[float]) -> float:
    """Returns the slope of the least-squares line through (log x, log y)."""
    xs, ys = ([math.log(value) for value in values] for values in (xs, ys))
    middle = sum(xs) / len(xs)
    return sum((x - middle) * y for x, y in zip(xs, ys)) / sum((x - middle) ** 2 for x in xs)


def measure(frames: list[int], device: str, dtype: torch.dtype) -> dict[str, list[tuple[int, float, int]]]:
    """Returns {name: [(tokens, ms, bytes)]}; ms is the minimum, as other processes only add time."""
    points = {}
    for each in frames:
        N, runs = passes(each, device, dtype)
        for name, run in runs.items():
            ms = min(rounds({"ours": run}, device, SECONDS)["ours"])
            points.setdefault(name, []).append((N, ms, allocated(run, device)))
    return points


def draw_chart(points: dict, png: Path, title: str) -> None:
    import matplotlib
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
    for axes, at, scale, unit in zip(panels, (1, 2), (1, 1e6), ("ms", "MB beyond inputs and weights")):
        for (name, line), style in zip(points.items(), ("o-", "s--", "^-")):
            xs, ys = [p[0] for p in line], [p[at] / scale for p in line]
            axes.loglog(xs, ys, style, label=f"{name}: slope {slope(xs, ys):.2f}")
        axes.set(xlabel="tokens", ylabel=unit)
        axes.set_xticks(xs, [f"{n:,}" for n in xs])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.suptitle(title)
    figure.savefig(png, dpi=110)
    pyplot.close(figure)


def main(argv: list[str]) -> int:
    parser = Parser("growth", __doc__)
    parser.add_argument("--frames", type=count, nargs="+", help="4n + 1 each")
    parser.add_argument("--png", type=picture, help="draw the chart into this file")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    frames = args.frames or FRAMES[device]
    for each in frames:
        parser.built(Setting, frames=each, size=SIDES[device])
    if len(set(frames)) < 2:
        parser.error(f"--frames: {frames[0]}; want two different numbers or more, for a slope")
    points = measure(frames, device, dtype)
    title = heading(device, dtype)
    print(title)
    for name, line in points.items():
        tokens, ms, size = map(list, zip(*line))
        each = ", ".join(f"{n:,} tokens {t:.2f} ms {b / 1e6:.1f} MB" for n, t, b in line)
        print(f"{name:14} time ~ N^{slope(tokens, ms):.2f}   memory ~ N^{slope(tokens, size):.2f}"
              f"   ({each})")
    if args.png:
        draw_chart(points, args.png, title)
    return 0
