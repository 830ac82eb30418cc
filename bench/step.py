"""The training step on this device: total, by phase and by kernel.

    python -m bench step [PART ...] [--record]  of those below; default all, the most important first
    python -m bench step step ta da             the loop's own step of CCD, TA, CCD with DA
    python -m bench step kernels                the CCD step's kernels, most expensive first
    python -m bench step sampling               a student of four steps, latents only
    python -m bench step phases                 teacher, one forward, jvp, student under each recompute policy
    python -m bench step zero3                  the CCD step under DeepSpeed ZeRO-3, one process

A part with a missing library is reported and skipped.

Weights are random: with zeros a GPU draws less power and runs faster.  Each figure is written at once to
runs/gpu/step.json, and with --record to bench/gpu.json under "step".  TFLOP counts: bench_network.STEP, JVP.
"""

import gc
import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import date
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from bench import bench_network
from bench.harness import MATMUL, device_name
from bench.options import Parser, count, folder, size
from bench.passes import PASSES, Setting, velocity, zero3_pass
from swiftvideo_fast import jvp, ops
from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.config import Sample
from swiftvideo_fast.models.condition import guided
from swiftvideo_fast.models.wan.network import RECOMPUTE
from swiftvideo_fast.models.wan.sizes import PRESETS
from swiftvideo_fast.sampler import generate

OUT = Path(__file__).parents[1] / "runs" / "gpu"
RECORD = Path(__file__).with_name("gpu.json")
POLICY = "blocks but attention"
STEPS = "step", "ta", "da", "zero3"
WANT = {"da": ("diffusers", "transformers"), "zero3": ("deepspeed",)}     # libraries
CARD = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    if CARD.type == "cuda":
        torch.cuda.synchronize()


def milliseconds(run: Callable, repeats: int = 3) -> float:
    """Returns the median milliseconds of `repeats` runs, after one warm-up."""
    found = []
    for _ in range(repeats + 1):
        wait()
        before = time.perf_counter()
        run()
        wait()
        found.append(1e3 * (time.perf_counter() - before))
    return median(found[1:])


def time_and_peak(run: Callable, repeats: int = 3) -> dict[str, float | None]:
    if CARD.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ms = round(milliseconds(run, repeats), 1)
    return {"ms": ms, "peak gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)
            if CARD.type == "cuda" else None}


def matmul_rate() -> float:
    """Returns TFLOP/s of a large square matmul, the reference of the shares."""
    side = MATMUL[CARD.type]
    a, b = (torch.randn(side, side, device=CARD, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / milliseconds(lambda: a @ b, 10) / 1e9


def flops(setting: Setting, counts: tuple[float, float]) -> float:
    with torch.device("meta"):
        block = setting.network(trained=False).blocks[0]
    return setting.config.layers * bench_network.block_flops(block, setting.tokens, *counts)


def work(setting: Setting) -> tuple[float, float]:
    """Returns (linear maps, attentions) of a CCD step, by its recompute policy."""
    linear, attention = bench_network.STEP
    return {"nothing": (linear - 1, attention - 1), "blocks": (linear, attention),
            "blocks but attention": (linear, attention - 1)}[setting.recompute]


@contextmanager
def built(name: str, setting: Setting) -> Generator[Callable]:
    """Context with one run of a pass of bench/passes.py, with random weights."""
    with CARD:
        account, run = (zero3_pass if name == "zero3" else PASSES[name])(setting)
    yield run
    del account, run
    gc.collect()
    if CARD.type == "cuda":
        torch.cuda.empty_cache()


def whole_step(name: str, setting: Setting, rate: float, profile_to: Path | None, keep: Callable) -> None:
    """Measures a pass and, if profile_to is given, its kernels; the pass is built once."""
    with built(name, setting) as run:
        before = time.perf_counter()
        run()
        wait()
        found = {"first s": round(time.perf_counter() - before, 1)} | time_and_peak(run, 2)
        if name in ("step", "zero3"):
            found["of matmul"] = round(flops(setting, work(setting)) / found["ms"] / 1e9 / rate, 3)
        keep(name, found)
        if profile_to:
            keep("kernels", kernels(run, profile_to))


def phases(setting: Setting, rate: float, keep: Callable) -> None:
    """Measures the parts of a CCD step; the student under each recompute policy."""
    def share(counts: tuple[float, float], ms: float) -> dict[str, float]:
        return {"ms": round(ms, 1), "of matmul": round(flops(setting, counts) / ms / 1e9 / rate, 3)}

    with CARD:
        net, point, condition = setting.network(trained=False), setting.point(), setting.condition()
    seeds = (point.x_t, point.t), (point.velocity, torch.ones_like(point.t))
    with torch.no_grad():
        keep("teacher, guided", share((2, 2), milliseconds(
            lambda: guided(partial(velocity, net), point.x_t, point.t, condition, 3.0))))
        keep("one forward", share((1, 1), milliseconds(
            lambda: velocity(net, point.x_t, point.t, condition))))
        keep("jvp", share(bench_network.JVP, milliseconds(
            lambda: jvp(lambda x, t: velocity(net, x, t, condition), *seeds))))
    net.requires_grad_(True)

    def student() -> None:
        v = velocity(net, point.x_t, point.t, condition)
        F = torch.zeros_like(v)
        ops.ccd_loss(v, F, F).mean().backward()
        for p in net.parameters():
            p.grad = None

    for net.recompute in (POLICY, "blocks", "nothing"):
        counts = {POLICY: (4, 3.5), "blocks": (4, 4.5), "nothing": (3, 3.5)}[net.recompute]
        try:
            measured = time_and_peak(student, 2)
            keep(f"student, recompute {net.recompute}", measured | share(counts, measured["ms"]))
        except torch.OutOfMemoryError:
            keep(f"student, recompute {net.recompute}", {"out of memory": True})


def kernels(run: Callable, out: Path) -> dict[str, float]:
    """Returns {kernel: ms} of one run's top kernels; writes all to kernels-step.txt."""
    on = ProfilerActivity.CUDA if CARD.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[on]) as profiled:
        run()
        wait()
    rows: dict[str, list[float]] = {}
    for event in profiled.events():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            rows.setdefault(event.name, []).append(event.self_device_time_total / 1e3)
    total = sum(map(sum, rows.values())) or 1.0
    ranked = sorted(rows.items(), key=lambda row: -sum(row[1]))
    (out / "kernels-step.txt").write_text("".join(
        f"{sum(ms):9.2f} ms {sum(ms) / total:6.1%} {len(ms):6d}  {name[:150]}\n" for name, ms in ranked))
    return {"all": round(total, 1)} | {name[:60]: round(sum(ms), 1) for name, ms in ranked[:12]}


def sampling(setting: Setting) -> dict[str, float]:
    with CARD:
        net, point, condition = setting.network(trained=False), setting.point(), setting.condition()
    call, rng = partial(velocity, net), torch.Generator()
    return {"ms": round(milliseconds(lambda: generate(call, point.x1, condition, 4, Sample(), rng)), 1)}


def main(argv: list[str]) -> int:
    parser = Parser("step", __doc__)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--recompute", choices=RECOMPUTE, default=POLICY)
    parser.add_argument("--preset", choices=PRESETS, default="1.3b")
    parser.add_argument("--frames", type=count, default=61)
    parser.add_argument("--size", type=size, default=(832, 480))
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--out", type=folder, default=OUT)
    args = parser.parse_args(argv)
    known = "step", "kernels", "sampling", "ta", "phases", "da", "zero3"
    parser.known("part", args.parts, known)
    setting = parser.built(Setting, args.preset, args.frames, args.size, recompute=args.recompute,
                           random=True)
    args.out.mkdir(parents=True, exist_ok=True)
    by = f"{date.today()}, torch {torch.__version__}"
    card, found, failed = device_name(CARD.type), {}, []
    rate = matmul_rate()
    print(f"{card}, {by}: {args.preset}, {setting.tokens:,} tokens; matmul {rate:.0f} TFLOP/s",
          flush=True)

    def keep(name: str, figures: dict) -> None:
        found[name] = figures
        print(f"{name:34} " + "  ".join(f"{key} {value}" for key, value in figures.items()), flush=True)
        about = {"measured": by, "matmul": round(rate, 1), "recompute": args.recompute, "parts": found}
        for path in [args.out / f"step-{'-'.join(args.parts) or 'all'}.json"] + [RECORD] * args.record:
            record = json.loads(path.read_text()) if path.exists() else {}
            steps = record.setdefault(card, {}).setdefault("step", {})
            network = f"wan_{args.preset.replace('.', '_')}"
            steps[network] = about | {"parts": steps.get(network, {"parts": {}})["parts"] | found}
            with atomic_write(path) as tmp:
                tmp.write_text(json.dumps(record, indent=1) + "\n")

    parts = args.parts or known
    for part in parts:
        absent = [name for name in WANT.get(part, ()) if not find_spec(name)]
        if absent:
            print(f"{part}: skipped, without {' and '.join(absent)}", flush=True)
            continue
        try:
            if part == "phases":
                phases(setting, rate, keep)
            elif part == "sampling":
                keep(part, sampling(setting))
            elif part != "kernels" or "step" not in parts:
                whole_step("step" if part == "kernels" else part, setting, rate,
                           args.out if "kernels" in parts and part in ("step", "kernels") else None, keep)
        except Exception as error:
            failed.append(f"{part}: {type(error).__name__}: {str(error).splitlines()[:1]}")
            print(failed[-1], flush=True)
    return int(bool(failed))
