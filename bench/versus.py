"""Forward-mode attention on this GPU: errors, speed and memory against all alternatives.

    python -m bench versus [SHAPE ...] [--record] [--peer package.module:function ...]

At each shape: the error of sampled query rows against float64; the launched kernel, the table's other tiles
and the two-pass form; each installed forward and backward without tangents; and the peers.  A peer takes (q,
k, v, tq, tk, tv) and returns (o, to).  Rates count six matrix products per JVP (12 B H N M D), two per
forward, five per backward; "forwards" is a time in units of the fastest forward (a JVP's ideal is 3.0).
Failures are reported and skipped; the record is written after each candidate.  Missed error or speed limits
are printed last, with exit status 1.
"""

import importlib
import json
import math
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import torch
import triton
from swiftvideo_kernels import attention as primal
from swiftvideo_kernels.attention_backends import BACKENDS, installed
from swiftvideo_kernels.attention_jvp import attention_jvp
from swiftvideo_kernels.attention_tangent import attention_tangent
from swiftvideo_kernels.tiles import TILES, family
from torch import Tensor

from bench.options import Parser, peer_name
from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.ops import reference

# {device: {shape: {"measured": when and by what, "ways": {way: figures}}}}
RECORD = Path(__file__).with_name("gpu.json")
SHAPES = {                                                    # (B, H, N, D)
    "wan_1_3b": (1, 12, 24960, 128),                          # 61 frames of 832 x 480
    "wan_14b": (1, 40, 32760, 128),                           # 81 frames
    "width_64": (2, 24, 8192, 64),
    "small": (1, 12, 4096, 128),                              # where torch.func.jvp of math attention fits
}
BARS = 2.5e-3, 3.5e-3                                         # relative error of o, to; kernels/README.md
MOST_FORWARDS, LEAST_TFLOPS = 3.4, 450                          # of a JVP at Wan's shapes


def sampled_error(args: list[Tensor], o: Tensor, to: Tensor, rows: int = 48) -> tuple[float, float]:
    """Returns relative Frobenius errors of o and to over `rows` queries of every head, including the last."""
    q, k, v, tq, tk, tv = args
    some = torch.linspace(0, q.shape[2] - 1, rows, device=q.device).long()
    apart = torch.zeros(2, 2, dtype=torch.float64, device=q.device)
    for head in range(q.shape[1]):
        primals = [x[:, head : head + 1].double() for x in (q[:, :, some], k, v)]
        tangents = [x[:, head : head + 1].double() for x in (tq[:, :, some], tk, tv)]
        exact = reference.jvp(reference.attention, tuple(primals), tuple(tangents))
        for i, (got, want) in enumerate(zip((o, to), exact, strict=True)):
            mine = got[:, head : head + 1, some].double()
            apart[i] += torch.stack(((mine - want).square().sum(), want.square().sum()))
    return tuple((apart[:, 0] / apart[:, 1]).sqrt().tolist())


def plain(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable]:
    """Returns the installed forwards and backwards without tangents; backwards start from our (o, lse)."""
    scale = q.shape[-1] ** -0.5
    do = torch.randn_like(q)
    o, lse = primal.attention(q, k, v, scale, False)
    ways = {}
    for name, (forward, backward) in BACKENDS.items():
        if installed(name) and name != "torch's efficient":
            ways[f"forward {name}"] = partial(forward, q, k, v, scale, False)
            ways[f"backward {name}"] = partial(backward, do, q, k, v, o, lse, scale, False, False)
            if name in (primal.FLASH[1], "flash-attn 2", "flash-attn 3", "flash-attn 4"):
                ways[f"deterministic backward {name}"] = partial(
                    backward, do, q, k, v, o, lse, scale, False, True)
    return ways


def jvps(name: str, args: list[Tensor], peers: list[str]) -> dict[str, Callable]:
    """Returns the computations of (o, to), ours first."""
    q, k, v, tq, tk, tv = args
    scale, D = q.shape[-1] ** -0.5, q.shape[-1]

    def two_pass(tile=None):
        o, lse = primal.attention(q, k, v, scale, False)
        return o, attention_tangent(q, tq, k, tk, v, tv, o, lse, scale, False, tile=tile)

    def pypi():
        from jvp_flash_attention.jvp_attention import attention
        return torch.func.jvp(attention, (q, k, v), (tq, tk, tv))

    def one_pass(tile=None):
        return attention_jvp(q, tq, k, tk, v, tv, scale, False, tile=tile)[:2]

    ways = {"ours": one_pass}
    row = family(q.dtype), max(64, triton.next_power_of_2(D))
    for tile in TILES.get(("attention_jvp", *row), ())[1:]:
        ways[f"one pass {tile}"] = partial(one_pass, tile)
    for tile in TILES[("attention_tangent", *row)]:
        ways[f"two passes {tile}"] = partial(two_pass, tile)
    ways["jvp-flash-attention (PyPI)"] = pypi
    if name == "small":
        ways["torch.func.jvp, math attention"] = partial(reference.jvp, reference.attention, (q, k, v),
                                                         (tq, tk, tv))
    for peer in peers:
        module, _, function = peer.partition(":")
        ways[peer] = lambda m=module, f=function: getattr(importlib.import_module(m), f)(q, k, v, tq, tk, tv)
    return ways


def measure(run: Callable, flops: int) -> dict[str, float]:
    """Returns median ms, TFLOP/s, and peak GB beyond the inputs."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    ms = triton.testing.do_bench(run, warmup=50, rep=300, return_mode="median")
    return {"ms": round(ms, 4), "tflops": round(flops / ms / 1e9, 1), "gb": round(peak / 1e9, 3)}


def at_shape(name: str, peers: list[str], keep: Callable[[dict], None]) -> list[str]:
    """Draws the inputs of one shape and measures every candidate; returns the failures."""
    B, H, N, D = SHAPES[name]
    args = [torch.randn(B, N, H, D, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(6)]
    ways = plain(*args[:3])
    ways |= {f"jvp {way}": run for way, run in jvps(name, args, peers).items()}
    return measured(name, ways, args, keep)


def measured(name: str, ways: dict[str, Callable], args: list[Tensor],
             keep: Callable[[dict], None]) -> list[str]:
    """Measures each candidate and calls `keep` with all figures so far after each; returns the failures.

    After an exception the others continue, unless the CUDA context is lost.
    """
    (B, H, N, D), found, bad = args[0].shape, {}, []
    for way, run in ways.items():
        try:
            out = run()
            products = 12 if way.startswith("jvp") else 4 if way.startswith("forward") else 10
            figures = measure(run, products * B * H * N * N * D)
            if "backward" in way:
                first, *more = (run() for _ in range(3))
                figures["repeats"] = all(map(torch.equal, first * 2, more[0] + more[1]))
            if way.startswith("jvp"):
                figures["error o"], figures["error to"] = sampled_error(args, *out)
        except Exception as error:
            print(f"{name:9} {way:64} {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)
            if way == "jvp ours":
                bad.append(f"{name}: {type(error).__name__}")
            if not alive():
                bad.append(f"{name}: {way} has cost the process its card; none after it is measured")
                break
            continue
        found[way] = figures
        forward = [f["ms"] for other, f in found.items() if other.startswith("forward")]
        figures["forwards"] = round(figures["ms"] / min(forward, default=math.nan), 3)
        keep(found)
        line = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
        print(f"{name:9} {way:64} {line}", flush=True)
    return bad + below(name, found)


def alive() -> bool:
    """True if the CUDA context still works: an illegal access destroys it."""
    try:
        torch.cuda.synchronize()
    except Exception:
        return False
    return True


def below(name: str, found: dict[str, dict[str, float]]) -> list[str]:
    """Returns missed limits: of error by any tile of the table, of speed by the launched one."""
    bad = [f"{name}: {way}: error of {x} is {figures[f'error {x}']:.1e}, bar {bar}"
           for way, figures in found.items() if way.startswith(("jvp ours", "jvp one pass", "jvp two passes"))
           for x, bar in zip(("o", "to"), BARS, strict=True) if not figures[f"error {x}"] <= bar]
    if not (ours := found.get("jvp ours")):
        return bad
    print(f"{name:9} ours: {ours['tflops']} TFLOP/s, {ours['forwards']} forwards", flush=True)
    if name.startswith("wan") and not ours["forwards"] <= MOST_FORWARDS:
        bad.append(f"{name}: {ours['forwards']} forwards a JVP, bar {MOST_FORWARDS}")
    if name.startswith("wan") and not ours["tflops"] >= LEAST_TFLOPS:
        bad.append(f"{name}: {ours['tflops']} TFLOP/s, bar {LEAST_TFLOPS}")
    return bad


def main(argv: list[str]) -> int:
    parser = Parser("versus", __doc__)
    parser.add_argument("names", nargs="*", metavar="SHAPE", help=f"one of {', '.join(SHAPES)}; default all")
    parser.add_argument("--record", action="store_true", help="write the figures to bench/gpu.json")
    parser.add_argument("--peer", type=peer_name, action="append", default=[], metavar="MODULE:FUNCTION")
    args = parser.parse_args(argv)
    parser.known("shape", args.names, SHAPES)
    if not torch.cuda.is_available():
        print("python -m bench versus: no CUDA device here")
        return 1

    card, bad = torch.cuda.get_device_name(), []
    by = f"{date.today()}, torch {torch.__version__}, triton {triton.__version__}"
    print(f"{card}, {by}", flush=True)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for name in args.names or SHAPES:
        def keep(found: dict, name: str = name) -> None:
            record.setdefault(card, {})[name] = {"measured": by, "ways": found}
            if args.record:
                with atomic_write(RECORD) as tmp:
                    tmp.write_text(json.dumps(record, indent=1) + "\n")

        bad += at_shape(name, args.peer, keep)
    print("\n".join(bad), end="\n" if bad else "")
    return int(bool(bad))
