"""Weight files that say what they are: safetensors with the network's sizes and sampling in the header."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from swiftvideo_fast import atomic, sealed
from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.models.wan.network import Wan
from swiftvideo_fast.models.wan.sizes import WanConfig


def save(net: Wan, path: Path | str, dtype: torch.dtype = torch.float32, **about) -> None:
    """Write the parameters and, as JSON in the header, net.config and `about`.  Atomic."""
    tensors = {k: v.detach().to(dtype) for k, v in net.state_dict().items()}
    with atomic_write(path) as aside:
        sealed.save(tensors, aside, {"config": json.dumps(asdict(net.config)), "about": json.dumps(about)})


class Stored:
    """Tensors of one or more safetensors files, each read, and held against its digest, when it is asked for.

    ValueError names a file that is missing or damaged, and how to mend it.
    """

    def __init__(self, *paths: Path | str, mend: str = "restore it from its source"):
        self._files, self._paths, self._digests, self._mend = {}, {}, {}, mend
        for path in paths:
            if Path(path).is_dir():
                raise ValueError(f"{path}: a folder; want a .safetensors file")
            try:
                file = safe_open(str(path), "pt")
                digests, self.header = sealed.opened(file)
            except FileNotFoundError as why:
                raise ValueError(f"{path}: no such file; {mend}") from why
            except (SafetensorError, OSError, sealed.Changed) as why:
                raise ValueError(f"{path}: damaged, or no safetensors file ({why}); {mend}") from why
            self._files |= dict.fromkeys(file.keys(), file)
            self._paths |= dict.fromkeys(file.keys(), path)
            self._digests |= digests

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def __getitem__(self, name: str) -> Tensor:
        """Mapped: its bytes stay in the page cache.  ValueError when they are not those that were written."""
        tensor = self._files[name].get_tensor(name)
        if name in self._digests and sealed.digest({name: tensor}) != self._digests[name]:
            raise ValueError(f"{self._paths[name]}: damaged: {name} is not what was written; {self._mend}")
        return tensor


def stored(folder: Path, file: str) -> Stored:
    """The tensors of folder/file, or of the shards that folder/file.index.json names."""
    mend, index = "download it again", folder / f"{file}.index.json"
    if (folder / file).exists() or not index.exists():
        return Stored(folder / file, mend=mend)
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or any(not isinstance(shard, str) or Path(shard).name != shard
                                          for shard in where.values()):
        raise ValueError(f"{index}: weight_map does not map tensors to files of that folder; {mend}")
    found = Stored(*(folder / shard for shard in sorted(set(where.values()))),
                   mend=f"{index.name} names it: {mend}")
    if missing := sorted(where.keys() - set(found)):
        raise ValueError(f"{folder}: {missing[0]} (of {len(missing)}) is in none of the shards that "
                         f"{index.name} names; {mend}")
    return found


def read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as why:
        raise ValueError(f"{path}: not JSON ({why}); download it again") from why
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}; want an object")
    return found


def read(path: Path | str, mend: str = "restore it from its source",
         dtype: torch.dtype | None = torch.float32) -> tuple[dict[str, Tensor], dict]:
    """(tensors, header as text) of a safetensors file.  dtype None: mapped, as they are in the file."""
    stored = Stored(path, mend=mend)
    return {name: stored[name].to(dtype or stored[name].dtype) for name in stored}, stored.header


def digest(path: Path | str) -> str:
    """sha256 of a file's bytes, or of those of a model folder's; ValueError names a file that is missing."""
    if (folder := Path(path)).is_dir():
        place = folder / "transformer" if (folder / "transformer").is_dir() else folder
        files = [place / "config.json", *sorted(place.glob("*.safetensors"))]
        return hashlib.sha256(" ".join(digest(file) for file in files).encode()).hexdigest()
    try:
        return atomic.digest(path)
    except FileNotFoundError as why:
        raise ValueError(f"{path}: no such file; restore it from its source") from why


def load(path: Path | str, *, mapped: bool = False, dtype: torch.dtype = torch.float32,
         device: torch.device | str = "cpu") -> Wan:
    """The network of a file by `save`, or of a model folder in any layout; see wan.folder.load."""
    from swiftvideo_fast.models.wan import folder

    return folder.load(path, mapped=mapped, dtype=dtype, device=device)


def sizes(path: Path | str) -> WanConfig:
    """The sizes of the network that `load` would load, its weights unread."""
    from swiftvideo_fast.models.wan import folder

    return folder.find(path).config


def check(found: Mapping[str, tuple[int, ...]], want: Mapping[str, tuple[int, ...]],
          source: Path | str) -> None:
    """One ValueError for all names and shapes that are not the wanted ones; it shows the first three."""
    wrong = [f"{k}: found {found.get(k, 'nothing')}, want {want.get(k, 'nothing')}"
             for k in sorted(want.keys() | found.keys()) if want.get(k) != found.get(k)]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise ValueError(f"{source}: does not fit: {'; '.join(wrong[:3])}{more}")


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
