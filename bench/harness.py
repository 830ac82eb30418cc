"""Time registered cases against torch, and hold the ratios to the ones on record.

    python -m bench                    the table
    python -m bench attention gate     only the cases whose names begin so
    python -m bench --threads 1        on this many threads
    python -m bench --check            exit 1 if a case lost more of its lead than LOSS_ALLOWED since recorded
    python -m bench --record           write this device's ratios to bench/record.json

A case is timed only if its result agrees with torch's.  All of a row is timed turn about in one process, so that
clocks and neighbours move all sides together, and the least time counts, since a neighbour only adds: ratios are
what to keep.  `copy` moves as many bytes as the case must: what a memory-bound op is judged by.
A device without a record is said so and passes: a claim about a GPU is checked where there is that GPU.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

RECORD = Path(__file__).with_name("record.json")              # {device: {"case/shape": ours / torch}}
LOSS_ALLOWED = {"cuda": 0.10, "cpu": 2.0}     # a shared CPU moved a ratio from 0.11 to 0.25 between runs
AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 3e-2}       # relative, Frobenius; tests/ ask for more


@dataclass(frozen=True)
class Case:
    """Two ways to the same tensors, and what the work costs; a callable that returns None is not compared."""

    ours: Callable
    torch: Callable
    bytes_moved: int = 0                                      # the least the op can move
    flops: int = 0
    peers: dict[str, Callable] = field(default_factory=dict)  # others, timed beside the two
    note: str = ""                                            # said at the end of the line


CASES: dict[str, Callable[..., Case]] = {}


def case(name: str, **shapes: tuple):
    """Register build(*shape, device, dtype) for each named shape; the ones a CPU runs are named cpu..."""
    def register(build):
        for label, shape in shapes.items():
            CASES[f"{name}/{label}"] = lambda build=build, shape=shape, **kw: build(*shape, **kw)
        return build
    return register


def disagreement(ours, theirs) -> float:
    """The largest relative Frobenius distance between the tensors of two results."""
    tensors = ([x.double() for x in tree_leaves(result) if isinstance(x, Tensor)] for result in (ours, theirs))
    pairs = zip(*tensors, strict=False)
    return max((((a - b).norm() / b.norm().clamp_min(1e-30)).item() for a, b in pairs), default=0.0)


def paired_ms(ways: dict[str, Callable], device: str, seconds: float = 3.0) -> dict[str, float]:
    """Least milliseconds of each way, called turn about so that drift falls on all; at least five rounds."""
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    for run in ways.values():
        run()
    ms = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(ms["ours"]) < 5:
        for name, run in ways.items():
            sync()
            start = time.perf_counter()
            run()
            sync()
            ms[name].append(1e3 * (time.perf_counter() - start))
    return {name: min(times) for name, times in ms.items()}


def plain_copy(bytes_moved: int, device: str) -> Callable:
    """Read half the bytes, write the other half."""
    source = torch.ones(max(1, bytes_moved // 8), device=device)
    target = torch.ones_like(source)
    return lambda: target.copy_(source)


def row(name: str, case: Case, device: str) -> float:
    """Time one case, print its line, return ours / torch."""
    ways = {"ours": case.ours, "torch": case.torch} | case.peers
    if case.bytes_moved:
        ways["copy"] = plain_copy(case.bytes_moved, device)
    ms = paired_ms(ways, device)
    line = f"{name:24} {ms['ours']:9.3f} ms   torch / ours {ms['torch'] / ms['ours']:6.2f}"
    line += "".join(f"   ours / {peer} {ms['ours'] / ms[peer]:5.2f}" for peer in case.peers)
    if case.flops:
        line += f"   {case.flops / ms['ours'] / 1e6:8.1f} GFLOP/s"
    if case.bytes_moved:
        line += f"   {case.bytes_moved / ms['ours'] / 1e6:8.1f} GB/s, {ms['copy'] / ms['ours']:.0%} of a copy"
    print(line + ("   " + case.note if case.note else ""), flush=True)
    return round(ms["ours"] / ms["torch"], 4)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("names", nargs="*", help="only the cases whose names begin with one of these")
    parser.add_argument("--check", action="store_true", help="exit 1 if a ratio is worse than recorded")
    parser.add_argument("--record", action="store_true", help="write the ratios to bench/record.json")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    named = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.set_num_threads(args.threads)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    known, ratios, failed = record.get(named, {}), {}, []
    print(f"{named}, torch {torch.__version__}, {args.threads} threads, {dtype}")
    for name, build in CASES.items():
        here = name.split("/")[1].startswith("cpu") == (device == "cpu")
        if not here or args.names and not name.startswith(tuple(args.names)):
            continue
        case = build(device=device, dtype=dtype)
        apart = disagreement(case.ours(), case.torch())
        if apart > AGREEMENT[dtype]:
            failed.append(f"{name}: {apart:.1e} away from torch's result; not timed")
            continue
        ratios[name] = row(name, case, device)
        if args.check and ratios[name] > known.get(name, float("inf")) * (1 + LOSS_ALLOWED[device]):
            failed.append(f"{name}: ours / torch is {ratios[name]}, was {known[name]}")
    if args.record:
        RECORD.write_text(json.dumps(record | {named: known | ratios}, indent=2, sort_keys=True) + "\n")
    if args.check and not known:
        print(f"no record for {named}: nothing to check (record it with --record)")
    print("\n".join(failed), end="\n" if failed else "")
    return int(bool(failed))
