"""Benchmark cases and their measurement: agreement with torch, then time, then the allocator's peak.

All sides of a row are timed in interleaved rounds in one process, so clock drift and noisy neighbours affect
all candidates alike; the recorded figure is the median over rounds of ours / torch.  With one CPU thread the
clock is the process's CPU time, which other processes do not lengthen; otherwise wall-clock time.  The limit,
a plain copy of the bytes a case must move or a plain matmul, is timed in the same rounds.  A share may exceed
100 %: an in-place op does not read a line before writing it, a copy does.  On a GPU a timing covers as many
calls as take BURST seconds, by the device's clock, queued while the device sleeps, so launches are not timed.
"""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 3e-2}       # relative, Frobenius; tests/ are stricter
BURST = 5e-3                                                  # seconds per timing on a GPU
WAIT = 2 * 10**7                                              # cycles, at least 10 ms: launching a burst
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3                   # of malloc.h
LARGE = 32 << 20                                              # glibc's own largest threshold
MATMUL = {"cpu": 768, "cuda": 8192}                           # side of the square matmul used as the limit


@dataclass(frozen=True)
class Case:
    """Two computations of the same tensors and their bytes or flops; a None result is not compared."""

    ours: Callable
    torch: Callable
    bytes_moved: int = 0                                      # minimum traffic of the op
    flops: int = 0
    peers: dict[str, Callable] = field(default_factory=dict)  # further candidates to time

    def __post_init__(self):
        if not (self.bytes_moved or self.flops):
            raise ValueError("Case: neither bytes_moved nor flops is given; want one, for its share")


@dataclass(frozen=True)
class Row:
    """A measured case.  rate: in `unit`; share: of the limit's rate in the same rounds.

    ratio: ours / torch, or ours / limit where torch's does not fit and returns None (baseline: which).
    peak, torch_peak: most bytes allocated in a call, without inputs.  peers: ours / theirs.
    """

    name: str
    ms: float
    torch_ms: float
    ratio: float
    baseline: str
    rate: float
    unit: str
    share: float
    limit: str
    peak: int
    torch_peak: int
    peers: dict[str, float]


CASES: dict[str, Callable[..., Case]] = {}


def case(name: str, **shapes: tuple):
    """Registers build(*shape, device, dtype) for each named shape; CPU shapes have names cpu..."""
    def register(build):
        for label, shape in shapes.items():
            CASES[f"{name}/{label}"] = lambda build=build, shape=shape, **kw: build(*shape, **kw)
        return build
    return register


def fault(case: Case, dtype: torch.dtype) -> str | None:
    """Returns why ours is wrong (an exception, a disagreement with torch), or None."""
    try:
        ours, theirs = case.ours(), case.torch()
    except Exception as error:                                # the other cases continue
        return first_line(error)
    apart = 0.0 if theirs is None else disagreement(ours, theirs)
    return None if apart <= AGREEMENT[dtype] else f"error of {apart:.1e} relative to torch's result"


def absent(case: Case) -> dict[str, str]:
    """Returns {peer: error} of the peers that raise."""
    found = {}
    for name, run in case.peers.items():
        try:
            run()
        except Exception as error:
            found[name] = first_line(error)
    return found


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def disagreement(ours, theirs) -> float:
    """Returns the largest relative Frobenius distance between the tensors of two results; nan if any is."""
    ours, theirs = ([x.double() for x in tree_leaves(r) if isinstance(x, Tensor)] for r in (ours, theirs))
    apart = [(a - b).norm() / b.norm().clamp_min(1e-30) for a, b in zip(ours, theirs, strict=True)]
    return torch.stack(apart).max().item() if apart else 0.0


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "cpu")
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} of its threads"


def keep_pages() -> None:
    """Makes glibc keep freed memory except blocks of LARGE bytes or more, as in a long-running process.

    Otherwise a case pays for fresh pages depending on the previous case: torch's side of
    attention_jvp/cpu_demo takes 1.5 times as long in a fresh process (EPYC, 2026-11-24).
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, LARGE)


def heading(device: str, dtype: torch.dtype) -> str:
    return f"{device_name(device)}, torch {torch.__version__}, {str(dtype).removeprefix('torch.')}"


def clock(device: str) -> Callable[[], float]:
    """Returns a function that waits for all submitted work and returns the time in seconds."""
    if device == "cpu":
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def after_sync() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()
    return after_sync


def rounds(ways: dict[str, Callable], device: str, seconds: float) -> dict[str, list[float]]:
    """Returns {candidate: ms per round}, in interleaved rounds, for `seconds` and at least three rounds."""
    now = clock(device)
    calls, ms = {}, {name: [] for name in ways}
    timing = queued if device == "cuda" else partial(wall, now)
    for name, run in ways.items():
        run()
        calls[name] = 1 if device == "cpu" else burst(run, now)
    start = now()
    while now() < start + seconds or len(ms["ours"]) < 3:
        for name, run in ways.items():
            ms[name].append(timing(run, calls[name]))
    return ms


def wall(now: Callable[[], float], run: Callable, calls: int) -> float:
    """Returns milliseconds per call."""
    before = now()
    for _ in range(calls):
        run()
    return 1e3 * (now() - before) / calls


def queued(run: Callable, calls: int) -> float:
    """Returns ms per call between two device events; the device sleeps until all calls are queued."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(WAIT)
    begun.record()
    for _ in range(calls):
        run()
    ended.record()
    ended.synchronize()
    return begun.elapsed_time(ended) / calls


def burst(run: Callable, now: Callable[[], float]) -> int:
    """Returns the number of calls that take BURST seconds."""
    before = now()
    run()
    return max(1, round(BURST / (now() - before)))


def ratio(ms: dict[str, list[float]], way: str, to: str) -> float:
    return median(a / b for a, b in zip(ms[way], ms[to], strict=True))


def allocated(run: Callable, device: str) -> int:
    """Returns the peak bytes that one call allocates, from the allocator's record."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def limit(case: Case, device: str, dtype: torch.dtype) -> tuple[str, Callable, float]:
    """Returns (name, run, bytes or flops per run) of the limit: a copy or a matmul."""
    if case.flops:
        side = MATMUL[device]
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        return "matmul", lambda: a @ b, 2 * side**3
    source = torch.ones(max(1, case.bytes_moved // 8), device=device)
    target = torch.ones_like(source)
    return "copy", lambda: target.copy_(source), 8 * source.numel()


def measure(name: str, case: Case, device: str, dtype: torch.dtype, seconds: float = 1.0) -> Row:
    """Measures the time and memory of a case."""
    named, run, work = limit(case, device, dtype)
    ms = rounds({"ours": case.ours, "torch": case.torch, named: run} | case.peers, device, seconds)
    fits = case.torch() is not None or case.ours() is None      # an op in place returns None on both sides
    mine, baseline = median(ms["ours"]), "torch" if fits else named
    cost = case.flops or case.bytes_moved
    return Row(
        name, mine, median(ms["torch"]), ratio(ms, "ours", baseline), baseline,
        rate=cost / mine / (1e9 if case.flops else 1e6), unit="TFLOP/s" if case.flops else "GB/s",
        share=ratio(ms, named, "ours") * cost / work, limit=named,
        peak=allocated(case.ours, device), torch_peak=allocated(case.torch, device),
        peers={peer: ratio(ms, "ours", peer) for peer in case.peers})
