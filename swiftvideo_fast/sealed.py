"""Safetensors files with sha256 digests in their header, so that a changed byte is an error.

    save(tensors, path, header)         one sha256 per tensor, checked when that tensor is read
    seal(about), unsealed(text)         a JSON object with its own sha256

A digest covers dtype, shape and bytes.  Files of other writers have no digests and are read unchecked.
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
    """Raised for bytes that differ from those written."""


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns the sha256 of the tensors' names, dtypes, shapes and bytes, sorted by name."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def save(tensors: Mapping[str, Tensor], path: Path | str, header: Mapping[str, str]) -> None:
    """Writes a safetensors file with `header` and the digests as metadata.  Not atomic."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digests = {name: digest({name: tensor}) for name, tensor in tensors.items()}
    save_file(tensors, path, {**header, SEAL: json.dumps({"header": _of_text(header), "tensors": digests})})


def opened(file: safe_open) -> tuple[dict[str, str], dict[str, str]]:
    """Returns ({tensor: digest}, other metadata) of an open file; no digests for files of other writers.

    Raises Changed when the metadata or the names of the tensors differ from those written.
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
    """Returns a JSON object as text, with its own sha256 added."""
    return json.dumps(about | {SEAL: _of_text(about)}, indent=indent)


def unsealed(text: str) -> dict:
    """Returns the object given to `seal`.  Raises Changed when the text differs from that written."""
    try:
        about = json.loads(text)
        stored = about.pop(SEAL, None)
    except (ValueError, TypeError, AttributeError) as why:
        raise Changed(f"its header cannot be read: {why!r}") from why
    if stored is None:
        raise Changed("its header has no sha256: another version of swiftvideo_fast wrote it")
    if stored != _of_text(about):
        raise Changed("its header is not what was written")
    return about


def _of_text(values: Mapping) -> str:
    return hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()
