"""The table of all cases, what is kept of it, and the check that holds a commit to what was kept.

    python -m bench                    the table
    python -m bench attention gate     only the cases whose names begin so
    python -m bench --record           write this device's ratios and peaks to bench/record.json
    python -m bench --check            exit 1 if a case lost time or memory since recorded
    python -m bench --json t.json --png t.png
    python -m bench --trace runs/t     a torch.profiler trace a case, and on a GPU a memory snapshot

A case that is wrong is reported, not timed.  The check allows ours / torch to grow by SLOWER, peak memory by
LARGER.  Memory does not vary.  Time does: a case over the margin is a suspect, measured again, longer each
time, and condemned only if it is over it RETRIALS times more; a record is the median of three measurements.
A device without a record is said so and passes: a claim about a GPU is checked where there is that GPU.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import torch
from torch.profiler import profile

from bench.harness import CASES, Case, Row, fault, measure

RECORD = Path(__file__).with_name("record.json")    # {device: {case: {"ratio": ours / torch, "peak": bytes}}}
SLOWER = {"cuda": 1.10, "cpu": 1.40}                # two shared cores moved medians of CPU time by up to 1.25
LARGER = 1.02
RETRIALS = 4


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "cpu")
    return f"{model}, {torch.get_num_threads()} of its threads"


def losses(row: Row, known: dict, again: Callable[[int], Row], device: str) -> list[str]:
    """What the case lost since `known` was recorded; again(n) measures it once more, n times as long."""
    lost = []
    if row.peak > known["peak"] * LARGER:
        lost.append(f"{row.name}: peak memory is {row.peak:,} bytes, was {known['peak']:,}")
    bar, best = known["ratio"] * SLOWER[device], row.ratio
    for trial in range(RETRIALS):
        if best <= bar:
            return lost
        best = min(best, again(2 + trial).ratio)
    if best > bar:
        lost.append(f"{row.name}: ours / {row.beside} is {best:.3f} in the best of {RETRIALS + 1} "
                    f"measurements, was {known['ratio']:.3f}; {bar:.3f} is allowed")
    return lost


def line(row: Row) -> str:
    peers = "".join(f"   {r:.2f} x {peer}" for peer, r in row.peers.items())
    memory = f"{row.peak / 1e6:9.2f} MB, torch {row.torch_peak / 1e6:9.2f}"
    return (f"{row.name:24} {row.ms:10.3f} ms {1 / row.ratio:7.2f} x {row.beside:6} "
            f"{row.rate:9.3f} {row.unit:7} {row.share:5.0%} of {row.limit:6} {memory}{peers}")


def draw(rows: list[Row], png: str, title: str) -> None:
    """How many times faster than torch, and how much less memory, a pair of bars a case."""
    import matplotlib
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.5 * len(rows)), layout="constrained")
    places = range(len(rows))
    speed = axes.barh([p - 0.2 for p in places], [1 / r.ratio for r in rows], 0.38, label="time")
    axes.barh([p + 0.2 for p in places], [max(r.torch_peak, 1) / max(r.peak, 1) for r in rows], 0.38,
              label="peak memory")
    axes.bar_label(speed, [f"{r.ms:.3g} ms, {r.share:.0%} of {r.limit}" for r in rows], padding=3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(places, [r.name for r in rows])
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="torch / ours", title=title)
    axes.margins(x=0.3)
    axes.legend()
    figure.savefig(png, dpi=110)
    pyplot.close(figure)


def trace(name: str, case: Case, folder: Path, device: str) -> None:
    """NAME.json for perfetto, memory in it; on a GPU NAME.pickle for pytorch.org/memory_viz."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / name.replace("/", "-")
    if device == "cuda":
        torch.cuda.memory._record_memory_history()
    with profile(profile_memory=True, record_shapes=True) as profiled:
        case.ours()
    profiled.export_chrome_trace(f"{stem}.json")
    if device == "cuda":
        torch.cuda.memory._dump_snapshot(f"{stem}.pickle")
        torch.cuda.memory._record_memory_history(enabled=None)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only the cases whose names begin with one of these")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png")
    parser.add_argument("--trace", type=Path, metavar="FOLDER")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU; the time of one is CPU time")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a case is timed for")
    args = parser.parse_args(argv)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.set_num_threads(args.threads)
    named = device_name(device)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    known, rows, failed = record.get(named, {}), [], []
    title = f"{named}, torch {torch.__version__}, {str(dtype).removeprefix('torch.')}"
    print(title)
    for name, build in CASES.items():
        here = name.split("/")[1].startswith("cpu") == (device == "cpu")
        if not here or args.names and not name.startswith(tuple(args.names)):
            continue
        torch.manual_seed(0)
        case = build(device=device, dtype=dtype)
        if wrong := fault(case, dtype):
            failed.append(f"{name}: {wrong}; not timed")
            print(failed[-1])
            continue

        def again(times: int, name: str = name, case: Case = case) -> Row:
            return measure(name, case, device, dtype, times * args.seconds)

        row = again(1)
        if args.record:
            ratios = [row.ratio, *(again(1).ratio for _ in range(2))]
            row = replace(row, ratio=median(ratios))
        rows.append(row)
        print(line(row), flush=True)
        if args.trace:
            trace(name, case, args.trace, device)
        if args.check and name in known:
            failed += losses(row, known[name], again, device)
    if args.record:
        kept = {row.name: {"ratio": round(row.ratio, 4), "peak": row.peak} for row in rows}
        RECORD.write_text(json.dumps(record | {named: known | kept}, indent=2, sort_keys=True) + "\n")
    if args.json:
        told = {"device": title, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(told, indent=2) + "\n")
    if args.png:
        draw(rows, args.png, title)
    if args.check and (new := [row.name for row in rows if row.name not in known]):
        print(f"not on record for {named}, so not checked (--record): {', '.join(new)}")
    print("\n".join(failed), end="\n" if failed else "")
    return int(bool(failed))
