"""All GPU checks and measurements, in one command of at most eight minutes: `make gpu`.

    python -m bench gpu [PART ...] [--no-record] [--peer package.module:function ...]
    make gpu PART="step attention"

Needs torch, triton, pytest and a CUDA device; no network, no C++ extension.  The parts run in the order of
PARTS, the most important first.  Each is a process with a time limit that writes its figures as it goes.  A
failure or timeout does not stop the others and is listed at the end.  Output: the screen, runs/gpu/NAME.log,
and when recording bench/gpu.json and bench/record.json.
"""

import importlib.util
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.options import Parser, peer_name
from swiftvideo_fast import ops
from swiftvideo_fast.data import dali

ROOT = Path(__file__).parents[1]
OUT = ROOT / "runs" / "gpu"
PYTHON = sys.executable, "-m"
COMPILERS = 12                          # parallel compile processes, before anything is timed
TOTAL = 480


@dataclass(frozen=True)
class Part:
    """One part.  seconds: time limit.  records, peers: its command accepts --record, --peer."""

    seconds: int
    command: tuple[str, ...]
    records: bool = True
    peers: bool = False


def tests(*files: str, seconds: int, workers: int) -> Part:
    """Returns a part that runs these test files; others may import missing packages."""
    command = [*PYTHON, "pytest", "-q", *files]
    if importlib.util.find_spec("xdist"):                     # mostly compile time
        command += ["-n", str(workers)]
    if importlib.util.find_spec("pytest_timeout"):            # a hanging kernel
        command += ["--timeout", "60", "--timeout-method", "thread"]
    return Part(seconds, tuple(command), records=False)


def bench(*argv: str, seconds: int, peers: bool = False) -> Part:
    return Part(seconds, (*PYTHON, "bench", *argv), peers=peers)


ELEMENTWISE = tuple(name for name in ops.OPS if name != "attention")
PARTS = {                               # one line per part
    "step": bench("step", "step", "kernels", "sampling", "ta", seconds=90),
    "attention": bench("versus", "wan_1_3b", seconds=60, peers=True),
    "elementwise": bench(*ELEMENTWISE, "--seconds", "0.3", seconds=45),
    "phases": bench("step", "phases", "da", "zero3", seconds=50),
    "tests": tests("-m", "gpu", "tests/test_kernels_gpu.py", seconds=60, workers=8),
    "kernels": tests("tests/test_kernels.py", "tests/test_kernels_attention.py", seconds=35, workers=8),
    "attention-14b": bench("versus", "wan_14b", seconds=30, peers=True),
    "attention-small": bench("versus", "width_64", "small", seconds=30, peers=True),
    "hopper": Part(115, (*PYTHON, "bench", "hopper_card"), records=False),
}

if dali.installed():
    PARTS["data"] = Part(40, (*PYTHON, "bench", "data", "--device", "cuda", "--seconds", "1"), records=False)


def usual() -> list[str]:
    """Returns the default parts: all but `hopper`, which is for work on its kernel."""
    return [name for name in PARTS if name != "hopper"]


def compile_all() -> None:
    """Fills triton's cache with the report's cases for this GPU, in COMPILERS processes."""
    start, arch = time.monotonic(), "".join(map(str, torch.cuda.get_device_capability()))
    command = [*PYTHON, "bench", "compile_report", "--arch", arch, "--slice"]
    running = [subprocess.Popen([*command, f"{i}/{COMPILERS}"], cwd=ROOT, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL) for i in range(COMPILERS)]
    for one in running:
        try:
            one.wait(max(1, start + 40 - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.kill()
    print(f"--- compiled: {time.monotonic() - start:.0f} s", flush=True)


def run(name: str, seconds: int, command: list[str]) -> str | None:
    """Runs one part and copies its output to runs/gpu/NAME.log.  Returns the failure or None."""
    print(f"--- {name}: {' '.join(command[1:])}", flush=True)
    start = time.monotonic()
    with (OUT / f"{name}.log").open("w") as log:
        part = subprocess.Popen(["timeout", "--kill-after=5", str(seconds), *command], cwd=ROOT, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for line in part.stdout:
            print(line, end="", flush=True)
            log.write(line)
            log.flush()
    code, took = part.wait(), time.monotonic() - start
    print(f"--- {name}: {took:.0f} s", flush=True)
    if code == 124:
        return f"{name}: not done after {seconds} s"
    return f"{name}: exit status {code}, see {OUT.relative_to(ROOT)}/{name}.log" if code else None


def command(part: Part, record: bool, peers: list[str]) -> list[str]:
    named = [word for peer in peers for word in ("--peer", peer)]
    return [*part.command, *["--record"] * (record and part.records), *named * part.peers]


def main(argv: list[str]) -> int:
    parser = Parser("gpu", __doc__)
    parser.add_argument("parts", nargs="*", metavar="PART",
                        help=f"one of {', '.join(PARTS)}; default all but hopper")
    parser.add_argument("--no-record", action="store_true", help="do not write bench/*.json")
    parser.add_argument("--peer", type=peer_name, action="append", default=[], metavar="MODULE:FUNCTION")
    args = parser.parse_args(argv)
    parser.known("part", args.parts, PARTS)
    if not torch.cuda.is_available():
        print("python -m bench gpu: no CUDA device here; this machine's checks are `make test` and "
              "`python -m bench compile_report`")
        return 1

    OUT.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
    modules = "flash_attn_interface", "flash_attn", "jvp_flash_attention"
    found = [name for name in modules if importlib.util.find_spec(name)]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, peers: {', '.join(found) or 'none'}")
    if args.parts != ["hopper"]:                              # it compiles its own
        compile_all()
    failed = [run(name, PARTS[name].seconds, command(PARTS[name], not args.no_record, args.peer))
              for name in args.parts or usual()]
    failed = [line for line in failed if line]
    print("\n".join(["", *failed]) if failed else "all parts passed")
    return int(bool(failed))
