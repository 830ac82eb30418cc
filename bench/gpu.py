"""Everything a GPU is needed for, in one command and under nine minutes: `make gpu`.

    python -m bench gpu [--no-record] [--peer package.module:function ...] [--only PART ...]

Needs torch, triton and a CUDA device; no network.  Each part is a process with a time of its own: what fails
or runs over leaves the others running, and is said again at the end.  Output: the screen, and runs/gpu/.
"""

import argparse
import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
OUT = ROOT / "runs" / "gpu"


def parts(record: bool, peers: list[str]) -> dict[str, tuple[int, list[str]]]:
    """{name: (seconds it may take, command)}; 530 seconds in all.

    Test files are named: others may import what this machine lacks.
    """
    python, kept = [sys.executable, "-m"], ["--record"] if record else []
    tests = [*python, "pytest", "-q"]
    if importlib.util.find_spec("xdist"):                     # most of their time goes into compiling
        tests += ["-n", "8"]
    if importlib.util.find_spec("pytest_timeout"):            # a kernel that never ends
        tests += ["--timeout", "60", "--timeout-method", "thread"]
    named = [word for peer in peers for word in ("--peer", peer)]
    return {
        "build": (30, [sys.executable, "setup.py", "build_ext", "--inplace"]),
        "tests": (100, [*tests, "-m", "gpu", "tests/test_kernels_gpu.py"]),
        "kernels": (85, [*tests, "tests/test_kernels.py", "tests/test_kernels_attention.py"]),
        **{f"attention-{shape}": (seconds, [*python, "bench", "versus", shape, *kept, *named])
           for shape, seconds in (("wan_1_3b", 60), ("wan_14b", 45), ("width_64", 40), ("small", 20))},
        "elementwise": (80, [*python, "bench", "modulate", "norm_rope", "gate", "gelu",
                             "ccd_gradient", "ccd_loss", "ema", *kept, "--seconds", "0.5"]),
        "network": (70, [*python, "bench", "block_jvp", "network_jvp", *kept, "--seconds", "0.5"]),
    }


def run(name: str, seconds: int, command: list[str]) -> str | None:
    """Run one part, copying its output to runs/gpu/NAME.log.  What went wrong, or None."""
    print(f"--- {name}: {' '.join(command[1:])}", flush=True)
    start = time.monotonic()
    with (OUT / f"{name}.log").open("w") as log:
        part = subprocess.Popen(["timeout", "--kill-after=5", str(seconds), *command], cwd=ROOT, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for line in part.stdout:
            print(line, end="", flush=True)
            log.write(line)
    code, took = part.wait(), time.monotonic() - start
    print(f"--- {name}: {took:.0f} s", flush=True)
    if code == 124:
        return f"{name}: not done after {seconds} s"
    return f"{name}: exit status {code}, see {OUT.relative_to(ROOT)}/{name}.log" if code else None


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench gpu")
    parser.add_argument("--no-record", action="store_true", help="leave bench/*.json as they are")
    parser.add_argument("--peer", action="append", default=[], metavar="MODULE:FUNCTION")
    parser.add_argument("--only", nargs="+", choices=list(parts(False, [])))
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("python -m bench gpu: no CUDA device here; this machine's checks are `make test` and "
              "`python -m bench compile_report`")
        return 1

    OUT.mkdir(parents=True, exist_ok=True)
    modules = "flash_attn_interface", "flash_attn", "jvp_flash_attention"
    found = [name for name in modules if importlib.util.find_spec(name)]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, peers: {', '.join(found) or 'none'}")
    failed = [run(name, *part) for name, part in parts(not args.no_record, args.peer).items()
              if not args.only or name in args.only]
    failed = [line for line in failed if line]
    print("\n".join(["", *failed]) if failed else "all parts passed")
    return int(bool(failed))
