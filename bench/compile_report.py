"""Compiles every kernel for GPUs that are not present, and reads registers, spills and machine code.

    python -m bench compile_report                      every kernel and table entry, for sm_90, sm_80, sm_100
    python -m bench compile_report attention --arch 90  names with this prefix, one architecture
    python -m bench compile_report --record             write bench/compile_report.json
    python -m bench compile_report --sample             the cases of tests/test_compile_report.py, on sm_90

Exit status 1 if a kernel does not compile, spills, uses no tensor cores, rounds or moves values one at a
time, or needs more shared memory than a block has.

The real launches run on meta tensors, with a driver that reports a GPU and launches nothing, so the compiled
code is what that GPU would run.  Triton's cuobjdump reads registers, stack and spills from the machine code.
"""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")      # triton 3.9's default, not 3.10's

import torch  # noqa: E402
import triton  # noqa: E402
from swiftvideo_kernels.attention_jvp import attention_jvp  # noqa: E402
from swiftvideo_kernels.attention_tangent import attention_tangent  # noqa: E402
from swiftvideo_kernels.tiles import TILES, Tile  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from bench.arguments import arguments  # noqa: E402
from bench.options import Parser, share_of  # noqa: E402
from swiftvideo_fast import ops  # noqa: E402
from swiftvideo_fast.atomic import atomic_write  # noqa: E402

RECORD = Path(__file__).with_name("compile_report.json")                # {triton: {card: {kernel: figures}}}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
MATRIX = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}            # the tensor-core instruction of each card
SHARED = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}     # bytes of shared memory a block may have
N = 24960                                                     # tokens of 61 frames of 832 x 480
F32 = torch.float32


class Card:
    """A driver that reports a GPU architecture and launches nothing."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(launch: Callable, arch: int) -> list:
    """Returns the compiled kernels that `launch` would run on a GPU of this architecture."""
    kernels, run = [], JITFunction.run

    def rehearse(self, *args, grid, warmup, **kwargs):
        kernels.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    triton.runtime.driver.set_active(Card(arch))
    JITFunction.run = rehearse
    try:
        launch()
    finally:
        JITFunction.run = run
    return kernels


def figures(kernel) -> dict[str, int]:
    """Returns the counts of the resource usage and the disassembly."""
    arch = kernel.metadata.target.arch
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        usage, sass = (subprocess.check_output([CUOBJDUMP, flag, cubin.name], text=True)
                       for flag in ("-res-usage", "-sass"))
    return {
        "warps": kernel.metadata.num_warps,
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "spills": len(re.findall(r"\bSTL\b", sass)),
        "shared": kernel.metadata.shared,
        "instructions": len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", sass, re.M)),
        MATRIX[arch]: len(re.findall(rf"\b{MATRIX[arch]}\b", sass)),
        "TMA": len(re.findall(r"\bUTMALDG\b", sass)),
        "F2F": len(re.findall(r"\bF2F\b", sass)),
        "U16": len(re.findall(r"\b(?:LDG|STG)\.E\.U16\b", sass)),
        "BAR.SYNC in loops": looped(sass, "BAR.SYNC"),
    }


def looped(sass: str, instruction: str) -> int:
    """Counts an instruction in loops: between a conditional branch and its earlier target.

    Out-of-line code, such as a wait's retry, returns by an unconditional branch and is not counted.
    """
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", sass)]
    back = [(int(target[1], 16), at) for at, text in lines
            if (target := re.search(r"(?:@!?U?P\d BRA|BRA\.U) .*?0x(\w+)", text))]
    return sum(instruction in text and any(first <= at <= last for first, last in back if first < last)
               for at, text in lines)


def apart(launch: Callable, arch: int) -> list[dict[str, int]] | None:
    """Returns each kernel's figures, from a child process (LLVM may abort); None if one does not compile."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(theirs, json.dumps([figures(kernel) for kernel in compiled(launch, arch)]).encode())
        except Exception as error:
            print(f"{type(error).__name__}: {error}"[:300], flush=True)
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return json.loads(said) if said else None


def meta(*shape: int, dtype=torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def by_triton() -> dict:
    """Returns TILES without attention_jvp_hopper's tiles, which hopper_report compiles."""
    return {row: tuple(tile for tile in tiles if not tile.hopper) for row, tiles in TILES.items()}


def attention_cases(arch: int) -> Iterator[tuple[str, Callable]]:
    """Yields (name, launch) for every tile of this architecture, in every use."""
    for (kernel, family, width), tiles in by_triton().items():
        if family != f"sm{arch}" and (family != "fp32" or arch != 90):
            continue
        dtype = F32 if family == "fp32" else torch.bfloat16
        case = partial(attention_case, kernel, width, dtype)
        for tile in tiles:
            name = f"{kernel} {family} {width}: {tile}"
            yield name, case(tile)
            if family == "fp32":
                continue
            yield f"{name}, causal", case(tile, causal=True)
            if kernel == "attention_jvp":
                yield f"{name}, packed", case(tile, packed=True)
                yield f"{name}, causal, packed", case(tile, causal=True, packed=True)
            if tile == tiles[0]:
                yield f"{name}, constant keys", case(tile, constant=True)
                yield f"{name}, width {width * 3 // 4}", case(tile, narrow=True)


def attention_case(kernel: str, width: int, dtype: torch.dtype, tile: Tile, *, causal: bool = False,
                   packed: bool = False, constant: bool = False, narrow: bool = False) -> Callable:
    """Returns a launch with 12 heads, 3 key heads if packed.  narrow: head width 3/4 of the row's."""
    D, G = (width * 3 // 4 if narrow else width), (3 if packed else 12)
    q, tq, o = (meta(1, N, 12, D, dtype=dtype).transpose(1, 2) for _ in range(3))
    k, tk, v, tv = (meta(1, N, G, D, dtype=dtype).transpose(1, 2) for _ in range(4))
    args = q, tq, k, None if constant else tk, v, None if constant else tv
    if kernel == "attention_tangent":
        return partial(attention_tangent, *args, o, meta(1, 12, N, dtype=F32), D**-0.5, causal, tile=tile)
    cu = meta(3, dtype=torch.int32) if packed else None
    return partial(attention_jvp, *args, D**-0.5, causal, cu_q=cu, cu_k=cu, tile=tile)


def elementwise_cases() -> Iterator[tuple[str, Callable]]:
    """Yields (name, launch) for every custom op except attention's, at both widths of Wan."""
    for C in (1536, 5120):
        for name in ops.OPS:
            for op in ops.custom_ops(name).values() if name != "attention" else ():
                given = arguments(op, 1, N, C, torch.bfloat16, partial(torch.empty, device="meta"))
                yield f"{op._name} {C}", partial(op._backend_fns["cuda"], *given.values())


def sample() -> tuple[str, ...]:
    """Returns the cases nearest to spilling: masked attention; each op's tangent and gradient at C = 5120."""
    tiles = [f"{kernel} sm90 128: {by_triton()[kernel, 'sm90', 128][0]}, causal"
             for kernel in ("attention_jvp", "attention_tangent")]
    forms = [form for name in ops.OPS if name != "attention" for form in ops.custom_ops(name)
             if form.endswith(("_jvp", "_backward")) or f"{name}_jvp" not in ops.custom_ops(name)]
    return *tiles, *(f"{form} 5120" for form in forms)


def faults(name: str, arch: int, f: dict) -> list[str]:
    """Returns the violated requirements."""
    found, exempt = [], " fp32 " in name                      # float32 attention is for tests, not for speed
    if (f["stack"] or f["spills"]) and not exempt:
        found.append(f"spills ({f['spills']} stores, {f['stack']} bytes of stack)")
    if name.startswith("attention") and not exempt and not f[MATRIX[arch]]:
        found.append(f"has no {MATRIX[arch]}")
    if name.startswith("attention") and not exempt and f["F2F"]:
        found.append(f"rounds one value at a time ({f['F2F']} F2F)")
    if not name.startswith("attention") and f["U16"]:
        found.append(f"moves two bytes at a time ({f['U16']} loads and stores)")
    if f["shared"] > SHARED[arch]:
        found.append(f"needs {f['shared']} bytes of shared memory; the limit is {SHARED[arch]}")
    return found


def main(argv: list[str]) -> int:
    parser = Parser("compile_report", __doc__)
    parser.add_argument("names", nargs="*", help="kernels with these name prefixes")
    parser.add_argument("--arch", type=int, nargs="+", choices=sorted(MATRIX), help="compute capabilities")
    parser.add_argument("--sample", action="store_true", help="only the cases nearest to spilling, on sm_90")
    parser.add_argument("--record", action="store_true", help=f"write the figures to {RECORD.name}")
    parser.add_argument("--slice", type=share_of, default="0/1", metavar="I/N",
                        help="only every N-th case, from the I-th")
    args = parser.parse_args(argv)
    if args.sample and (args.names or args.arch):
        parser.error("--sample has its own names and architecture; want no others with it")
    names, bad, found = sample() if args.sample else tuple(args.names), [], {}
    cases = {arch: [*attention_cases(arch), *elementwise_cases()]
             for arch in args.arch or ([90] if args.sample else [90, 80, 100])}
    for start in names:
        if not start or not any(name.startswith(start) for some in cases.values() for name, _ in some):
            parser.error(f"no kernel's name begins with {start!r}")

    for arch, some in cases.items():
        chosen = [(name, launch) for name, launch in some if not names or name.startswith(names)]
        for name, launch in chosen[args.slice]:
            kernels = apart(launch, arch)
            wrong = ["does not compile"] if not kernels else [
                fault for f in kernels for fault in faults(name, arch, f)]
            bad += [f"sm_{arch} {name} {fault}" for fault in wrong]
            figures = "; ".join(", ".join(f"{n} {what}" for what, n in f.items()) for f in kernels or ())
            figures = figures or wrong[0]
            found.setdefault(f"sm_{arch}", {})[name] = figures
            print(f"sm_{arch:<3} {name:75} {figures}", flush=True)
    if args.record:
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        mine = record.setdefault(f"triton {triton.__version__}", {})
        for arch, kernels in found.items():
            whole = not names and args.slice == slice(0, None, 1)
            mine[arch] = kernels if whole else mine.get(arch, {}) | kernels
        with atomic_write(RECORD) as path:
            path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    print("\n".join(bad), end="\n" if bad else "")
    return int(bool(bad))
