"""Weight files that say what they are: safetensors with the network's sizes and sampling in the header."""

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from swiftvideo_fast.atomic import whole
from swiftvideo_fast.models.wan.network import Wan, WanConfig

# Modules and parameters, the released checkpoint's name: diffusers' WanTransformer3DModel's.
DIFFUSERS = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
} | {f"blocks.N.{ours}": f"blocks.N.{theirs}" for ours, theirs in {
    **{f"{a}.{ours}": f"{b}.{theirs}" for a, b in (("self_attn", "attn1"), ("cross_attn", "attn2"))
       for ours, theirs in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"),
                            ("norm_q", "norm_q"), ("norm_k", "norm_k"))},
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "norm3": "norm2",                   # theirs counts the norms in the order they run
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}.items()}


def save(net: Wan, path: Path | str, dtype: torch.dtype = torch.float32, **about) -> None:
    """Write the parameters and, as JSON in the header, net.config and `about`.  Atomic."""
    tensors = {k: v.detach().to(dtype).contiguous() for k, v in net.state_dict().items()}
    with whole(path) as aside:
        save_file(tensors, aside, {"config": json.dumps(asdict(net.config)), "about": json.dumps(about)})


def export(source: Path | str, target: Path | str, *, dtype: torch.dtype, diffusers: bool = False) -> None:
    """Rewrite a file by `save` in another storage, its header kept; `diffusers`: under diffusers' names."""
    tensors, header = read(source)
    named = to_diffusers(tensors) if diffusers else tensors
    with whole(target) as aside:
        save_file({k: v.to(dtype) for k, v in named.items()}, aside, header)


def read(path: Path | str, mend: str = "restore it from its source",
         dtype: torch.dtype | None = torch.float32) -> tuple[dict[str, Tensor], dict]:
    """(tensors, header as text) of a safetensors file; ValueError naming it, and how to mend it.

    dtype None: as they lie in the file, from which each is read when it is first used.
    """
    def all_of(file) -> tuple[dict[str, Tensor], dict]:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (no dict)
        return {k: v.to(dtype or v.dtype) for k, v in tensors.items()}, file.metadata() or {}

    return _opened(path, all_of, mend)


def _opened(path: Path | str, take: Callable, mend: str = "restore it from its source"):
    try:
        with safe_open(str(path), "pt") as file:
            return take(file)
    except FileNotFoundError as why:
        raise ValueError(f"{path}: no such file; {mend}") from why
    except (SafetensorError, OSError) as why:
        raise ValueError(f"{path}: damaged, or no safetensors file ({why}); {mend}") from why


def header_of(path: Path | str) -> dict:
    """The header of a safetensors file, as text; ValueError as `read`."""
    return _opened(path, lambda file: file.metadata() or {})


def digest(path: Path | str) -> str:
    """sha256 of a file's bytes; ValueError names a file that is missing."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError as why:
        raise ValueError(f"{path}: no such file; restore it from its source") from why


def sizes(path: Path | str, header: dict | None = None) -> WanConfig:
    """The network sizes in the header of a file by `save`."""
    header = header_of(path) if header is None else header
    if "config" not in header:
        raise ValueError(f"{path}: its header names no network sizes; want a file written by swiftvideo")
    try:
        return WanConfig(**json.loads(header["config"]))
    except (ValueError, TypeError) as why:
        raise ValueError(f"{path}: its header's sizes, {header['config']}, make no network ({why})") from why


def load(path: Path | str, *, mapped: bool = False) -> Wan:
    """The network a file by `save` holds, in fp32; ValueError when names or shapes do not fit its sizes.

    mapped: its weights stay in the file, in the file's dtype, for an engine that takes what it needs of each.
    """
    tensors, header = read(path, dtype=None if mapped else torch.float32)
    with torch.device("meta") if mapped else nullcontext():
        net = Wan(sizes(path, header))
    fill(net, tensors, path, assign=mapped)
    return net


def fill(net: nn.Module, tensors: dict[str, Tensor], source: Path | str, assign: bool = False) -> None:
    """load_state_dict, checked."""
    check(tensors, {k: tuple(v.shape) for k, v in net.state_dict().items()}, source)
    net.load_state_dict(tensors, assign=assign)


def check(tensors: dict[str, Tensor], want: dict[str, tuple[int, ...]], source: Path | str) -> None:
    """One ValueError for all names and shapes that are not the wanted ones; it shows the first three."""
    found = {k: tuple(v.shape) for k, v in tensors.items()}
    wrong = [f"{k}: found {found.get(k, 'nothing')}, want {want.get(k, 'nothing')}"
             for k in sorted(want.keys() | found.keys()) if want.get(k) != found.get(k)]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise ValueError(f"{source}: does not fit: {'; '.join(wrong[:3])}{more}")


def to_diffusers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names of diffusers' WanTransformer3DModel; ValueError for a name unknown."""
    return {_renamed(name, DIFFUSERS): tensor for name, tensor in tensors.items()}


def from_diffusers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_diffusers`."""
    ours = {theirs: ours for ours, theirs in DIFFUSERS.items()}
    return {_renamed(name, ours): tensor for name, tensor in tensors.items()}


def _renamed(name: str, names: dict[str, str]) -> str:
    block = re.match(r"blocks\.(\d+)\.", name)
    number = block[1] if block else ""
    generic = f"blocks.N.{name[block.end():]}" if block else name
    module, _, leaf = generic.rpartition(".")
    if generic in names:
        return names[generic].replace("N", number)
    if module in names:
        return f"{names[module].replace('N', number)}.{leaf}"
    raise ValueError(f"{name}: no parameter of Wan; want one of {', '.join(names)} (.weight, .bias)")
