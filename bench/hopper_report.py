"""Compiles attention_jvp_hopper for sm_90 without a GPU and analyses its machine code by loop.

    python -m bench hopper_report                       every case, with the installed triton
    python -m bench hopper_report six four              only these cases
    python -m bench hopper_report --record              also write bench/hopper.json
    python -m bench hopper_report --cubin DIR           only write the machine code of the first two to DIR

Exit status 1 if a consumer's loop spills, its products are serialised, a loop has a block-wide barrier,
registers are not reallocated between the roles, or a register of a product in flight is accessed before its
wait.  Other versions of triton: `pip install --no-deps --target DIR triton==3.6.0`, then PYTHONPATH=DIR
before the command.
"""

import json
import os
import re
import subprocess
import tempfile
from functools import partial
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch  # noqa: E402
import triton  # noqa: E402
from swiftvideo_kernels.hopper import attention_jvp_hopper  # noqa: E402
from swiftvideo_kernels.tiles import TILES  # noqa: E402

from bench.compile_report import CUOBJDUMP, SHARED, compiled, meta  # noqa: E402
from bench.options import Parser, folder  # noqa: E402
from swiftvideo_fast.atomic import atomic_write  # noqa: E402

RECORD = Path(__file__).with_name("hopper.json")              # {triton: {case: figures}}
TILE, TILE_64 = (TILES["attention_jvp", "sm90", width][0] for width in (128, 64))
CASES = {                                                     # name: options that differ from six products
    "six": {},
    "six, the other order": {"tile": TILE._replace(h_first=not TILE.h_first)},
    "six, causal, packed": {"causal": True, "packed": True},
    "six, causal": {"causal": True},
    "six, width 96": {"width": 96},
    "six, float16": {"dtype": torch.float16},
    "six, width 64": {"width": 64, "tile": TILE_64},
    "four": {"given": (1, 0, 0)},
    "four, width 64": {"given": (1, 0, 0), "width": 64, "tile": TILE_64},
    "four, no tangent of q, keys": {"given": (0, 1, 0)},
    "three": {"given": (0, 0, 1)},
}
SPILLS = {(3, 9): (6, 12)}                                    # STL, LDL in a loop; none with other tritons


def case(width=128, given=(1, 1, 1), dtype=torch.bfloat16, packed=False, causal=False,
         tile=TILE) -> partial:
    """Returns a launch with 12 heads, 3 key heads if packed."""
    G, N = (3 if packed else 12), 24960
    q, tq = (meta(1, N, 12, width, dtype=dtype).transpose(1, 2) for _ in range(2))
    k, tk, v, tv = (meta(1, N, G, width, dtype=dtype).transpose(1, 2) for _ in range(4))
    tq, tk, tv = (x if here else None for x, here in zip((tq, tk, tv), given))
    cu = meta(3, dtype=torch.int32) if packed else None
    return partial(attention_jvp_hopper, q, tq, k, tk, v, tv, width**-0.5, causal, tile, cu, cu)


def instructions(sass: str) -> list[tuple[int, str]]:
    """Returns (address, text) of each instruction."""
    found = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", sass, re.M)
    return [(int(at, 16), " ".join(text.split())) for at, text in found]


def loops(code: list[tuple[int, str]]) -> list[list[str]]:
    """Returns the innermost loops with an HGMMA: the consumers' main loops."""
    where, ranges = {at: i for i, (at, _) in enumerate(code)}, []
    for i, (_, text) in enumerate(code):
        jump = re.search(r"\bBRA(?:\.\w+)* (?:!?U?P\d+, )?`?\(?(0x[0-9a-f]+)", text)
        first = where.get(int(jump[1], 16)) if jump else None
        if first is not None and first < i:
            body = [text for _, text in code[first:i + 1]]
            if any("HGMMA" in text for text in body) and not any("USETMAXREG" in text for text in body):
                ranges.append((first, i))
    kept = [(a, b) for a, b in ranges if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in ranges)]
    return [[text for _, text in code[a:b + 1]] for a, b in sorted(kept)]


def hazards(body: list[str]) -> int:
    """Counts accesses to registers of products in flight: writes of A operands, any access of accumulators.

    A single scan in code order: a loop begins and ends with nothing in flight.
    """
    flying, found, group = [], 0, 0                           # (group, A, accumulators); gsb0 ends a group
    for text in body:
        op = re.sub(r"^@!?U?P\w+ ", "", text)
        if op.startswith("HGMMA"):
            count = int(re.match(r"HGMMA\.64x(\d+)", op)[1]) // 2
            d, a = re.match(r"HGMMA\.\S+ R(\d+), (?:R(\d+), )?gdesc", op).groups()
            flying.append((group, set(range(int(a), int(a) + 4)) if a else set(),
                           set(range(int(d), int(d) + count))))
            group += "gsb0" in op
        elif wait := re.search(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\w+)", op):
            flying = [f for f in flying if f[0] >= group - int(wait[1], 16)]
        else:
            used = [int(r) for r in re.findall(r"\bR(\d+)\b", op)]
            no_write = re.match(r"(ST|BAR|BRA|SYNCS|RED|WARP|EXIT|U[A-Z]|R2UR|NOP|FSETP|ISETP)", op)
            pair = 2 if ".64" in op or "WIDE" in op else 1
            written = {used[0] + i for i in range(pair)} if used and not no_write else set()
            found += any(written & a or (written | set(used)) & d for _, a, d in flying)
    return found


def counts(body: list[str]) -> dict:
    def n(pattern):
        return sum(bool(re.search(pattern, text)) for text in body)
    return {"instructions": len(body), "HGMMA": n(r"\bHGMMA"), "waits": n(r"WARPGROUP\.DEPBAR"),
            "STL": n(r"\bSTL"), "LDL": n(r"\bLDL"), "BAR": n(r"\bBAR\.SYNC"),
            "BAR of all": n(r"\bBAR\.SYNC(?!.*, 0x80\b)"),
            "F2F": n(r"\bF2F\b"), "hazards": hazards(body)}


def figures(kernel) -> dict:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        usage, sass = (subprocess.check_output([CUOBJDUMP, flag, cubin.name], text=True)
                       for flag in ("-res-usage", "-sass"))
    code = instructions(sass)
    text = [text for _, text in code]
    return {"shared": kernel.metadata.shared, "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
            "STL": sum(bool(re.search(r"\bSTL", line)) for line in text),
            "SETMAXREG": sorted({int(x, 16) for x in re.findall(r"USETMAXREG.*?(0x\w+)", "\n".join(text))}),
            "loops": [counts(body) for body in loops(code)]}


def faults(f: dict, products: int, registers: int, version: tuple[int, int]) -> list[str]:
    """Returns the violated requirements.  products: HGMMA per loop iteration."""
    found, (most_stl, most_ldl) = [], SPILLS.get(version, (0, 0))
    if len(f["loops"]) != 2:
        found.append(f"has {len(f['loops'])} loops with HGMMA; want one per consumer")
    for loop in f["loops"]:
        if loop["STL"] > most_stl or loop["LDL"] > most_ldl:
            found.append(f"spills in a loop ({loop['STL']} STL, {loop['LDL']} LDL)")
        if loop["HGMMA"] != products or loop["waits"] > 3:
            found.append(f"has {loop['HGMMA']} HGMMA and {loop['waits']} waits per iteration; "
                         f"want {products} and 3")
        if loop["BAR of all"]:
            found.append(f"has {loop['BAR of all']} block-wide barriers per iteration")
        if loop["F2F"]:
            found.append(f"rounds one value at a time ({loop['F2F']} F2F)")
        if loop["hazards"]:
            found.append(f"accesses registers of products in flight {loop['hazards']} times")
    if not {24, registers} <= set(f["SETMAXREG"]):
        found.append(f"reallocates registers to {f['SETMAXREG']}; want 24 and {registers}")
    if f["shared"] > SHARED[90]:
        found.append(f"needs {f['shared']} bytes of shared memory; the limit is {SHARED[90]}")
    return found


def products(width=128, given=(1, 1, 1), tile=TILE, **_) -> int:
    """Returns HGMMA per iteration: depth 16 each, 64 rows by BLOCK_N or by the padded width."""
    tq, tk, tv = given
    padded = max(64, triton.next_power_of_2(width))
    return (1 + tq + tk) * padded // 16 + (1 + tv + (tq or tk)) * tile.block_n // 16


def write_cubins(folder: Path) -> None:
    """Writes the tile's cubins, in both orders, for `hopper_card --part tritons`."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in (False, True):
        kernel = compiled(case(tile=TILE._replace(h_first=first)), 90)[0]
        name = f"{triton.__version__}{', h first' * first}"
        (folder / f"{name}.cubin").write_bytes(kernel.asm["cubin"])
        fields = "name", "shared", "num_warps", "tensordesc_meta"
        about = {field: getattr(kernel.metadata, field) for field in fields}
        entry = kernel.asm["ptx"].split(".entry")[1].split(")")[0]
        about["parameters"] = re.findall(r"\.param (.*?)[,\n]", entry)
        (folder / f"{name}.json").write_text(json.dumps(about) + "\n")


def main(argv: list[str]) -> int:
    parser = Parser("hopper_report", __doc__)
    parser.add_argument("names", nargs="*", metavar="CASE")
    parser.add_argument("--record", action="store_true", help="write the figures to bench/hopper.json")
    parser.add_argument("--cubin", type=folder, metavar="DIR",
                        help="write two cubins for hopper_card into DIR")
    args = parser.parse_args(argv)
    parser.known("case", args.names, CASES)
    if args.cubin and (args.names or args.record):
        parser.error("--cubin only writes, always the same two; want no CASE and no --record with it")
    if args.cubin:
        write_cubins(args.cubin)
        return 0
    version = tuple(map(int, triton.__version__.split(".")[:2]))
    bad, found = [], {}
    for name in args.names or CASES:
        f = figures(compiled(case(**CASES[name]), 90)[0])
        registers = CASES[name].get("tile", TILE).hopper
        bad += [f"{name}: {fault}" for fault in faults(f, products(**CASES[name]), registers, version)]
        found[name] = f
        print(f"{name:30}", *(f"{what} {f[what]}" for what in ("shared", "stack", "STL", "SETMAXREG")))
        for loop in f["loops"]:
            print(f"{'':32}loop: " + ", ".join(f"{n} {what}" for what, n in loop.items()), flush=True)
    if args.record:
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        record.setdefault(f"triton {triton.__version__}", {}).update(found)
        with atomic_write(RECORD) as path:
            path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    print("\n".join(bad), end="\n" if bad else "")
    return int(bool(bad))
