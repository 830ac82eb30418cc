"""Weight files: safetensors with the network's sizes and sampling settings in the header."""

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
    """Writes the parameters, atomically, with net.config and `about` as JSON in the header."""
    tensors = {k: v.detach().to(dtype) for k, v in net.state_dict().items()}
    with atomic_write(path) as tmp:
        sealed.save(tensors, tmp, {"config": json.dumps(asdict(net.config)), "about": json.dumps(about)})


class Stored:
    """Tensors of safetensors files, each read, and checked against its digest, on access.

    ValueError for a missing or damaged file.  fix: what the error advises.
    """

    def __init__(self, *paths: Path | str, fix: str = "restore it from its source"):
        self._files, self._paths, self._digests, self._fix = {}, {}, {}, fix
        for path in paths:
            if Path(path).is_dir():
                raise ValueError(f"{path}: a folder; want a .safetensors file")
            try:
                file = safe_open(str(path), "pt")
                digests, self.header = sealed.opened(file)
            except FileNotFoundError as why:
                raise ValueError(f"{path}: no such file; {fix}") from why
            except (SafetensorError, OSError, sealed.Changed) as why:
                raise ValueError(f"{path}: damaged, or not a safetensors file ({why}); {fix}") from why
            self._files |= dict.fromkeys(file.keys(), file)
            self._paths |= dict.fromkeys(file.keys(), path)
            self._digests |= digests

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def __getitem__(self, name: str) -> Tensor:
        """Returns a memory-mapped tensor.  ValueError when its bytes differ from those written."""
        tensor = self._files[name].get_tensor(name)
        if name in self._digests and sealed.digest({name: tensor}) != self._digests[name]:
            raise ValueError(f"{self._paths[name]}: damaged: {name} differs from that written; {self._fix}")
        return tensor


def stored(folder: Path, file: str) -> Stored:
    """Returns the tensors of folder/file, or of the shards that folder/file.index.json lists."""
    fix, index = "download it again", folder / f"{file}.index.json"
    if (folder / file).exists() or not index.exists():
        return Stored(folder / file, fix=fix)
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or any(not isinstance(shard, str) or Path(shard).name != shard
                                          for shard in where.values()):
        raise ValueError(f"{index}: weight_map does not map tensors to files of that folder; {fix}")
    found = Stored(*(folder / shard for shard in sorted(set(where.values()))),
                   fix=f"{index.name} lists it: {fix}")
    if missing := sorted(where.keys() - set(found)):
        raise ValueError(f"{folder}: {missing[0]} (of {len(missing)}) is in none of the shards that "
                         f"{index.name} lists; {fix}")
    return found


def read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as why:
        raise ValueError(f"{path}: not JSON ({why}); download it again") from why
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}; want an object")
    return found


def read(path: Path | str, fix: str = "restore it from its source",
         dtype: torch.dtype | None = torch.float32) -> tuple[dict[str, Tensor], dict]:
    """Returns (tensors, header) of a safetensors file.  dtype None: memory-mapped, in the file's dtype."""
    stored = Stored(path, fix=fix)
    return {name: stored[name].to(dtype or stored[name].dtype) for name in stored}, stored.header


def digest(path: Path | str) -> str:
    """Returns the sha256 of a file, or of a model folder's config and weights; ValueError if missing."""
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
    """Returns the network of a file by `save`, or of a model folder in any layout; see wan.folder.load."""
    from swiftvideo_fast.models.wan import folder

    return folder.load(path, mapped=mapped, dtype=dtype, device=device)


def sizes(path: Path | str) -> WanConfig:
    """Returns the sizes of the network that `load` would load, without reading weights."""
    from swiftvideo_fast.models.wan import folder

    return folder.find(path).config


def check(found: Mapping[str, tuple[int, ...]], want: Mapping[str, tuple[int, ...]],
          source: Path | str) -> None:
    """Raises one ValueError for all names and shapes that differ from `want`; it lists the first three."""
    wrong = [f"{k}: found {found.get(k, 'nothing')}, want {want.get(k, 'nothing')}"
             for k in sorted(want.keys() | found.keys()) if want.get(k) != found.get(k)]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise ValueError(f"{source}: does not fit: {'; '.join(wrong[:3])}{more}")


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
