"""Preferences on disk: pairs of clips from one noise and one condition, the winner and the loser.

    pairs.json                  what the pairs are of: student, steps, ladders, seed, count, ...
    pairs-00000.safetensors     SHARD pairs, and in the header what they are of and their bytes' sha256

A shard is whole or absent and depends on nothing but its number, so many ranks write one folder, and a folder
cut short is finished to the same bytes.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from swiftvideo_fast import path
from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.config import Config, differences
from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.data.source import draw_rows
from swiftvideo_fast.models import weights
from swiftvideo_fast.models.condition import Condition

MANIFEST = "pairs.json"
SHARD = 32
CLIPS, PER_CLIP, NULL_TEXT = ("x0", "loser", "noise"), ("frames", "text", "image"), "null_text"


@dataclass(frozen=True)
class Pairs(Batch):
    """x0: the winners.  loser, noise: as x0; noise is what both were sampled from."""

    loser: Tensor
    noise: Tensor

    def _picked(self, rows) -> dict:
        return super()._picked(rows) | {"loser": self.loser[rows], "noise": self.noise[rows]}


class PairShards:
    """A finished folder; pairs are read as they are drawn.  codec: the identity of the config's codec.

    ValueError names what is missing, damaged, or of another student or other options than the config's.
    """

    prefetch = False                    # a pair is read in a millisecond

    def __init__(self, cfg: Config, codec: dict):
        folder, about = folder_of(cfg), describe(cfg, codec)
        agree(folder, about)
        if not (folder / MANIFEST).exists():
            raise ValueError(f"{folder}: no pairs here; make them with `swiftvideo pairs`")
        self.count = about["count"]
        self.files = [_file(folder, shard) for shard in range(shards(self.count))]
        missing = [file.name for file in self.files if not is_whole(file, about)]
        if missing:
            raise ValueError(f"{folder} lacks {len(missing)} of {len(self.files)} shards, {missing[0]} the "
                             "first; finish them with `swiftvideo pairs`")

    def __len__(self) -> int:
        return self.count

    def summary(self) -> str:
        return f"{self.count} pairs in {self.files[0].parent}"

    def draw(self, count: int, seed: int, position: int) -> Pairs:
        """`count` pairs drawn with replacement; the same (seed, position) draws the same."""
        picked = [self._row(row) for row in draw_rows(len(self), count, seed, position).tolist()]
        tensors = {name: torch.stack([tensors[name] for tensors, _, _ in picked]) for name in picked[0][0]}
        condition = Condition(**{name: tensors[name] for name in PER_CLIP if name in tensors},
                              null_text=picked[0][1])
        clips = (tensors[name] for name in ("loser", "noise"))
        return Pairs(tensors["x0"], condition, [caption for *_, caption in picked], *clips)

    def close(self) -> None: ...

    def _row(self, row: int) -> tuple[dict[str, Tensor], Tensor, str]:
        """(what has a row a pair, the null text, the caption)."""
        with safe_open(self.files[row // SHARD], "pt") as file:
            caption = json.loads(file.metadata()["pairs"])["captions"][row % SHARD]
            names = [name for name in file.keys() if name != NULL_TEXT]  # noqa: SIM118
            tensors = {name: file.get_slice(name)[row % SHARD] for name in names}
            return tensors, file.get_tensor(NULL_TEXT), caption


def describe(cfg: Config, codec: dict) -> dict:
    """What decides the bytes of a config's pairs."""
    o, s = cfg.objective, cfg.sample
    data = {key: value for key, value in asdict(cfg.data).items() if key not in ("pool", "batch")}
    return {"student": weights.digest(cfg.model.start)} | codec | {
            "winner": o.winner, "steps": list(o.steps), "ladders": [path.ladder(n, s.shift) for n in o.steps],
            "sampler": s.sampler, "guidance": s.guidance, "seed": cfg.run.seed, "count": o.count} | data


def folder_of(cfg: Config) -> Path:
    return Path(cfg.objective.pairs or f"{cfg.run.dir}/pairs")


def write(cfg: Config, codec: dict, numbers: Iterable[int], make: Callable[[int, int], Pairs]) -> None:
    """Write the shards of these numbers that are not there yet; make(shard, size) gives one's pairs.

    Who writes shard 0 writes the manifest.  What is there is only read, so any number of processes may look
    over a finished folder at once.  ValueError when the folder holds other pairs.
    """
    folder, about = folder_of(cfg), describe(cfg, codec)
    agree(folder, about)
    for shard in numbers:
        file = _file(folder, shard)
        there = is_whole(file, about)
        if shard == 0 and not (folder / MANIFEST).exists():
            with atomic_write(folder / MANIFEST) as aside:
                aside.write_text(json.dumps(about, indent=1) + "\n")
        if not there:
            pairs = make(shard, min(SHARD, about["count"] - shard * SHARD))
            with atomic_write(file) as aside:
                aside.write_bytes(_packed(pairs, about))


def shards(count: int) -> int:
    """How many hold `count` pairs."""
    return -(-count // SHARD)


def agree(folder: Path, about: dict) -> None:
    """ValueError with the keys that differ when the folder holds other pairs."""
    try:
        changed = differences(json.loads((folder / MANIFEST).read_text()), about)
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError) as why:
        raise ValueError(f"{folder / MANIFEST}: not the manifest of pairs ({why}); restore it, or take "
                         "another objective.pairs") from why
    if changed:
        raise ValueError(f"{folder} holds other pairs ({'; '.join(changed)}); take another objective.pairs, "
                         "or the values they were made by")


def is_whole(file: Path, about: dict) -> bool:
    """Whether a shard is there; ValueError when it is damaged or holds other pairs."""
    if not file.exists():
        return False
    try:
        raw = file.read_bytes()
        with safe_open(file, "pt") as opened:
            header = json.loads(opened.metadata()["pairs"])
        if _sha256(raw) != header["sha256"]:
            raise ValueError("its bytes are not those that were written")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as why:
        raise ValueError(f"{file}: damaged ({why}); delete it and run `swiftvideo pairs` again") from why
    if header["about"] != about:
        changed = "; ".join(differences(header["about"], about))
        raise ValueError(f"{file} holds other pairs ({changed}); take another objective.pairs")
    return True


def _packed(pairs: Pairs, about: dict) -> bytes:
    """One key of metadata: safetensors does not keep the order of several."""
    condition = {name: x for name, x in vars(pairs.condition).items() if x is not None}
    tensors = {name: getattr(pairs, name).contiguous() for name in CLIPS} | condition
    header = {"about": about, "captions": pairs.captions, "sha256": _sha256(save(tensors))}
    return save(tensors, {"pairs": json.dumps(header)})


def _sha256(raw: bytes) -> str:
    """Of a safetensors file's tensors, its header left out."""
    return hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little"):]).hexdigest()


def _file(folder: Path, shard: int) -> Path:
    return folder / f"pairs-{shard:05d}.safetensors"
