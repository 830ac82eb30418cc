"""Preferences on disk: pairs of clips from one noise and one condition, the winner and the loser.

    pairs.json                  what the pairs are of: student, steps, ladders, seed, count, ...
    pairs-00000.safetensors     SHARD pairs; in the header what they are of, and a sha256 of each pair

A shard is whole or absent and depends on nothing but its number, so many ranks write one folder, and a folder
cut short is finished to the same bytes.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from swiftvideo_fast import path, sealed
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
    """A finished folder, held against its digests at once, each pair again when it is drawn.

    codec: the identity of the config's codec.

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
        self.shards = [Shard(file, about) for file in self.files]

    def __len__(self) -> int:
        return self.count

    def summary(self) -> str:
        return f"{self.count} pairs in {self.files[0].parent}"

    def draw(self, count: int, seed: int, position: int) -> Pairs:
        """`count` pairs drawn with replacement; the same (seed, position) draws the same."""
        rows = [divmod(row, SHARD) for row in draw_rows(len(self), count, seed, position).tolist()]
        picked = [self.shards[shard].pair(slot) for shard, slot in rows]
        tensors = {name: torch.stack([tensors[name] for tensors in picked]) for name in picked[0]}
        condition = Condition(**{name: tensors[name] for name in PER_CLIP if name in tensors},
                              null_text=self.shards[rows[0][0]].null_text())
        clips = (tensors[name] for name in ("loser", "noise"))
        captions = [self.shards[shard].header["captions"][slot] for shard, slot in rows]
        return Pairs(tensors["x0"], condition, captions, *clips)

    def close(self) -> None: ...


class Shard:
    """An open file of pairs.  header: {"about", "captions", "digests", "null_text"}.

    ValueError when the file holds other pairs, or is damaged: in its header at once, in a pair when that is
    read.
    """

    def __init__(self, file: Path, about: dict):
        self.file = file
        try:
            self.opened = safe_open(file, "pt")
            self.header = sealed.unsealed(self.opened.metadata()["pairs"])
            self.names = sorted(name for name in self.opened.keys() if name != NULL_TEXT)  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as why:
            raise self._damaged(why) from why
        if self.header["about"] != about:
            changed = "; ".join(differences(self.header["about"], about))
            raise ValueError(f"{file} holds other pairs ({changed}); delete {file.parent}")

    def pair(self, slot: int) -> dict[str, Tensor]:
        """What has a row a pair."""
        try:
            found = {name: self.opened.get_slice(name)[slot] for name in self.names}
        except (SafetensorError, IndexError) as why:
            raise self._damaged(why) from why
        return self._checked(found, self.header["digests"][slot])

    def null_text(self) -> Tensor:
        try:
            found = {NULL_TEXT: self.opened.get_tensor(NULL_TEXT)}
        except SafetensorError as why:
            raise self._damaged(why) from why
        return self._checked(found, self.header["null_text"])[NULL_TEXT]

    def check(self) -> None:
        """Read all of it."""
        self.null_text()
        for slot in range(len(self.header["digests"])):
            self.pair(slot)

    def _checked(self, tensors: dict[str, Tensor], digest: str) -> dict[str, Tensor]:
        if sealed.digest(tensors) != digest:
            raise self._damaged(f"{', '.join(tensors)}: not the bytes that were written")
        return tensors

    def _damaged(self, why: object) -> ValueError:
        return ValueError(f"{self.file}: damaged ({why}); delete it and run `swiftvideo pairs` again")


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
            with atomic_write(folder / MANIFEST) as tmp:
                tmp.write_text(json.dumps(about, indent=1) + "\n")
        if not there:
            pairs = make(shard, min(SHARD, about["count"] - shard * SHARD))
            with atomic_write(file) as tmp:
                tmp.write_bytes(_packed(pairs, about))


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
        raise ValueError(f"{folder} holds other pairs ({'; '.join(changed)}); choose another "
                         "objective.pairs, "
                         "or the values they were made by")


def is_whole(file: Path, about: dict) -> bool:
    """Whether a shard is there; ValueError when it is damaged or holds other pairs."""
    if not file.exists():
        return False
    Shard(file, about).check()
    return True


def _packed(pairs: Pairs, about: dict) -> bytes:
    """One key of metadata: safetensors does not keep the order of several."""
    condition = {name: x for name, x in vars(pairs.condition).items() if x is not None}
    tensors = {name: getattr(pairs, name).contiguous() for name in CLIPS} | condition
    digests = [sealed.digest({name: x[slot] for name, x in tensors.items() if name != NULL_TEXT})
               for slot in range(len(pairs))]
    header = {"about": about, "captions": pairs.captions, "digests": digests,
              "null_text": sealed.digest({NULL_TEXT: tensors[NULL_TEXT]})}
    return save(tensors, {"pairs": sealed.seal(header)})


def _file(folder: Path, shard: int) -> Path:
    return folder / f"pairs-{shard:05d}.safetensors"
