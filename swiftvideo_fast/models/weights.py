"""Weight files that say what they are: safetensors with the network's sizes and its sampling in the header."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from swiftvideo_fast.models.wan import Wan, WanConfig


def save(net: Wan, path: Path | str, dtype: torch.dtype = torch.float32, **about) -> None:
    """Write the parameters and, as JSON in the header, net.config and `about`.  Atomic."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.part")
    tensors = {k: v.detach().to(dtype).contiguous() for k, v in net.state_dict().items()}
    save_file(tensors, str(aside), {"config": json.dumps(asdict(net.config)), "about": json.dumps(about)})
    with open(aside, "rb+") as file:
        os.fsync(file.fileno())
    aside.rename(path)


def read(path: Path | str) -> tuple[dict[str, Tensor], dict]:
    """(tensors in fp32, header) of a weight file; ValueError naming the file if it is damaged or not ours."""
    try:
        with safe_open(str(path), "pt") as file:
            header = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
            tensors = {k: file.get_tensor(k).float() for k in file.keys()}  # noqa: SIM118  (no mapping)
    except FileNotFoundError as why:
        raise ValueError(f"{path}: no such weight file") from why
    except (SafetensorError, json.JSONDecodeError, OSError) as why:
        raise ValueError(f"{path}: damaged or no safetensors file ({why}); restore it from its source") from why
    return tensors, header


def load(path: Path | str) -> Wan:
    """The network a file by `save` holds, in fp32; ValueError when names or shapes do not fit its own sizes."""
    tensors, header = read(path)
    if "config" not in header:
        raise ValueError(f"{path}: its header names no network sizes; want a file written by swiftvideo")
    net = Wan(WanConfig(**header["config"]))
    fill(net, tensors, path)
    return net


def fill(net: nn.Module, tensors: dict[str, Tensor], source: Path | str) -> None:
    """load_state_dict, with one error that says what was found and what was wanted."""
    want = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in tensors.items()}
    wrong = [f"{k}: found {found.get(k, 'nothing')}, want {want.get(k, 'nothing')}"
             for k in sorted(want.keys() | found.keys()) if want.get(k) != found.get(k)]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise ValueError(f"{source}: does not fit this network: {'; '.join(wrong[:3])}{more}")
    net.load_state_dict(tensors)
