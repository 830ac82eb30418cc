"""python -m bench memory: the peak memory of a pass of the real network, on any machine.

    python -m bench memory --preset 1.3b --frames 61 --size 832x480 --pass jvp
    python -m bench memory --pass step --png step.png   a CCD step over time, phases in colours
    python -m bench memory --against torch --png t.png  also torch.func.jvp with math attention
    python -m bench memory --table                      1.3B and 14B on 80 and 141 GB, as Markdown

bench/passes.py defines the passes.  In the table n devices shard weights, states and gradients as under
ZeRO-3: each has an n-th, two gathered blocks, and its own clip.  On a GPU, and with --measure on a CPU, the
pass also runs, with zero weights, and the allocator's peak is printed next to the prediction.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from bench import meta
from bench.account import GRADIENT, OUTSIDE, Account, grouped
from bench.harness import allocated, device_name
from bench.options import Parser, count, picture, size
from bench.passes import PASSES, Setting, jvp_pass, plain_torch
from swiftvideo_fast.models.wan.network import RECOMPUTE
from swiftvideo_fast.models.wan.sizes import PRESETS
from swiftvideo_fast.plan import USABLE

DEVICES_GB = (80, 141)                  # H100, H200


def faked(build: Callable, setting: Setting) -> Account:
    """Returns the predicted account of a pass, without computing it."""
    with torch.device("meta"), meta.as_on_a_device():
        account, run = build(setting)
        with account:
            run()
    return account


def by_torch(setting: Setting) -> Account:
    """Returns the account of torch.func.jvp with math attention."""
    with plain_torch():
        return faked(partial(jvp_pass, transform=torch.func.jvp), setting)


def measured(build: Callable, setting: Setting, device: str) -> int:
    """Returns the allocator's peak bytes beyond weights and states, in a real pass."""
    with torch.device(device):
        account, run = build(setting)
        given = account.alive
        if device == "cuda":
            run()                       # the first pass also builds kernels and handles
        return given + allocated(run, device)


def report(name: str, setting: Setting, account: Account) -> str:
    """Returns a report: peak, its op and module, the storages alive there; those under 1 % are summed."""
    planes = [p for p in account.planes if p.where != GRADIENT]
    gradients = sum(p.bytes for p in account.planes) - sum(p.bytes for p in planes)
    large = [(n, p) for n, p in grouped(planes) if n * p.bytes >= 0.01 * account.peak]
    small = account.peak - gradients - sum(n * p.bytes for n, p in large)
    width, height = setting.size
    dtype = str(setting.dtype).removeprefix("torch.")
    return "\n".join([
        f"{name} pass of {setting.preset}, {dtype}, {setting.frames} frames of {width}x{height}: "
        f"{setting.tokens:,} tokens",
        f"weights and states {account.known_bytes / 1e9:10.4g} GB",
        f"peak beyond them   {account.peak / 1e9:10.4g} GB   at {account.op} in {account.where}",
        *[f"{gradients / 1e6:12.1f} MB   gradients"] * bool(gradients),
        *(f"{n * p.bytes / 1e6:12.1f} MB   {n} of {p}" for n, p in large),
        f"{small / 1e6:12.1f} MB   smaller planes"])


def spans(account: Account) -> Iterator[tuple[int, int, str]]:
    """Yields (first op, end, name) of each phase: a network's, or the final "update"."""
    ends = [begin for begin, _ in account.phases[1:]] + [len(account.timeline)]
    for (begin, phase), end in zip(account.phases, ends, strict=True):
        if not phase.startswith(OUTSIDE):
            yield begin, end, phase
        elif end == len(account.timeline) and begin and account.phases[-2][1].endswith("backward"):
            yield begin, end, "update"


def draw(accounts: dict[str, Account], png: Path, title: str) -> None:
    """Plots live bytes after each op: a panel per account, one scale, coloured phases, a labelled peak."""
    import matplotlib
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(accounts), figsize=(6 + 5 * len(accounts), 4.4), sharey=True,
                                     squeeze=False, layout="constrained")
    highest = max(account.peak for account in accounts.values()) / 1e9
    colours = {}
    for axes, (name, account) in zip(panels[0], accounts.items(), strict=True):
        alive = [b / 1e9 for b in account.timeline]
        axes.fill_between(range(len(alive)), alive, step="post", color="#d0d0d0", linewidth=0)
        for begin, end, phase in spans(account):
            colour = colours.setdefault(phase, f"C{len(colours)}")
            axes.fill_between(range(begin, end), alive[begin:end], step="post", color=colour, linewidth=0)
        top = max(range(len(alive)), key=alive.__getitem__)
        peak = f"{name}: {account.peak / 1e9:.3g} GB\n{account.op} in {account.where}"
        axes.annotate(peak, (top, alive[top]), (0.5, 0.97), textcoords="axes fraction", ha="center", va="top",
                      arrowprops={"arrowstyle": "-"})
        axes.set(xlabel="operations", xlim=(0, len(alive)), ylim=(0, 1.3 * highest))
    panels[0][0].set(ylabel="GB alive beyond weights and states")
    for phase, colour in colours.items():
        panels[0][0].fill_between([], [], color=colour, label=phase)
    figure.legend(loc="outside lower center", ncols=len(colours))
    figure.suptitle(title)
    figure.savefig(png, dpi=110)
    pyplot.close(figure)


def devices_needed(account: Account, gathered: int, capacity_gb: int) -> int | None:
    """Returns the least number of devices, sharding weights, states and gradients, that fit the pass."""
    usable = USABLE * capacity_gb * 1e9
    if account.known_bytes + account.peak <= usable:
        return 1
    left = usable - account.peak_activations - gathered
    shared = account.known_bytes + account.peak_gradients
    return max(2, math.ceil(shared / left)) if left > 0 else None


def table(settings: list[Setting]) -> Iterator[str]:
    """Yields Markdown lines: memory and devices needed by each network and pass."""
    columns = ["network", "pass", "weights and states, GB", "gradients", "activations",
               "peak beyond weights and states", *(f"devices of {gb} GB" for gb in DEVICES_GB)]
    yield f"| {' | '.join(columns)} |\n|---|---|{'--:|' * (len(columns) - 2)}"
    for setting in settings:
        with torch.device("meta"):
            block = setting.network(trained=False).blocks[0]
        gathered = 2 * sum(p.numel() * p.element_size() for p in block.parameters())
        for name, build in PASSES.items():
            account = faked(build, setting)
            needed = [devices_needed(account, gathered, gb) or "none" for gb in DEVICES_GB]
            sizes = account.known_bytes, account.peak_gradients, account.peak_activations, account.peak
            yield (f"| Wan {setting.preset} | {name} | {' | '.join(f'{b / 1e9:.2f}' for b in sizes)} | "
                   f"{' | '.join(map(str, needed))} |")


def setting_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default=Setting.preset, choices=PRESETS)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--recompute", default=Setting.recompute, choices=RECOMPUTE, help="of the student")
    parser.add_argument("--moments", type=int, default=Setting.moments, choices=(32, 8), help="bits")


def setting_of(parser: Parser, args: argparse.Namespace, frames: int, pixels: tuple[int, int]) -> Setting:
    return parser.built(Setting, args.preset, frames, pixels, getattr(torch, args.dtype),
                        args.recompute, args.moments)


def main(argv: list[str]) -> int:
    parser = Parser("memory", __doc__)
    setting_arguments(parser)
    parser.add_argument("--frames", type=count, default=61)
    parser.add_argument("--size", type=size, default=(832, 480), help="width x height in pixels")
    parser.add_argument("--pass", dest="name", choices=PASSES, help="default jvp")
    parser.add_argument("--against", choices=["torch"], help="also torch.func.jvp with math attention")
    parser.add_argument("--measure", action="store_true", help="also run the pass; always on a GPU")
    parser.add_argument("--png", type=picture, help="draw the timeline into this file")
    parser.add_argument("--table", action="store_true", help="every pass of 1.3B and 14B, as Markdown")
    args = parser.parse_args(argv)
    if args.table and (args.name or args.against or args.measure or args.png):
        parser.error("--table predicts every pass; want no --pass, --against, --measure or --png with it")
    args.name = args.name or "jvp"
    if args.against and args.name != "jvp":
        parser.error(f"--against {args.against} needs the JVP pass: want --pass jvp, found {args.name}")
    setting = setting_of(parser, args, args.frames, args.size)
    if args.table:
        for line in table([replace(setting, preset=name) for name in ("1.3b", "14b")]):
            print(line, flush=True)
        return 0
    account = faked(PASSES[args.name], setting)
    said = report(args.name, setting, account)
    print(said)
    shown = {"ours": account}
    if args.against:
        theirs = shown["torch.func.jvp"] = by_torch(setting)
        print(f"torch.func.jvp     {theirs.peak / 1e9:10.4g} GB   at {theirs.op} in {theirs.where}: "
              f"{theirs.peak / account.peak:.1f} times ours, predicted")
    if args.measure or torch.cuda.is_available():
        device = "cuda" if torch.cuda.is_available() else "cpu"
        found = measured(PASSES[args.name], setting, device)
        print(f"measured           {found / 1e9:10.4g} GB   on {device_name(device)}: the account is "
              f"{account.peak / found - 1:+.1%} from it")
    if args.png:
        draw(shown, args.png, said.splitlines()[0])
    return 0
