"""The table of all cases, its recorded baseline, and the regression check.

    python -m bench                    the table
    python -m bench attention gate     only cases with these prefixes
    python -m bench --avx2             both sides without AVX-512
    python -m bench --record           write this device's ratios and peaks to bench/record.json
    python -m bench --check            exit 1 if a case is slower or larger than recorded
    python -m bench --json t.json --png t.png
    python -m bench --trace runs/t     a torch.profiler trace per case, and on a GPU a memory snapshot

A wrong case is reported and not timed.  The check allows ours / torch to grow by SLOWER, peak memory by
LARGER.  Memory does not vary.  Time does: a case above the margin is measured again, longer each time, and
fails only if it is above RETRIALS more times; a record is measured three times as long.  A device without a
record is reported and passes.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch.profiler import profile

from bench.harness import CASES, Case, Row, absent, device_name, fault, heading, keep_pages, measure
from bench.options import Parser, count, folder, output, picture, seconds
from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.ops import cpu

# {device: {case: {"ratio": ours / torch, "peak": bytes, "share": of the limit's rate}}}
RECORD = Path(__file__).with_name("record.json")
SLOWER = {"cuda": 1.10, "cpu": 1.40}                # two shared cores moved medians of CPU time by up to 1.25
LARGER = 1.02
RETRIALS = 4
COPY = 0.85                                         # of a copy's speed on a GPU: the limit if an op moves
CACHE = 1 << 27                                     # more bytes than its cache holds


def losses(row: Row, known: dict, again: Callable[[int], Row], device: str) -> list[str]:
    """Returns regressions against the record `known`; again(n) remeasures the case, n times as long."""
    lost = []
    if row.peak > known["peak"] * LARGER:
        lost.append(f"{row.name}: peak memory is {row.peak:,} bytes, was {known['peak']:,}")
    bar, best = known["ratio"] * SLOWER[device], row.ratio
    for trial in range(RETRIALS):
        if best <= bar:
            return lost
        best = min(best, again(2 + trial).ratio)
    if best > bar:
        lost.append(f"{row.name}: ours / {row.baseline} is {best:.3f} in the best of {RETRIALS + 1} "
                    f"measurements, was {known['ratio']:.3f}; {bar:.3f} is allowed")
    return lost


HEAD = (f"{'case':24} {'ms':>10} {'times faster than':>17} {'rate':>17} {'share':>14}   "
        f"{'peak, MB':>9} {'torch, MB':>9}   times faster than peers")


def line(row: Row) -> str:
    peers = "".join(f"   {1 / r:.2f} {peer}" for peer, r in row.peers.items())
    theirs = f"{row.torch_peak / 1e6:9.2f}" if row.baseline == "torch" else " " * 9
    return (f"{row.name:24} {row.ms:10.3f} {1 / row.ratio:10.2f} {row.baseline:6} "
            f"{row.rate:9.3f} {row.unit:7} {row.share:5.0%} of {row.limit:6} {row.peak / 1e6:9.2f} "
            f"{theirs}{peers}").rstrip()


AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def without_avx512(argv: list[str]) -> None:
    """Runs our kernels and torch's with AVX2; torch reads its variables once, so the process restarts."""
    if not AVX2.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", "bench", *argv], os.environ | AVX2)
    cpu.use_isa("avx2")


def draw(rows: list[Row], png: Path, title: str) -> None:
    """Plots speed and memory relative to torch, a pair of bars per case."""
    import matplotlib
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 1.4 + 0.45 * len(rows)), layout="constrained")
    speed = [1 / r.ratio for r in rows]
    memory = [max(r.torch_peak, 1) / max(r.peak, 1) if r.baseline == "torch" else 1 for r in rows]
    for lower, label, values in ((-0.2, "time", speed), (0.2, "peak memory", memory)):
        axes.barh([place + lower for place in range(len(rows))], [v - 1 for v in values], 0.38, left=1,
                  label=label)
    for place, r in enumerate(rows):
        against = "" if r.baseline == "torch" else f"; against {r.baseline}, torch cannot"
        label, at = f"{r.ms:.3g} ms, {r.share:.0%} of {r.limit}{against}", (max(1, 1 / r.ratio), place - 0.2)
        axes.annotate(label, at, (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [r.name for r in rows])
    axes.set(xscale="log", xlabel="torch / ours: right of 1, ours is faster or smaller", title=title)
    axes.set(xlim=(0.5 * min(1, *speed), 8 * max(*speed, *memory)))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside upper right", ncols=2)
    figure.savefig(png, dpi=110)
    pyplot.close(figure)


def trace(name: str, case: Case, folder: Path, device: str) -> None:
    """Writes NAME.json for perfetto, with memory; on a GPU NAME.pickle for pytorch.org/memory_viz."""
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
    parser = Parser("", __doc__)
    parser.add_argument("names", nargs="*", help="cases with these name prefixes")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--json", type=output)
    parser.add_argument("--png", type=picture)
    parser.add_argument("--trace", type=folder, metavar="FOLDER")
    parser.add_argument("--threads", type=count, default=1, help="CPU threads; one is timed in CPU time")
    parser.add_argument("--seconds", type=seconds, default=1.0, help="timing per case")
    parser.add_argument("--avx2", action="store_true", help="both sides without AVX-512")
    args = parser.parse_args(argv)
    if args.avx2:
        parser.built(without_avx512, argv)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.set_num_threads(args.threads)
    keep_pages()
    named = device_name(device)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    known, rows, failed = record.setdefault(named, {}), [], []
    title = heading(device, dtype)
    here = [name for name in CASES if name.split("/")[1].startswith("cpu") == (device == "cpu")]
    for start in args.names:
        if not start or not any(name.startswith(start) for name in here):
            parser.error(f"no case with prefix {start!r} on this device; want one of {', '.join(here)}")
    print(f"{title}\n{HEAD}")
    for name in here:
        if args.names and not name.startswith(tuple(args.names)):
            continue
        torch.manual_seed(0)
        case = CASES[name](device=device, dtype=dtype)
        if wrong := fault(case, dtype):
            failed.append(f"{name}: {wrong}; not timed")
            print(failed[-1], flush=True)
            continue
        for peer, wrong in absent(case).items():
            print(f"{name}: {peer} is skipped: {wrong}", flush=True)
            del case.peers[peer]

        def again(times: int, name: str = name, case: Case = case) -> Row:
            return measure(name, case, device, dtype, times * args.seconds)

        row = again(3 if args.record else 1)
        rows.append(row)
        print(line(row), flush=True)
        if device == "cuda" and case.bytes_moved > CACHE and row.share < COPY:
            failed.append(f"{name}: {row.share:.0%} of a copy's speed; want {COPY:.0%}")
        if args.trace:
            trace(name, case, args.trace, device)
        if args.check and name in known:
            failed += losses(row, known[name], again, device)
        if args.record:
            known[name] = {"ratio": round(row.ratio, 4), "peak": row.peak, "share": round(row.share, 4)}
            with atomic_write(RECORD) as tmp:
                tmp.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    if args.json:
        written = {"device": title, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(written, indent=2) + "\n")
    if args.png and rows:
        draw(rows, args.png, title)
    if args.check and (new := [row.name for row in rows if row.name not in known]):
        print(f"not on record for {named}, so not checked (--record): {', '.join(new)}")
    print("\n".join(failed), end="\n" if failed else "")
    return int(bool(failed))
