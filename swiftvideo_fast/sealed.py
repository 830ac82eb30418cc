"""Safetensors files whose header holds the sha256 of what they carry, so that a changed byte is an error.

    save(tensors, path, header)         one sha256 a tensor, checked when that tensor is read
    seal(about), unsealed(text)         a JSON object with its own sha256

A digest covers dtype, shape and bytes.  Files of other writers have none and are read as they are.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

SEAL = "sha256"         # metadata key: {"header": digest of all other metadata, "tensors": {name: digest}}


class Changed(ValueError):
    """Bytes that are not those that were written."""


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of the tensors' names, dtypes, shapes and bytes, in the order of their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def save(tensors: Mapping[str, Tensor], path: Path | str, header: Mapping[str, str]) -> None:
    """Write a safetensors file with `header` and the digests as its metadata.  Not atomic by itself."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digests = {name: digest({name: tensor}) for name, tensor in tensors.items()}
    save_file(tensors, path, {**header, SEAL: json.dumps({"header": _of_text(header), "tensors": digests})})


def opened(file: safe_open) -> tuple[dict[str, str], dict[str, str]]:
    """({tensor: digest}, the other metadata) of an open file; no digests where another writer gave none.

    Changed when the metadata, or the names of the tensors, are not what was written.
    """
    header = dict(file.metadata() or {})
    if SEAL not in header:
        return {}, header
    try:
        found = json.loads(header.pop(SEAL))
        same, digests = found["header"] == _of_text(header), dict(found["tensors"])
    except (ValueError, KeyError, TypeError) as why:
        raise Changed(f"its digests cannot be read: {why!r}") from why
    if not same or digests.keys() != set(file.keys()):
        raise Changed("its header is not what was written")
    return digests, header


def seal(about: dict, indent: int | None = None) -> str:
    """A JSON object as text, its own sha256 in it."""
    return json.dumps(about | {SEAL: _of_text(about)}, indent=indent)


def unsealed(text: str) -> dict:
    """The object of `seal`, without its sha256.  Changed when it is not what was written."""
    try:
        about = json.loads(text)
        told = about.pop(SEAL, None)
    except (ValueError, TypeError, AttributeError) as why:
        raise Changed(f"its header cannot be read: {why!r}") from why
    if told is None:
        raise Changed("its header has no sha256: another version of swiftvideo_fast wrote it")
    if told != _of_text(about):
        raise Changed("its header is not what was written")
    return about


def _of_text(values: Mapping) -> str:
    return hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()
