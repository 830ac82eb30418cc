"""Weight files that say what they are: safetensors with the network's sizes and sampling in the header."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from swiftvideo_fast.atomic import whole
from swiftvideo_fast.models.wan import Wan, WanConfig


def save(net: Wan, path: Path | str, dtype: torch.dtype = torch.float32, **about) -> None:
    """Write the parameters and, as JSON in the header, net.config and `about`.  Atomic."""
    tensors = {k: v.detach().to(dtype).contiguous() for k, v in net.state_dict().items()}
    with whole(path) as aside:
        save_file(tensors, aside, {"config": json.dumps(asdict(net.config)), "about": json.dumps(about)})


def read(path: Path | str, mend: str = "restore it from its source") -> tuple[dict[str, Tensor], dict]:
    """(tensors in fp32, header as text) of a safetensors file; ValueError naming it, and how to mend it."""
    try:
        with safe_open(str(path), "pt") as file:
            return {k: file.get_tensor(k).float() for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as why:
        raise ValueError(f"{path}: no such file; {mend}") from why
    except (SafetensorError, OSError) as why:
        raise ValueError(f"{path}: damaged, or no safetensors file ({why}); {mend}") from why


def load(path: Path | str) -> Wan:
    """The network a file by `save` holds, in fp32; ValueError when names or shapes do not fit its own sizes."""
    tensors, header = read(path)
    if "config" not in header:
        raise ValueError(f"{path}: its header names no network sizes; want a file written by swiftvideo")
    try:
        net = Wan(WanConfig(**json.loads(header["config"])))
    except (ValueError, TypeError) as why:
        raise ValueError(f"{path}: its header's sizes, {header['config']}, make no network ({why})") from why
    fill(net, tensors, path)
    return net


def fill(net: nn.Module, tensors: dict[str, Tensor], source: Path | str) -> None:
    """load_state_dict, checked."""
    check(tensors, {k: tuple(v.shape) for k, v in net.state_dict().items()}, source)
    net.load_state_dict(tensors)


def check(tensors: dict[str, Tensor], want: dict[str, tuple[int, ...]], source: Path | str) -> None:
    """One ValueError for all names and shapes that are not the wanted ones; it shows the first three."""
    found = {k: tuple(v.shape) for k, v in tensors.items()}
    wrong = [f"{k}: found {found.get(k, 'nothing')}, want {want.get(k, 'nothing')}"
             for k in sorted(want.keys() | found.keys()) if want.get(k) != found.get(k)]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise ValueError(f"{source}: does not fit: {'; '.join(wrong[:3])}{more}")
