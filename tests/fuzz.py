"""Damaged input files.  Each must be read correctly or rejected with one error that names it.

    python tests/fuzz.py [TARGET ...] [--count 10000] [--first 0]

A case is (target, number): the number seeds its mutation, so `--first N --count 1` repeats it.
Outcomes: right, the value read is the one written; refused, a ValueError of at most LINES lines that names
the file or its folder.  All others fail: wrong (another value), error (another exception), crash (the process
died), hang (no answer in HANG seconds).
"""

import argparse
import multiprocessing
import random
import re
import resource
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

import torch  # noqa: E402
from fuzz_targets import TARGETS, Target, digest  # noqa: E402

HANG, START, MEMORY, LINES = 30.0, 300.0, 12 << 30, 3
FAILURES = "wrong", "error", "crash", "hang"
NUMBERS = [b"%d" % n for n in (0, -1, 1, 7, 1 << 31, (1 << 63) - 1, 1 << 64)] + [b"1e400", b"NaN"]
VALUES = b"null", b"true", b'""', b"[]", b"{}", b"3.5", b'"../../x"', b"[[[[", b"\xff"


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """Returns the file with bits, byte ranges, numbers or words changed."""
    head = 8 + int.from_bytes(raw[:8], "little")                # of a safetensors file
    end = head if head < len(raw) and rng.random() < 0.6 else len(raw)
    at = rng.randrange(end) if end else 0
    size = min(len(raw) - at, int(2 ** rng.uniform(0, 10)))
    other = rng.randrange(len(raw)) if raw else 0
    kind = rng.randrange(14)
    if kind <= 2 and raw:
        return raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1:]
    if kind <= 6:
        return _token(raw, at, rng)
    return {
        7: lambda: raw[:at] + rng.randbytes(size) + raw[at + size:],
        8: lambda: raw[:at] + bytes([rng.choice((0, 255))]) * size + raw[at + size:],
        9: lambda: raw[:at],
        10: lambda: raw[:at] + raw[at + size:],
        11: lambda: raw[:at] + raw[at:at + size] * 2 + raw[at + size:],
        12: lambda: raw[:at] + raw[other:other + size] + raw[at + size:],
        13: lambda: raw + rng.randbytes(size),
    }[kind]()


def _token(raw: bytes, at: int, rng: random.Random) -> bytes:
    """Replaces, drops or repeats a number, word or quoted string near `at`."""
    tokens = [*re.finditer(rb'-?\d[\d.e+-]*|"[^"\n]{0,80}"|[A-Za-z_]+|[\[\]{},:]|\n', raw[at:at + 200])]
    if not tokens:
        return raw[:at]
    found = rng.choice(tokens)
    new = rng.choice((b"", found[0] * 2, rng.choice(NUMBERS), rng.choice(NUMBERS), rng.choice(VALUES),
                      rng.choice(tokens)[0]))
    return raw[:at + found.start()] + new + raw[at + found.end():]


def damage(folder: Path, pattern: str, rng: random.Random) -> Path:
    """Damages one file below `folder`; returns its path."""
    path = rng.choice(sorted(folder.glob(pattern)))
    if (kind := rng.random()) < 0.004:
        path.unlink()
        if kind < 0.002:
            path.mkdir()
        return path
    raw = path.read_bytes()
    while (new := mutate(raw, rng)) == raw:
        pass
    if rng.random() < 0.1:
        new = mutate(new, rng)
    path.write_bytes(new)
    return path


def one(target: Target, good: Path, wanted: object, number: int, case: Path) -> tuple[str, str]:
    """Runs one case in the folder `case`, which it replaces; returns (outcome, message)."""
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(good, case)
    path = damage(case, target.mutated, random.Random(number))
    try:
        value = target.read(case)
    except ValueError as why:
        said = str(why)
        named = path.name in said or str(path.parent) in said
        return ("refused" if named and len(said.splitlines()) <= LINES else "error"), f"{path.name}: {said}"
    except Exception as why:                                    # noqa: BLE001  (what is to be found)
        return "error", f"{path.name}: {why!r}"
    if digest(value) == wanted:
        return "right", ""
    try:
        right = target.right(value, case)
    except Exception as why:                                    # noqa: BLE001
        return "wrong", f"{path.name}: read, where an independent reader says {why!r}"
    return ("right", "") if right else ("wrong", f"{path.name}: another value is read")


def prepared(name: str, folder: Path) -> tuple[Path, object]:
    """Returns (folder of good files, digest of their contents)."""
    target, good, case = TARGETS[name], folder / name, folder / "case" / name
    if not good.exists():
        case.mkdir(parents=True)
        target.make(case)                                       # paths are part of some files
        shutil.copytree(case, good)
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(good, case)
    return good, digest(target.read(case))


def work(name: str, folder: Path, numbers: range, send) -> None:
    """Runs cases in a worker process; sends (number, outcome, message) after each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    good, wanted = prepared(name, folder)
    send.send(None)
    for number in numbers:
        send.send((number, *one(TARGETS[name], good, wanted, number, folder / "case" / name)))


def fuzz(name: str, folder: Path, numbers: range) -> tuple[Counter, list[str]]:
    """Returns ({outcome: cases}, one line per failure).  A dead or hung process is restarted."""
    counts, failures, spawn = Counter(), [], multiprocessing.get_context("spawn")
    prepared(name, folder)
    while numbers:
        receive, send = spawn.Pipe(duplex=False)
        worker = spawn.Process(target=work, args=(name, folder, numbers, send), daemon=True)
        worker.start()
        send.close()
        limit = START
        while numbers:
            try:
                if not receive.poll(limit):
                    outcome = "hang"
                elif (result := receive.recv()) is None:
                    limit = HANG
                    continue
                else:
                    number, outcome, said = result
            except EOFError:
                worker.join()
                outcome = "crash"
            if outcome in ("hang", "crash"):
                number, said = numbers[0], f"exit code {worker.exitcode}"
            counts[outcome] += 1
            if outcome in FAILURES:
                failures.append(f"{name} {number}: {outcome}: {said}")
            numbers = numbers[1:]
            if outcome in ("hang", "crash"):
                break
        worker.kill()
        worker.join()
    return counts, failures


def _job(name: str, numbers: range) -> tuple[Counter, list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        return fuzz(name, Path(folder), numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--shown", type=int, default=20, help="failures printed a target")
    args = parser.parse_args()
    failed = False
    for name in args.targets or TARGETS:
        counts, failures = _job(name, range(args.first, args.first + args.count))
        print(f"{name:11} {dict(counts)}", *failures[:args.shown], sep="\n    ", flush=True)
        failed |= bool(failures)
    sys.exit(failed)


if __name__ == "__main__":
    main()
