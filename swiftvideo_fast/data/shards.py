"""Shards of encoded windows, and the source that trains from them.

    encode.json                 what the latents depend on: index, framing, seed, preprocessing, codec
    identity text-00000.safetensors      TEXTS distinct captions, without padding clips-00000.safetensors
    CLIPS windows: x0, first-frame condition, image tokens rejects.csv                 videos of the index
    that are too short for a window

Shards are written atomically and depend on their number and encode.json alone: many ranks write one folder,
and an interrupted folder is completed to the same bytes.  The header has a sha256 of itself and of each slot,
checked on every read of that slot.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from swiftvideo_fast import sealed
from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.config import differences
from swiftvideo_fast.config.strict import NATURAL, one_of, option, plain
from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.data.decode import DECODERS, Framing, decoder
from swiftvideo_fast.data.index import Index
from swiftvideo_fast.data.order import Order, held_out
from swiftvideo_fast.data.source import SourceOptions
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.models.family import Codec, Latent

MANIFEST = "encode.json"
CLIPS, TEXTS = 32, 256      # per shard
OPEN = 512                  # files kept open
DECODING = 4                # windows decoded in parallel when pixels are needed


@dataclass(frozen=True)
class Row:
    """A window.  row: index row.  start: index of its first frame.  text: index of its caption."""

    row: int
    start: int
    text: int
    shard: int
    slot: int


def file_of(folder: Path, kind: str, shard: int) -> Path:
    return folder / f"{kind}-{shard:05d}.safetensors"


def write(file: Path, tensors: dict[str, Tensor], about: dict, rows: list, lost: dict | None = None) -> None:
    """Writes a shard atomically.  rows: description of each slot.  lost: {video: why it has no slot}."""
    tensors = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
    slots = [sealed.digest(slot_of(tensors, slot)) for slot in range(len(rows))]
    header = sealed.seal({"about": about, "rows": rows, "lost": lost or {}, "slots": slots})
    with atomic_write(file) as tmp:
        tmp.write_bytes(save(tensors, {"shard": header}))       # one key: safetensors reorders several


def slot_of(tensors: Mapping, slot: int) -> dict[str, Tensor]:
    """Returns a slot's tensors by name: a row of each, or a caption's tokens."""
    if "ends" in tensors:
        begin, end = tensors["ends"][slot:slot + 2].tolist()
        return {"text": tensors["text"][begin:end]}
    return {name: tensor[slot] for name, tensor in tensors.items()}


def is_written(file: Path, about: dict, command: str = "encode") -> bool:
    """Returns whether a shard exists; ValueError when it is damaged or has other settings.

    command: the CLI command that writes it.
    """
    if not file.exists():
        return False
    shard = Shard(file, command)
    if shard.header["about"] != about:
        changed = "; ".join(differences(shard.header["about"], about))
        raise ValueError(f"{file} was written with other settings ({changed}); delete {file.parent} or "
                         "choose another --out")
    for slot in range(len(shard.header["rows"])):
        shard.slot(slot)
    return True


class Shard:
    """An open shard.  header: {"about", "rows", "lost", "slots"}.

    ValueError when the file is damaged: the header is checked on opening, a slot when read.
    """

    def __init__(self, file: Path, command: str = "encode"):
        self.file, self.command = file, command
        try:
            opened = safe_open(file, "pt")
            self.header = sealed.unsealed(opened.metadata()["shard"])
            self.tensors = {name: opened.get_slice(name) for name in opened.keys()}       # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as why:
            raise self._damaged(why) from why

    def slot(self, slot: int) -> dict[str, Tensor]:
        try:
            found = slot_of(self.tensors, slot)
        except (SafetensorError, KeyError, ValueError, IndexError, OverflowError) as why:
            raise self._damaged(f"slot {slot}: {why!r}") from why
        if sealed.digest(found) != self.header["slots"][slot]:
            raise self._damaged(f"the bytes of slot {slot} differ from those written")
        return found

    def _damaged(self, why: object) -> ValueError:
        return ValueError(f"{self.file}: damaged ({why}); delete it and run `swiftvideo {self.command}` "
                          "again")


def read_manifest(folder: Path) -> dict:
    try:
        return sealed.unsealed((folder / MANIFEST).read_text())
    except FileNotFoundError as why:
        raise ValueError(f"{folder}: no {MANIFEST}; write the shards with `swiftvideo encode`") from why
    except (OSError, ValueError) as why:
        raise ValueError(f"{folder / MANIFEST}: unreadable ({why}); restore it, or encode "
                         "again to another --out") from why


@dataclass(frozen=True)
class ShardOptions(SourceOptions):
    """Encoded windows on disk.

    folder: written by `swiftvideo encode`.  held_out: clips kept from training for each of validation and
    test; with 0, both use training clips.  decoder: decoder of the pixels that da.raw needs.
    """

    name = "shards"
    folder: str
    held_out: int = option(NATURAL, 0)
    decoder: str = option(one_of(*DECODERS), "auto")

    def shape(self, latent: Latent) -> tuple[int, int, int]:
        framing = read_manifest(Path(self.folder))["framing"]
        return latent.shape(framing["frames"], framing["height"], framing["width"], self.folder)


class ShardSource:
    """The source `shards`: each clip once per epoch, in an order drawn from (seed, epoch).

    With several encoded passes, epoch e uses the windows of pass e modulo their number.  pixels: also decodes
    the windows from the videos of the index.  ValueError for missing shards or another codec.
    """

    Options = ShardOptions
    prefetch = True

    def __init__(self, options: ShardOptions, codec: Codec, seed: int = 0, pixels: bool = False):
        self.folder, identity = Path(options.folder), plain(codec.identity)
        self.about = read_manifest(self.folder)
        if self.about["codec"] != identity:
            changed = "; ".join(differences(self.about["codec"], identity))
            raise ValueError(f"{self.folder}: encoded with another codec ({changed}); encode again, or use "
                             "that codec")
        self.files = OpenFiles(self.folder)
        self.captions = self._captions()
        passes = self._rows()
        rows = sorted({row.row for rows in passes for row in rows})
        self.held = held_out(rows, options.held_out)
        out = {row for part in self.held.values() for row in part}
        self.first = {row.row: row for rows in reversed(passes) for row in rows}
        self.order = Order([[row for row in rows if row.row not in out] for rows in passes])
        if not self.order.total:
            raise ValueError(f"{self.folder}: no clip is left to train on: {len(rows)} encoded, {len(out)} "
                             "held out; lower data.held_out, or encode more")
        self.null_text = self._text(self.captions.index(""))
        self.pixels = Pixels(self.folder, self.about, options.decoder) if pixels else None

    def __len__(self) -> int:
        return self.order.total

    def draw(self, count: int, seed: int, position: int) -> Batch:
        """Returns the clips at positions position to position + count - 1 of the run."""
        return self.batch([self.order.at(seed, p) for p in range(position, position + count)])

    def close(self) -> None:
        self.files.close()

    def summary(self) -> str:
        out = sum(map(len, self.held.values()))
        return f"{self.order.total} windows, {len(self.order.passes)} of each clip; {out} clips held out"

    def clips(self, split: str, count: int, seed: int, first: int = 0) -> Batch:
        """Returns held-out clips (training clips if none are held out), in an order drawn from the seed."""
        rows = [self.first[row] for row in self.held.get(split, ())]
        order = Order([rows]) if rows else self.order
        return self.batch([order.at(seed, p) for p in range(first, first + count)])

    def size(self, split: str) -> int:
        return len(self.held.get(split) or self.order.passes[0])

    def batch(self, rows: list[Row]) -> Batch:
        """Returns the rows' clips, with x0 in float32 and the rest in its storage dtype."""
        picked = [self.files.shard("clips", row.shard).slot(row.slot) for row in rows]
        tensors = {name: torch.stack([tensors[name] for tensors in picked]) for name in picked[0]}
        text = torch.stack([self._text(row.text) for row in rows])
        condition = Condition(tensors["frames"], text, self.null_text, tensors.get("image"))
        pixels = self.pixels(rows) if self.pixels else None
        captions = [self.captions[row.text] for row in rows]
        return Batch(tensors["x0"].float(), condition, captions, pixels=pixels)

    def _captions(self) -> list[str]:
        shards = range(-(-self.about["texts"] // TEXTS))
        self._check_complete("text", shards)
        return [caption for s in shards for caption in self.files.shard("text", s).header["rows"]]

    def _rows(self) -> list[list[Row]]:
        """Returns the rows of each pass."""
        shards = range(-(-self.about["windows"] // CLIPS))
        self._check_complete("clips", shards)
        passes = [[] for _ in range(self.about["passes"])]
        for shard in shards:
            for slot, (turn, row, start, text) in enumerate(self.files.shard("clips", shard).header["rows"]):
                passes[turn].append(Row(row, start, text, shard, slot))
        return [rows for rows in passes if rows]

    def _check_complete(self, kind: str, shards: range) -> None:
        missing = [name.name for s in shards if not (name := file_of(self.folder, kind, s)).exists()]
        if missing:
            raise ValueError(f"{self.folder} lacks {len(missing)} of {len(shards)} {kind} shards, "
                             f"{missing[0]} the first; finish them with `swiftvideo encode`")

    def _text(self, number: int) -> Tensor:
        """Returns a caption's embedding, (L, E), zero-padded."""
        shard, slot = divmod(number, TEXTS)
        text = self.files.shard("text", shard).slot(slot)["text"]
        return torch.nn.functional.pad(text, (0, 0, 0, self.about["text_length"] - len(text)))


class OpenFiles:
    """An LRU cache of open, memory-mapped shards."""

    def __init__(self, folder: Path):
        self.folder, self.opened, self.lock = folder, OrderedDict(), threading.Lock()

    def close(self) -> None:
        with self.lock:
            self.opened.clear()

    def shard(self, kind: str, number: int) -> Shard:
        key = kind, number
        with self.lock:
            if key not in self.opened:
                self.opened[key] = Shard(file_of(self.folder, *key))
                if len(self.opened) > OPEN:
                    self.opened.popitem(last=False)
            self.opened.move_to_end(key)
            return self.opened[key]


class Pixels:
    """Decodes the windows of rows from the videos.  ValueError when the index has changed since encoding."""

    def __init__(self, folder: Path, about: dict, which: str):
        self.index = Index(folder / about["index"])
        if self.index.sha256 != about["index_sha256"]:
            raise ValueError(f"{self.index.path}: not the index that {folder} was encoded from; restore that "
                             "one to decode pixels")
        self.framing, self.decoder = Framing(**about["framing"]), decoder(which)
        self.pool = ThreadPoolExecutor(DECODING, initializer=torch.set_num_threads, initargs=(1,))

    def __call__(self, rows: list[Row]) -> Tensor:
        """Returns the rows' pixels, uint8 (B, 3, T, H, W)."""
        return torch.stack(list(self.pool.map(self.window, rows)))

    def window(self, row: Row) -> Tensor:
        place, video, _ = self.index[row.row]
        indices = self.framing.choose(video, row.start)
        return self.decoder.window(self.index.folder, place, video, indices, self.framing).cpu()
