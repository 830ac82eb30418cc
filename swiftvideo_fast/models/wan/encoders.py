"""Loads Wan's VAE, text encoder and image encoder into diffusers' and transformers' classes.

A folder has each as released (a .pth) or as diffusers saves it (a subfolder).  Modules are built on the meta
device and filled one tensor at a time; dtype None keeps the stored dtype.  The released files have no
configs: sizes are inferred from their tensors.
"""

import pickle
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swiftvideo_fast.models import weights
from swiftvideo_fast.models.wan.names import CLIP, UMT5, VAE, Names, or_itself, split_clip
from swiftvideo_fast.models.weights import check, read_json, shapes, stored

TOKENIZERS = "google/umt5-xxl", "tokenizer"
CLIP_HEAD = 80                      # channels per attention head in ViT-H/14
ALIAS = "encoder.embed_tokens.weight"                   # tied to umT5's shared.weight, stored once


@dataclass(frozen=True)
class Kind:
    """One of the three encoders.  file: the released file.  subfolder, weights: diffusers' names."""

    names: Names
    file: str
    subfolder: str
    weights: str
    classes: tuple[str, ...]
    build: Callable[[dict[str, tuple]], nn.Module]              # from shapes under the class's names
    prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict


def text_encoder(folder: Path | str, dtype: torch.dtype | None = torch.bfloat16,
                 device: Any = "cpu") -> nn.Module:
    """Returns Wan's UMT5EncoderModel."""
    return _load(TEXT, Path(folder), dtype, device)


def image_encoder(folder: Path | str, dtype: torch.dtype | None = torch.float32,
                  device: Any = "cpu") -> nn.Module:
    """Returns a CLIPVisionModelWithProjection, or the CLIPVisionModel of some diffusers folders."""
    return _load(IMAGE, Path(folder), dtype, device)


def vae(folder: Path | str, dtype: torch.dtype | None = torch.float32, device: Any = "cpu") -> nn.Module:
    """Returns Wan's AutoencoderKLWan."""
    return _load(AUTOENCODER, Path(folder), dtype, device)


def check_folder(folder: Path | str) -> None:
    """Raises ValueError unless all encoders, the tokenizer, and the packages that load them are present."""
    for kind in (TEXT, IMAGE, AUTOENCODER):
        _place(kind, Path(folder))
    tokenizer_folder(folder)
    wanted()


def digest(folder: Path | str) -> dict[str, str]:
    """Returns {path in the folder: sha256} of every file of encoders and tokenizer."""
    folder, found = Path(folder), {}
    for place in (*(_place(kind, folder) for kind in (TEXT, IMAGE, AUTOENCODER)), tokenizer_folder(folder)):
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if file.is_file():
                found[str(file.relative_to(folder))] = weights.digest(file)
    return found


def tokenizer(folder: Path | str) -> Any:
    """Returns umT5's tokenizer."""
    return wanted().AutoTokenizer.from_pretrained(tokenizer_folder(folder), local_files_only=True)


def tokenizer_folder(folder: Path | str) -> Path:
    for place in TOKENIZERS:
        if (found := Path(folder) / place).is_dir():
            return found
    raise ValueError(f"{folder}: no tokenizer; want {' or '.join(TOKENIZERS)} in it")


def _load(kind: Kind, folder: Path, dtype: torch.dtype | None, device: Any) -> nn.Module:
    source = _place(kind, folder)
    with torch.device("meta"):
        if source.is_dir():
            module = _from_config(kind, source)
            theirs = _prefixed(stored(source, kind.weights), module)
        else:
            tensors = kind.prepare(read_pth(source))
            theirs = {or_itself(kind.names.of, name): tensor for name, tensor in tensors.items()}
            module = _built(kind, shapes(theirs), source)
    found = shapes(theirs)
    want = module.state_dict()
    alias = ALIAS if ALIAS in want and ALIAS not in found else None
    check(found, {name: shape for name, shape in shapes(want).items() if name != alias},
          f"{source}, read as {kind.names.what}")
    module.load_state_dict({name: theirs[name].to(device, dtype or theirs[name].dtype, copy=True)
                            for name in found}, assign=True,
                           strict=alias is None)
    if kind is TEXT:
        module.encoder.embed_tokens.weight = module.shared.weight
    _materialise(module, device)
    return module.eval().requires_grad_(False)


def _place(kind: Kind, folder: Path) -> Path:
    """Returns the released file, or diffusers' subfolder; ValueError without either."""
    for place in (folder / kind.file, folder / kind.subfolder):
        if place.exists():
            return place
    raise ValueError(f"{folder}: no {kind.file} and no {kind.subfolder}/; want {kind.names.what} "
                     "as released or as diffusers saves it")


def read_pth(path: Path) -> dict[str, Tensor]:
    """Returns the memory-mapped tensors of a torch.save file.  Code in it is a ValueError, never run."""
    try:
        tensors = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as why:
        reason = str(why).strip().splitlines()[0]
        raise ValueError(f"{path}: damaged, or contains code besides tensors ({reason}); none of it was run; "
                         "download it again") from why
    if not isinstance(tensors, dict) or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise ValueError(f"{path}: not a dict of tensors; download it again")
    return tensors


def _built(kind: Kind, found: dict[str, tuple], source: Path) -> nn.Module:
    try:
        return kind.build(found)
    except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError) as why:
        raise ValueError(f"{source}: not {kind.names.what} ({why!r}); it holds {', '.join(list(found)[:3])}, "
                         "...") from why


def _from_config(kind: Kind, folder: Path) -> nn.Module:
    config = read_json(folder / "config.json")
    name = config.get("_class_name") or next(iter(config.get("architectures") or ()), None)
    if name not in kind.classes:
        raise ValueError(f"{folder}/config.json: a {name}; want {' or '.join(kind.classes)}")
    try:
        if kind is AUTOENCODER:
            return wanted("diffusers").AutoencoderKLWan.from_config(config)
        cls = getattr(wanted(), name)
        return cls(cls.config_class.from_dict(config))
    except (TypeError, ValueError, KeyError) as why:
        raise ValueError(f"{folder}/config.json: not a valid {name} ({why})") from why


def _prefixed(tensors: Iterable[str], module: nn.Module) -> dict[str, Tensor]:
    """Returns the file's tensors by module names: transformers 4 and 5 differ in the prefix vision_model."""
    want, prefix = module.state_dict(), "vision_model."
    names = {next((n for n in (name, f"{prefix}{name}", name.removeprefix(prefix)) if n in want), name): name
             for name in tensors}
    return {ours: tensors[name] for ours, name in names.items()}


def _materialise(module: nn.Module, device: Any) -> None:
    """Creates CLIP's position_ids, the only buffer not in files; ValueError for tensors left on meta."""
    for owner in module.modules():
        if getattr(owner, "position_ids", None) is not None and owner.position_ids.is_meta:
            owner.position_ids = torch.arange(owner.num_positions, device=device)[None]
    if left := [name for name, x in (*module.named_parameters(), *module.named_buffers()) if x.is_meta]:
        raise ValueError(f"{type(module).__name__}: {left[0]} was not loaded")


def _layers(found: dict[str, tuple], before: str) -> int:
    return 1 + max(int(name.removeprefix(before).split(".")[0]) for name in found if name.startswith(before))


def _umt5(found: dict[str, tuple]) -> nn.Module:
    t = wanted()
    attention = "encoder.block.0.layer.0.SelfAttention"
    vocabulary, width = found["shared.weight"]
    buckets, heads = found[f"{attention}.relative_attention_bias.weight"]
    return t.UMT5EncoderModel(t.UMT5Config(
        vocab_size=vocabulary, d_model=width, num_heads=heads,
        d_kv=found[f"{attention}.q.weight"][0] // heads,
        d_ff=found["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
        num_layers=_layers(found, "encoder.block."), relative_attention_num_buckets=buckets))


def _clip(found: dict[str, tuple]) -> nn.Module:
    t, embeddings = wanted(), "vision_model.embeddings"
    width, _, patch, _ = found[f"{embeddings}.patch_embedding.weight"]
    side = round((found[f"{embeddings}.position_embedding.weight"][0] - 1) ** 0.5)
    return t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(
        hidden_size=width, intermediate_size=found["vision_model.encoder.layers.0.mlp.fc1.weight"][0],
        projection_dim=found["visual_projection.weight"][0], image_size=side * patch, patch_size=patch,
        num_hidden_layers=_layers(found, "vision_model.encoder.layers."), hidden_act="gelu",
        num_attention_heads=width // CLIP_HEAD))


def _vae(found: dict[str, tuple]) -> nn.Module:
    return wanted("diffusers").AutoencoderKLWan(base_dim=found["encoder.conv_in.weight"][0],
                                                 z_dim=found["post_quant_conv.weight"][0])


def wanted(package: str = "transformers") -> Any:
    try:
        import diffusers
        import transformers
    except ImportError as why:
        raise ValueError(f"Wan's encoders need diffusers, transformers and ftfy ({why}): "
                         "pip install 'swiftvideo_fast[wan]'") from why
    return {"diffusers": diffusers, "transformers": transformers}[package]


TEXT = Kind(UMT5, "models_t5_umt5-xxl-enc-bf16.pth", "text_encoder", "model.safetensors",
            ("UMT5EncoderModel",), _umt5)
IMAGE = Kind(CLIP, "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth", "image_encoder",
             "model.safetensors", ("CLIPVisionModelWithProjection", "CLIPVisionModel"), _clip, split_clip)
AUTOENCODER = Kind(VAE, "Wan2.1_VAE.pth", "vae", "diffusion_pytorch_model.safetensors", ("AutoencoderKLWan",),
                   _vae)
