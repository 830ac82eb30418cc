"""Damaged input files.  Each must be read right or refused with one error that names it.

    python tests/fuzz.py [TARGET ...] [--count 10000] [--first 0] [--jobs 2]

A case is (target, number): its mutation is drawn from the number alone, so `--first N --count 1` repeats it.
Outcomes: right, the value read is the one written; refused, a ValueError of at most LINES lines that names
the file or its folder.  All others fail: wrong (another value), error (another exception), crash (the process
died), hang (no answer in HANG seconds).
"""

import argparse
import functools
import multiprocessing
import random
import re
import resource
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

import pipeline  # noqa: E402
import released  # noqa: E402
import synthetic  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from torch import Tensor  # noqa: E402

from swiftvideo_fast import sealed  # noqa: E402
from swiftvideo_fast.config import strict, to_dict  # noqa: E402
from swiftvideo_fast.data import files  # noqa: E402
from swiftvideo_fast.data.index import Index, index  # noqa: E402
from swiftvideo_fast.data.pairs import PairShards  # noqa: E402
from swiftvideo_fast.models import lora, weights  # noqa: E402
from swiftvideo_fast.models.toy.codec import PcaCodec  # noqa: E402
from swiftvideo_fast.models.wan import lora_files  # noqa: E402
from swiftvideo_fast.train import checkpoint, recipe, rounds  # noqa: E402

HANG, START, MEMORY, LINES = 30.0, 300.0, 12 << 30, 3
FAILURES = "wrong", "error", "crash", "hang"
NUMBERS = [b"%d" % n for n in (0, -1, 1, 7, 1 << 31, (1 << 63) - 1, 1 << 64)] + [b"1e400", b"NaN"]
VALUES = b"null", b"true", b'""', b"[]", b"{}", b"3.5", b'"../../x"', b"[[[[", b"\xff"


@dataclass(frozen=True)
class Target:
    """make(folder) writes good files; read(folder) gives what they hold, as plain values and tensors.

    mutated: glob of the files that are damaged.  right(value, folder): whether another value is what the
    damaged file says.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], object]
    mutated: str
    right: Callable[[object, Path], bool] = lambda value, folder: False


def make_weights(folder: Path) -> None:
    weights.save(tiny.network(), folder / "net.safetensors", sample={"sampler": "euler", "shift": 3.0})


def read_weights(folder: Path) -> object:
    net, header = weights.load(folder / "net.safetensors"), weights.Stored(folder / "net.safetensors").header
    return [header["config"], header["about"], dict(net.state_dict())]


def make_folder(folder: Path) -> None:
    """As released, in two shards: files of other writers, which carry no digest."""
    released.write(folder / "model", "sharded")


def read_folder(folder: Path) -> object:
    return dict(weights.load(folder / "model").state_dict())


def same_tensors(value: dict[str, Tensor], folder: Path) -> bool:
    """Whether the values are those that safetensors itself reads from the damaged files."""
    from safetensors.torch import load_file

    stored = [x for file in (folder / "model").glob("*.safetensors") for x in load_file(file).values()]
    left = Counter(digest(x.float()) for x in stored)
    return not Counter(digest(x) for x in value.values()) - left


def make_codec(folder: Path) -> None:
    tiny.write_inputs(folder)
    (folder / "teacher.safetensors").unlink()


def read_codec(folder: Path) -> object:
    return PcaCodec.load(folder / "codec.safetensors").tensors


def make_lora(folder: Path) -> None:
    net = tiny.network()
    lora.attach(net, 2, torch.Generator().manual_seed(0))
    lora.save(net, folder / "lora.safetensors", note="why")


def read_lora(folder: Path) -> object:
    return lora_files.read(folder / "lora.safetensors")


def make_checkpoint(folder: Path) -> None:
    tiny.write_inputs(folder)
    cfg = tiny.config(folder, "ccd")
    recipe.train(replace(cfg, run=replace(cfg.run, steps=2)), tiny.TABLES)
    kept = folder / "run" / "step-00000002"
    for path in list(folder.iterdir()):
        if path.name != "run":
            path.unlink()
    shutil.move(kept, folder)
    shutil.rmtree(folder / "run")


def read_checkpoint(folder: Path) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = checkpoint.last_good(folder)
    if saved is None:
        raise ValueError(f"{folder}: no checkpoint")            # a run without one starts at step 0
    return [saved.state, {part: saved.tensors(part) for part in ("student/", "average/")}]


def pairs_config(folder: Path):
    cfg = tiny.config(folder, "ta")
    return replace(cfg, objective=replace(cfg.objective, pairs=str(folder / "pairs"), count=5))


def make_pairs(folder: Path) -> None:
    tiny.write_inputs(folder)
    rounds.make_pairs(pairs_config(folder), tables=tiny.TABLES)


def read_pairs(folder: Path) -> object:
    cfg = pairs_config(folder)
    source = PairShards(cfg, recipe.Parts(cfg, tiny.TABLES).codec.identity)
    drawn = source.draw(8, 0, 0)
    return [vars(drawn.condition), drawn.x0, drawn.loser, drawn.noise, drawn.captions]


def make_videos(folder: Path) -> None:
    videos = synthetic.videos(folder / "set", 4)
    for name in [*videos.bad, *videos.short]:
        if (folder / "set" / name).is_file():
            (folder / "set" / name).unlink()
    index(videos.folder, videos.captions, folder / "index.parquet")


def read_index(folder: Path) -> object:
    table = Index(folder / "index.parquet")
    rows = [table[row] for row in range(len(table))]
    return [str(table.folder.relative_to(folder)), table.seconds.tolist(), table.captions,
            [(str(place), video.as_dict(), caption) for place, video, caption in rows]]


def make_shards(folder: Path) -> None:
    make_videos(folder)
    pipeline.job(folder / "index.parquet", folder / "shards").write([0], 1)
    shutil.rmtree(folder / "set")


def read_shards(folder: Path) -> object:
    source = pipeline.shards_of(folder / "shards")
    drawn = source.draw(len(source), 0, 0)
    return [vars(drawn.condition), drawn.x0, drawn.captions, source.summary()]


def make_archive(folder: Path) -> None:
    """A zip of three members, one of them deflated."""
    with zipfile.ZipFile(folder / "part0.zip", "w") as archive:
        for number in range(3):
            data = random.Random(number).randbytes(300) * (number + 1)
            archive.writestr(f"videos/{number}.mp4", data, zipfile.ZIP_DEFLATED if number else None)


def read_archive(folder: Path) -> object:
    files.open_archive.cache_clear()
    found, unread = files.walk(folder)
    if unread:
        raise ValueError(f"{folder / 'part0.zip'}: {[*unread.values()][0]}")
    try:
        return {str(place): files.read(folder, place) for place in found}
    except ValueError as why:                                   # its callers put the file's name before it
        raise ValueError(f"{folder / 'part0.zip'}: {why}") from why


def some_members(value: dict[str, bytes], folder: Path) -> bool:
    """A zip protects each member's bytes by a checksum, not the names or the number of the members."""
    good = {random.Random(number).randbytes(300) * (number + 1) for number in range(3)}
    return set(value.values()) <= good | {b""}


def make_config(folder: Path) -> None:
    shutil.copy(ROOT / "configs/demo/da.yaml", folder / "da.yaml")


def read_config(folder: Path) -> object:
    return to_dict(recipe.TABLES.load(folder / "da.yaml"))


def as_written(value: dict, folder: Path) -> bool:
    """Whether a config's values are those of its YAML, and the others the defaults."""
    flat = strict.flatten(value)
    tree = strict.flatten(yaml.safe_load((folder / "da.yaml").read_text()))
    return all(equal(found, tree[key] if key in tree else default_of(key, repr(found)))
               for key, found in flat.items())


@functools.cache
def default_of(key: str, otherwise: object) -> object:
    """What a key is when the good config leaves it out; `otherwise` where that config cannot tell."""
    *sections, last = key.split(".")
    tree = inner = yaml.safe_load((ROOT / "configs/demo/da.yaml").read_text())
    for section in sections:
        inner = inner.get(section) or {}
    inner.pop(last, None)
    try:
        return strict.flatten(to_dict(recipe.TABLES.from_dict(tree))).get(key, otherwise)
    except ValueError:
        return otherwise


def equal(found: object, wanted: object) -> bool:
    try:
        return found == wanted or float(found) == float(wanted)
    except (TypeError, ValueError):
        return [*found] == [*wanted] if isinstance(found, list) and isinstance(wanted, list) else False


TARGETS = {
    "weights": Target(make_weights, read_weights, "net.safetensors"),
    "folder": Target(make_folder, read_folder, "model/*", same_tensors),
    "checkpoint": Target(make_checkpoint, read_checkpoint, "step-*/*"),
    "pairs": Target(make_pairs, read_pairs, "pairs/*"),
    "shards": Target(make_shards, read_shards, "shards/*.[sj]*"),
    "index": Target(make_videos, read_index, "index.parquet"),
    "codec": Target(make_codec, read_codec, "codec.safetensors"),
    "lora": Target(make_lora, read_lora, "lora.safetensors"),
    "config": Target(make_config, read_config, "da.yaml", as_written),
    "archive": Target(make_archive, read_archive, "part0.zip", some_members),
}


def digest(value: object) -> object:
    """A value that is equal for equal tensors, bit for bit, and equal plain values."""
    if isinstance(value, Tensor):
        return sealed.digest({"": value})
    if isinstance(value, dict):
        return tuple((str(key), digest(x)) for key, x in sorted(value.items(), key=lambda item: str(item[0])))
    if isinstance(value, list | tuple):
        return tuple(map(digest, value))
    return repr(value)


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """Another file: bits, ranges, numbers or words of it changed."""
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
    """A number, a word or a quoted string near `at` replaced, dropped or repeated."""
    tokens = [*re.finditer(rb'-?\d[\d.e+-]*|"[^"\n]{0,80}"|[A-Za-z_]+|[\[\]{},:]|\n', raw[at:at + 200])]
    if not tokens:
        return raw[:at]
    found = rng.choice(tokens)
    new = rng.choice((b"", found[0] * 2, rng.choice(NUMBERS), rng.choice(NUMBERS), rng.choice(VALUES),
                      rng.choice(tokens)[0]))
    return raw[:at + found.start()] + new + raw[at + found.end():]


def damage(folder: Path, pattern: str, rng: random.Random) -> Path:
    """Change one file below `folder`; returns its path."""
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
    """(outcome, what was said) of one case; `case` is a folder that is written anew."""
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
    """(folder of good files, digest of what they hold)."""
    target, good, case = TARGETS[name], folder / name, folder / "case" / name
    if not good.exists():
        case.mkdir(parents=True)
        target.make(case)                                       # paths are part of some files
        shutil.copytree(case, good)
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(good, case)
    return good, digest(target.read(case))


def work(name: str, folder: Path, numbers: range, send) -> None:
    """Runs in a process of its own: sends (number, outcome, message) after each case."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    good, wanted = prepared(name, folder)
    send.send(None)
    for number in numbers:
        send.send((number, *one(TARGETS[name], good, wanted, number, folder / "case" / name)))


def fuzz(name: str, folder: Path, numbers: range) -> tuple[Counter, list[str]]:
    """({outcome: cases}, a line a failure).  A process that dies or hangs is begun again after its case."""
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
