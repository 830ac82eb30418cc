"""Errors, repeatability and speed of attention_jvp_hopper on a Hopper card: `make gpu PART=hopper`, 90 s.

    python -m bench hopper_card                 all parts, each a process with a limit; writes OUT/hopper.json
    python -m bench hopper_card --part right    one part, in this process

`tritons` launches the cubins that `hopper_report --cubin DIR` wrote with other triton versions, if
$HOPPER_CUBINS is DIR.  Parts without timing run in parallel, together with the compilation for `speed`.  A
part that times out is reported with its last case: a hang means wrong barriers.  OUT: $OUT, or runs/gpu.
"""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import triton
from swiftvideo_kernels.attention_jvp import attention_jvp
from swiftvideo_kernels.hopper import attention_jvp_hopper
from swiftvideo_kernels.tiles import TILES
from torch import Tensor
from triton.runtime.jit import JITFunction

from bench.options import Parser

OUT = Path(os.environ.get("OUT", Path(__file__).parents[1] / "runs/gpu"))
BY_HAND, BY_HAND_64 = (TILES["attention_jvp", "sm90", width][0] for width in (128, 64))
BF16, F16 = torch.bfloat16, torch.float16
LIMITS = {"right": 45, "masks": 45, "widths": 45, "repeats": 45, "race": 50, "compile": 45, "speed": 40,
          "tritons": 15}
SHARES = {"right": 2, "masks": 2, "widths": 4, "repeats": 1, "race": 1, "compile": 6}   # processes
QUIET = "tritons", "speed"                                      # parts that need the GPU alone
Args = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor, Tensor | None]


def draw(B, H, N, D, G=None, M=None, dtype=BF16, given=(1, 1, 1)) -> Args:
    """Returns q, tq, k, tk, v, tv as (B, H, N, D) views of (B, N, H, D); given: which of tq, tk, tv."""
    def one(tokens, heads):
        return torch.randn(B, tokens, heads, D, device="cuda", dtype=dtype).transpose(1, 2)
    q, tq = one(N, H), one(N, H)
    k, tk, v, tv = (one(M or N, G or H) for _ in range(4))
    return (q, tq if given[0] else None, k, tk if given[1] else None, v, tv if given[2] else None)


def exact(args: Args, scale: float, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (o, to, lse) in float64."""
    q, tq, k, tk, v, tv = (None if x is None else x.double() for x in args)
    tq, tk, tv = (torch.zeros_like(x) if t is None else t for x, t in ((q, tq), (k, tk), (v, tv)))
    k, tk, v, tv = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, tk, v, tv))
    s, ts = scale * q @ k.mT, scale * (tq @ k.mT + q @ tk.mT)
    if causal:
        s = s.masked_fill(torch.ones_like(s, dtype=torch.bool).triu(1), -torch.inf)
    p = s.softmax(-1)
    h = p * ts
    return p @ v, h @ v + p @ tv - h.sum(-1, keepdim=True) * (p @ v), s.logsumexp(-1)


def errors(got, want) -> list[float]:
    """Returns relative Frobenius errors; absolute where the exact value is zero."""
    return [((a.double() - b).norm() / (b.norm() if b.norm() > 0 else 1)).item() for a, b in zip(got, want)]


def poison() -> None:
    """Fills the allocator's next blocks with NaN."""
    blocks = [torch.full((1 << size,), torch.nan, device="cuda") for size in range(8, 26)]
    torch.cuda.synchronize()
    del blocks


class Results:
    """Rows of one part's share: printed, and written to disk after each."""

    def __init__(self, part: str, share: int):
        self.path, self.rows = OUT / f"hopper-{part}-{share}.json", {}
        self.share, self.of, self.asked = share, SHARES.get(part, 1), 0

    def wanted(self) -> bool:
        """True if the next case belongs to this share."""
        self.asked += 1
        return self.asked % self.of == self.share

    def add(self, name: str, **row) -> None:
        self.rows[name] = row
        self.path.write_text(json.dumps(self.rows, indent=1) + "\n")
        said = [f"{key} {x:.3g}" if isinstance(x, float) else f"{key} {x}" for key, x in row.items()]
        print("  ", name, *said, flush=True)


def checked(results: Results, name: str, args: Args, causal=False, some: int | None = None,
            tile=None) -> None:
    """Compares one call with float64: all queries, or `some` of the first and last head."""
    if not results.wanted():
        return
    print("  begins", name, flush=True)
    dtype, scale = args[0].dtype, args[0].shape[-1] ** -0.5
    poison()
    got = attention_jvp(*args, scale, causal, tile=tile)
    torch.cuda.synchronize()
    if some is None:
        worst = errors(got, exact(args, scale, causal))
    else:
        rows, worst = torch.linspace(0, args[0].shape[2] - 1, some, device="cuda").long(), [0.0] * 3
        for head in (0, args[0].shape[1] - 1):
            mine = [None if x is None else x[:, head:head + 1] for x in args]
            mine[:2] = [None if x is None else x[:, :, rows] for x in mine[:2]]
            found = errors([x[:, head:head + 1, rows] for x in got], exact(tuple(mine), scale, causal))
            worst = [max(pair) for pair in zip(worst, found)]
    finer = 8 if dtype == F16 else 1
    right = worst[0] <= 2.5e-3 / finer and worst[1] <= 3.5e-3 / finer and worst[2] <= 1e-5
    results.add(name, o=worst[0], to=worst[1], lse=worst[2], right=right)


def right(results: Results) -> None:
    for N, M in ((128, 128), (1, 1), (63, 65), (257, 515), (999, 999), (127, 512)):
        for given in ((1, 1, 1), (1, 0, 0)):
            args = draw(2, 4, N, 128, 2, M, given=given)
            checked(results, f"(2, 4, {N}) x (2, {M}), tangents {given}", args)
    checked(results, "(1, 12, 24960)", draw(1, 12, 24960, 128), some=64)
    checked(results, "(1, 40, 32760)", draw(1, 40, 32760, 128), some=64)
    for M in (512, 257):
        checked(results, f"(1, 12, 24960) x {M}, constant keys",
                draw(1, 12, 24960, 128, M=M, given=(1, 0, 0)), some=64)


def masks(results: Results) -> None:
    for D in (128, 64):
        for N, M in ((515, 515), (300, 130), (70, 300), (1024, 1024)):
            checked(results, f"causal, width {D}, (1, 4, {N}) x {M}", draw(1, 4, N, D, 2, M), causal=True)
    for causal in (False, True):
        for D in (128, 64):
            packed(results, D, causal)


def packed(results: Results, D: int, causal: bool) -> None:
    lengths = [(190, 77), (0, 5), (325, 325), (5, 0), (700, 1), (129, 700), (0, 3)]
    cu = [torch.tensor([0, *x], device="cuda").cumsum(0).int() for x in zip(*lengths)]
    args = draw(1, 4, int(cu[0][-1]), D, 2, int(cu[1][-1]))
    if not results.wanted():
        return
    poison()
    name = f"packed, width {D}{', causal' * causal}"
    print("  begins", name, flush=True)
    got = attention_jvp(*args, D**-0.5, causal, cu_q=cu[0], cu_k=cu[1], max_q=700)
    torch.cuda.synchronize()
    worst = [0.0] * 3
    for i, (n, m) in enumerate(lengths):
        rows, keys = slice(cu[0][i], cu[0][i + 1]), slice(cu[1][i], cu[1][i + 1])
        mine = [x[:, :, rows] for x in args[:2]] + [x[:, :, keys] for x in args[2:]]
        part = [x[:, :, rows] for x in got]
        if n and m:
            worst = [max(pair) for pair in zip(worst, errors(part, exact(tuple(mine), D**-0.5, causal)))]
        elif n and (part[0].any() or part[1].any() or not (part[2] == -torch.inf).all()):
            worst = [math.inf] * 3
    results.add(name, o=worst[0], to=worst[1], lse=worst[2],
                right=worst[0] <= 2.5e-3 and worst[1] <= 3.5e-3 and worst[2] <= 1e-5)


def widths(results: Results) -> None:
    for D in (64, 96, 100, 32, 128):
        for dtype in (BF16, F16):
            checked(results, f"width {D}, {str(dtype)[6:]}, (2, 4, 515)", draw(2, 4, 515, D, 2, dtype=dtype))
    for given in ((0, 1, 1), (0, 1, 0), (0, 0, 1), (1, 0, 1), (1, 1, 0)):
        checked(results, f"tangents {given}, (1, 4, 300)", draw(1, 4, 300, 128, given=given))
    checked(results, "constant keys, (1, 12, 5000) x 257", draw(1, 12, 5000, 128, M=257, given=(1, 0, 0)))
    tile = BY_HAND._replace(h_first=not BY_HAND.h_first)
    checked(results, f"{tile}, (1, 4, 515)", draw(1, 4, 515, 128), tile=tile)


def repeats(results: Results) -> None:
    """Checks that 20 runs over NaN-filled outputs are bitwise equal."""
    for name, args, causal in (("(1, 12, 4096)", draw(1, 12, 4096, 128), False),
                               ("(1, 8, 4096), causal", draw(1, 8, 4096, 128), True),
                               ("(1, 12, 24960) x 257, constant keys", draw(
                                   1, 12, 24960, 128, M=257, given=(1, 0, 0)), False),
                               ("(1, 8, 4096), width 64", draw(1, 8, 4096, 64), False)):
        print("  begins", name, flush=True)
        first, differ = None, 0
        for _ in range(21):
            poison()
            got = attention_jvp(*args, args[0].shape[-1] ** -0.5, causal)
            first = first or got
            differ += not all(torch.equal(a, b) for a, b in zip(first, got))
        results.add(name, differ=differ, right=differ == 0)


def race(results: Results) -> None:
    """Runs compute-sanitizer's racecheck and memcheck on a small call, if installed."""
    tool = shutil.which("compute-sanitizer") or next(
        (path for path in ("/usr/local/cuda/bin/compute-sanitizer",) if Path(path).exists()), None)
    if tool is None:
        return results.add("racecheck", ran=False, why="compute-sanitizer is not installed")
    for kind in ("memcheck", "racecheck"):
        command = [tool, "--tool", kind, sys.executable, "-m", "bench", "hopper_card", "--part", "small"]
        done = subprocess.run(["timeout", "22", *command], text=True, capture_output=True)
        lines = [line for line in done.stdout.splitlines() if "SUMMARY" in line or "Error" in line][-3:]
        results.add(kind, ran=done.returncode != 124, status=done.returncode, clean=done.returncode == 0,
                    said=" / ".join(lines)[:300])


def small(results: Results) -> None:
    checked(results, "(1, 1, 200) x 130", draw(1, 1, 200, 128, M=130))


def ways(shape: tuple, given: tuple) -> Iterator[tuple[str, Callable, int]]:
    """Yields (name, call, flops) of the candidates at a shape (B, H, N, M, D)."""
    B, H, N, M, D = shape
    args, scale = draw(B, H, N, D, M=M, given=given), D**-0.5
    flops = (12 if given == (1, 1, 1) else 8) * B * H * N * M * D
    row = TILES["attention_jvp", "sm90", 64 if D <= 64 else 128]
    today = next(tile for tile in row if not tile.hopper)
    yield f"today, {today}", partial(attention_jvp, *args, scale, False, tile=today), flops
    q, _, k, _, v, _ = args
    cudnn = torch.ops.aten._scaled_dot_product_cudnn_attention
    forward = partial(cudnn, q, k, v, None, True, 0.0, False, False, scale=scale)
    yield "cuDNN's forward", forward, 4 * B * H * N * M * D
    tile = BY_HAND_64 if D == 64 else BY_HAND
    other = tile._replace(stages=2) if D == 64 else tile._replace(h_first=not tile.h_first)
    for name, way in (("by hand", tile), (f"by hand, {other}", other)):
        yield name, partial(attention_jvp_hopper, *args, scale, False, way), flops


SPEED = {                                       # (B, H, N, M, D): tangents given, seconds
    (1, 12, 24960, 24960, 128): ((1, 1, 1), 4), (1, 40, 32760, 32760, 128): ((1, 1, 1), 4),
    (1, 12, 4096, 4096, 128): ((1, 1, 1), 1.5), (1, 12, 24960, 512, 128): ((1, 0, 0), 1.5),
    (1, 12, 24960, 257, 128): ((1, 0, 0), 1.5), (1, 24, 8192, 8192, 64): ((1, 1, 1), 1.5),
}


def compile_all(results: Results) -> None:
    """Compiles the kernels that `speed` times."""
    short = ((128, (1, 1, 1)), (128, (1, 0, 0)), (64, (1, 1, 1)))
    for _, call, _ in [way for D, given in short for way in ways((1, 12, 256, 256, D), given)]:
        if results.wanted():
            call()


def rounds(calls: dict[str, Callable], seconds: float) -> dict[str, tuple[list[float], list[float]]]:
    """Returns {call: ([ms on the GPU], [ms on the host to issue it])}, in interleaved rounds.

    The GPU sleeps while five short calls are issued: otherwise a call of 0.3 ms would include host time.
    """
    times = {name: ([], []) for name in calls}
    end = time.monotonic() + seconds
    while time.monotonic() < end or min(len(card) for card, _ in times.values()) < 3:
        for name, call in calls.items():
            card, host = times[name]
            count = 1 if card and card[0] > 5 else 5
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            torch.cuda._sleep(4_000_000)                        # cycles: 2 ms
            marks[0].record()
            start = time.perf_counter()
            for _ in range(count):
                call()
            host.append((time.perf_counter() - start) / count * 1e3)
            marks[1].record()
            torch.cuda.synchronize()
            card.append(marks[0].elapsed_time(marks[1]) / count)
    return times


def speed(results: Results) -> None:
    for shape, (given, seconds) in SPEED.items():
        ready, flops = {}, {}
        for name, call, flop in ways(shape, given):
            print("  begins", shape, name, flush=True)
            call()
            torch.cuda.synchronize()
            ready[name], flops[name] = call, flop
        times = rounds(ready, seconds)
        forward = statistics.median(times["cuDNN's forward"][0])
        for name, (card, host) in times.items():
            ms = statistics.median(card)
            results.add(f"{shape} {name}", ms=ms, tflops=flops[name] / ms / 1e9, forwards=ms / forward,
                        host_ms=statistics.median(host), spread=(max(card) - min(card)) / ms)


def tritons(results: Results) -> None:
    """Times machine code of other triton versions in this version's launch, (1, 12, 24960, 128)."""
    folder = Path(os.environ.get("HOPPER_CUBINS", "none"))
    args, kernels, run = draw(1, 12, 24960, 128), [], JITFunction.run
    call = partial(attention_jvp_hopper, *args, 128**-0.5, False, BY_HAND)

    def kept(self, *inputs, **how):
        kernels.append(run(self, *inputs, **how))
        return kernels[-1]

    JITFunction.run = kept
    want = call()
    JITFunction.run = run
    kernel, = kernels
    functions = {f"{triton.__version__}, this one": kernel.function}
    for path in sorted(folder.glob("*.cubin")):
        about, here = json.loads(path.with_suffix(".json").read_text()), kernel.metadata
        if (about["shared"], about["num_warps"]) != (here.shared, here.num_warps):
            print(f"  {path}: {about['num_warps']} warps, {about['shared']} bytes; want {here}")
            continue
        load = triton.runtime.driver.active.utils.load_binary
        functions[path.stem] = load(about["name"], path.read_bytes(), about["shared"], 0)[1]

    def by(function):
        kernel.function = function
        return call()

    want = [x.double() for x in want]
    worst = {name: max(errors(by(function), want)) for name, function in functions.items()}
    times = rounds({name: partial(by, function) for name, function in functions.items()}, 4)
    first, *_ = (statistics.median(card) for card, _ in times.values())
    for name, (card, _) in times.items():
        ms = statistics.median(card)
        results.add(name, ms=ms, tflops=12 * 12 * 24960**2 * 128 / ms / 1e9, slower=ms / first - 1,
                    differs=worst[name], right=worst[name] < 2e-3)


PARTS = {"right": right, "masks": masks, "widths": widths, "repeats": repeats, "race": race, "small": small,
         "compile": compile_all, "speed": speed, "tritons": tritons}


def verdict(found: dict, parts: list[str]) -> list[str]:
    """Returns the results outside the limits of kernels/README.md."""
    bad = [f"{part} {name}: {row}" for part, rows in found.items() for name, row in rows.items()
           if isinstance(row, dict) and row.get("right") is False]
    bad += [f"{part}: nothing measured" for part in parts if part != "compile" and not found.get(part)]
    bad += [f"tritons {name}: {row['slower']:.0%} slower" for name, row in found.get("tritons", {}).items()
            if row.get("slower", 0) > 0.03 and name.startswith("3.9") == ("h first" in name)]
    if "speed" not in parts:
        return bad
    for shape, bar in (("(1, 12, 24960, 24960, 128)", 600), ("(1, 40, 32760, 32760, 128)", 560)):
        rate = found.get("speed", {}).get(f"{shape} by hand", {}).get("tflops", 0)
        if rate < bar:
            bad.append(f"speed {shape}: {rate:.0f} TFLOP/s; want {bar}")
    return bad


def together(parts: list[str]) -> int:
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.glob("hopper*.json"):
        old.unlink()
    started, logs, over = time.monotonic(), {}, []

    def begin(part: str, share: int) -> subprocess.Popen:
        log = logs[part, share] = (OUT / f"hopper-{part}-{share}.log").open("w+")
        command = [sys.executable, "-m", "bench", "hopper_card", "--part", part, "--share", str(share)]
        return subprocess.Popen(["timeout", "--kill-after=2", str(LIMITS[part]), *command], stdout=log,
                                stderr=subprocess.STDOUT)

    def ended(part: str, share: int, child: subprocess.Popen) -> None:
        code, log = child.wait(), logs[part, share]
        log.seek(0)
        said = log.read().splitlines()
        print(f"--- {part} {share}: status {code}, {time.monotonic() - started:.0f} s since the start")
        print("\n".join(line for line in said if part != "compile" and "begins" not in line), flush=True)
        if code:
            why = f"not done in {LIMITS[part]} s" if code in {124, 137} else f"status {code}"
            over.append(f"{part} {share}: {why}; its last line: {said[-1:]}")

    children = [(part, share, begin(part, share)) for part, count in SHARES.items() if part in parts
                for share in range(count)]
    for child in children:
        ended(*child)
    for part in (part for part in QUIET if part in parts):
        ended(part, 0, begin(part, 0))
    found = {}
    for part in parts:
        for path in OUT.glob(f"hopper-{part}-*.json"):
            found.setdefault(part, {}).update(json.loads(path.read_text()))
    bad = verdict(found, parts) + over
    about = {"device": torch.cuda.get_device_name(), "triton": triton.__version__, "torch": torch.__version__,
             "seconds": round(time.monotonic() - started)}
    (OUT / "hopper.json").write_text(json.dumps({"about": about, **found, "bad": bad}, indent=1) + "\n")
    print(about, *(bad or ["all as wanted"]), sep="\n", flush=True)
    return int(bool(bad))


def main(argv: list[str]) -> int:
    parser = Parser("hopper_card", __doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="default all")
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--share", type=int, default=0, help="index of this process among those of --part")
    args = parser.parse_args(argv)
    parser.known("part", args.parts, LIMITS)
    if args.share not in range(shares := SHARES.get(args.part, 1)) or args.part and args.parts:
        parser.error(f"--share {args.share}, parts {args.parts}; want --part alone, --share below {shares}")
    if not torch.cuda.is_available():
        print("python -m bench hopper_card: no CUDA device here; `python -m bench hopper_report` needs none")
        return 1
    if args.part is None:
        usual = [part for part in LIMITS if part != "tritons" or "HOPPER_CUBINS" in os.environ]
        parts = [part for part in LIMITS if part in (args.parts or usual)]
        return together(parts + ["compile"] * ("speed" in parts and "compile" not in parts))
    torch.manual_seed(0)
    OUT.mkdir(parents=True, exist_ok=True)
    PARTS[args.part](Results(args.part, args.share))
    return 0
