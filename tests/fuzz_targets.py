"""The file kinds of tests/fuzz.py: each target writes good files, reads them, and compares damaged ones."""

import functools
import random
import shutil
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pipeline
import released
import synthetic
import tiny
import torch
import yaml
from torch import Tensor

from swiftvideo_fast import sealed
from swiftvideo_fast.config import strict, to_dict
from swiftvideo_fast.data import files
from swiftvideo_fast.data.index import Index, index
from swiftvideo_fast.data.pairs import PairShards
from swiftvideo_fast.models import lora, weights
from swiftvideo_fast.models.toy.codec import PcaCodec
from swiftvideo_fast.models.wan import lora_files
from swiftvideo_fast.train import checkpoint, recipe, rounds

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Target:
    """make(folder) writes good files; read(folder) returns their contents as plain values and tensors.

    mutated: glob of the files that are damaged.  right(value, folder): whether a changed value is a correct
    reading of the damaged file.
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
    """Writes a model folder as released, in two shards, without our digest."""
    released.write(folder / "model", "sharded")


def read_folder(folder: Path) -> object:
    return dict(weights.load(folder / "model").state_dict())


def same_tensors(value: dict[str, Tensor], folder: Path) -> bool:
    """Returns whether safetensors reads the same values from the damaged files."""
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
    """Writes a zip of three members, one of them deflated."""
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
    """Returns whether each member is intact: a zip has checksums of members, not of their names or number."""
    good = {random.Random(number).randbytes(300) * (number + 1) for number in range(3)}
    return set(value.values()) <= good | {b""}


def make_config(folder: Path) -> None:
    shutil.copy(ROOT / "configs/demo/da.yaml", folder / "da.yaml")


def read_config(folder: Path) -> object:
    return to_dict(recipe.TABLES.load(folder / "da.yaml"))


def as_written(value: dict, folder: Path) -> bool:
    """Returns whether a config equals its YAML, with defaults for the missing keys."""
    flat = strict.flatten(value)
    tree = strict.flatten(yaml.safe_load((folder / "da.yaml").read_text()))
    return all(equal(found, tree[key] if key in tree else default_of(key, repr(found)))
               for key, found in flat.items())


@functools.cache
def default_of(key: str, otherwise: object) -> object:
    """Returns a key's default in the good config; `otherwise` if the config is invalid without the key."""
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
    """Returns a digest: equal for plain values that are equal and tensors equal bit for bit."""
    if isinstance(value, Tensor):
        return sealed.digest({"": value})
    if isinstance(value, dict):
        return tuple((str(key), digest(x)) for key, x in sorted(value.items(), key=lambda item: str(item[0])))
    if isinstance(value, list | tuple):
        return tuple(map(digest, value))
    return repr(value)
