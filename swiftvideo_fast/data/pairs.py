"""TA pairs on disk: winner and loser clips from the same noise and condition.

    pairs.json                  what the pairs depend on: student, steps, ladders, seed, count, ...
    pairs-00000.safetensors     SHARD pairs; the header has the same, and a sha256 of each pair

Shards are written atomically and depend on their number alone, so many ranks write one folder, and an
interrupted folder is completed to the same bytes.
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
    """x0: the winners.  loser, noise: shaped as x0; both clips were sampled from `noise`."""

    loser: Tensor
    noise: Tensor

    def _selected(self, rows) -> dict:
        return super()._selected(rows) | {"loser": self.loser[rows], "noise": self.noise[rows]}


class PairShards:
    """A finished folder of pairs.  Digests are checked on opening, and again when a pair is drawn.

    codec: the identity of the config's codec.  ValueError for shards that are missing, damaged, or of another
    student or other options than the config's.
    """

    prefetch = False                    # reading a pair takes a millisecond

    def __init__(self, cfg: Config, codec: dict):
        folder, about = folder_of(cfg), describe(cfg, codec)
        check_manifest(folder, about)
        if not (folder / MANIFEST).exists():
            raise ValueError(f"{folder}: no pairs here; write them with `swiftvideo pairs`")
        self.count = about["count"]
        self.files = [_file(folder, shard) for shard in range(shards(self.count))]
        missing = [file.name for file in self.files if not is_written(file, about)]
        if missing:
            raise ValueError(f"{folder} lacks {len(missing)} of {len(self.files)} shards, {missing[0]} the "
                             "first; finish them with `swiftvideo pairs`")
        self.shards = [Shard(file, about) for file in self.files]

    def __len__(self) -> int:
        return self.count

    def summary(self) -> str:
        return f"{self.count} pairs in {self.files[0].parent}"

    def draw(self, count: int, seed: int, position: int) -> Pairs:
        """Draws `count` pairs with replacement, as a function of (seed, position)."""
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

    ValueError when the file holds other pairs or is damaged: the header is checked on opening, a pair on
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
        """Returns one pair's tensors by name."""
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
        """Reads every pair and checks its digest."""
        self.null_text()
        for slot in range(len(self.header["digests"])):
            self.pair(slot)

    def _checked(self, tensors: dict[str, Tensor], digest: str) -> dict[str, Tensor]:
        if sealed.digest(tensors) != digest:
            raise self._damaged(f"{', '.join(tensors)}: bytes differ from those written")
        return tensors

    def _damaged(self, why: object) -> ValueError:
        return ValueError(f"{self.file}: damaged ({why}); delete it and run `swiftvideo pairs` again")


def describe(cfg: Config, codec: dict) -> dict:
    """Returns everything that determines the bytes of a config's pairs."""
    o, s = cfg.objective, cfg.sample
    data = {key: value for key, value in asdict(cfg.data).items() if key not in ("pool", "batch")}
    return {"student": weights.digest(cfg.model.start)} | codec | {
            "winner": o.winner, "steps": list(o.steps), "ladders": [path.ladder(n, s.shift) for n in o.steps],
            "sampler": s.sampler, "guidance": s.guidance, "seed": cfg.run.seed, "count": o.count} | data


def folder_of(cfg: Config) -> Path:
    return Path(cfg.objective.pairs or f"{cfg.run.dir}/pairs")


def write(cfg: Config, codec: dict, numbers: Iterable[int], make: Callable[[int, int], Pairs]) -> None:
    """Writes the missing ones of these shards; make(shard, size) returns a shard's pairs.

    The writer of shard 0 writes the manifest.  Existing files are only read, so several processes may check a
    finished folder concurrently.  ValueError when the folder holds other pairs.
    """
    folder, about = folder_of(cfg), describe(cfg, codec)
    check_manifest(folder, about)
    for shard in numbers:
        file = _file(folder, shard)
        written = is_written(file, about)
        if shard == 0 and not (folder / MANIFEST).exists():
            with atomic_write(folder / MANIFEST) as tmp:
                tmp.write_text(json.dumps(about, indent=1) + "\n")
        if not written:
            pairs = make(shard, min(SHARD, about["count"] - shard * SHARD))
            with atomic_write(file) as tmp:
                tmp.write_bytes(_packed(pairs, about))


def shards(count: int) -> int:
    """Returns the number of shards for `count` pairs."""
    return -(-count // SHARD)


def check_manifest(folder: Path, about: dict) -> None:
    """Raises ValueError, listing the differing keys, when the folder holds other pairs."""
    try:
        changed = differences(json.loads((folder / MANIFEST).read_text()), about)
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError) as why:
        raise ValueError(f"{folder / MANIFEST}: not the manifest of pairs ({why}); restore it, or choose "
                         "another objective.pairs") from why
    if changed:
        raise ValueError(f"{folder} holds other pairs ({'; '.join(changed)}); choose another "
                         "objective.pairs, or restore these values")


def is_written(file: Path, about: dict) -> bool:
    """Returns whether a shard exists; ValueError when it is damaged or holds other pairs."""
    if not file.exists():
        return False
    Shard(file, about).check()
    return True


def _packed(pairs: Pairs, about: dict) -> bytes:
    """Serialises a shard.  One metadata key, because safetensors does not preserve the order of several."""
    condition = {name: x for name, x in vars(pairs.condition).items() if x is not None}
    tensors = {name: getattr(pairs, name).contiguous() for name in CLIPS} | condition
    digests = [sealed.digest({name: x[slot] for name, x in tensors.items() if name != NULL_TEXT})
               for slot in range(len(pairs))]
    header = {"about": about, "captions": pairs.captions, "digests": digests,
              "null_text": sealed.digest({NULL_TEXT: tensors[NULL_TEXT]})}
    return save(tensors, {"pairs": sealed.seal(header)})


def _file(folder: Path, shard: int) -> Path:
    return folder / f"pairs-{shard:05d}.safetensors"
