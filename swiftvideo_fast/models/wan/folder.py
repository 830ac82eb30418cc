"""Loads a Wan network from disk: the released layout, diffusers', VideoX-Fun's, or our own weight file.

    FOLDER/config.json, diffusion_pytorch_model.safetensors         released, VideoX-Fun
    FOLDER/config.json, diffusion_pytorch_model.safetensors.index.json and the shards it lists
    FOLDER/transformer/ (as above, diffusers' names)                diffusers
    FILE.safetensors                                                written by weights.save

Names and shapes are checked from the headers, before a weight is read.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from swiftvideo_fast.models.wan.names import DIT, or_itself
from swiftvideo_fast.models.wan.network import Wan, cast
from swiftvideo_fast.models.wan.sizes import WanConfig
from swiftvideo_fast.models.weights import Stored, check, read_json, shapes, stored

FILE = "diffusion_pytorch_model.safetensors"
CLASSES = "WanModel", "WanTransformer3DModel"
PREFIXES = "model.diffusion_model.", "diffusion_model."         # ComfyUI's
IMAGE_TO_VIDEO = 36                                             # input channels: 16 + 4 + 16
OTHER_KINDS = {16: "text-to-video (T2V)", 32: "camera control", 48: "Control"}
FIXED = {       # config key: values this network implements
    "patch_size": ([1, 2, 2],), "window_size": ([-1, -1],), "cross_attn_norm": (True,),
    "qk_norm": (True, "rms_norm_across_heads"), "out_dim": (16,), "out_channels": (16,),
    "pos_embed_seq_len": (None,),
}


@dataclass(frozen=True)
class Source:
    """A network on disk.  names: our parameter name -> the name in the files."""

    path: Path
    config: WanConfig
    stored: Stored
    names: dict[str, str]

    def __post_init__(self):
        """Checks the number of layers before a network is built."""
        held = len({name.split(".")[1] for name in self.names if name.startswith("blocks.")})
        if held and held != self.config.layers:
            raise ValueError(f"{self.path}: its config has {self.config.layers} layers, its tensors those of "
                             f"{held}; want the config of these weights")


def load(path: Path | str, *, mapped: bool = False, dtype: torch.dtype = torch.float32,
         device: torch.device | str = "cpu") -> Wan:
    """Returns the network of a folder or file.  ValueError unless it is an image-to-video Wan.

    Tensors are copied to `device` one at a time, linear layers in `dtype`, others as by `cast`: peak memory
    is the network plus one tensor.  mapped: tensors stay memory-mapped in their dtype, for an engine that
    reads them module by module.
    """
    source = find(path)
    with torch.device("meta"):
        net = cast(Wan(source.config), dtype)
    want = net.state_dict()
    check({ours: source.stored.shape(theirs) for ours, theirs in source.names.items()}, shapes(want), path)
    net.load_state_dict({ours: source.stored[theirs] if mapped else
                         source.stored[theirs].to(device, want[ours].dtype, copy=True)
                         for ours, theirs in source.names.items()}, assign=True)
    return net


def find(path: Path | str) -> Source:
    """Returns the network at a path, from config and headers, no tensor is read.  ValueError if none."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; want a Wan model folder, or a weight file of ours")
    if path.is_file():
        return _weight_file(path)
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; want a Wan model folder as released "
                         f"(config.json, {FILE}) or as diffusers saves it")
    config = read_json(folder / "config.json")
    if config.get("_class_name") not in CLASSES:
        raise ValueError(f"{folder}/config.json: _class_name is {config.get('_class_name')!r}; "
                         f"want one of {', '.join(CLASSES)}")
    channels = config.get("in_dim", config.get("in_channels"))
    if channels in OTHER_KINDS:
        raise ValueError(f"{folder}: a {OTHER_KINDS[channels]} checkpoint, of {channels} input channels; "
                         f"want an image-to-video one, of {IMAGE_TO_VIDEO}, such as Wan2.1-Fun-1.3B-InP")
    tensors = stored(folder, FILE)
    names = _names(tensors)
    return Source(folder, _config(config, tensors, names, folder), tensors, names)


def _weight_file(path: Path) -> Source:
    tensors = Stored(path)
    if "config" not in tensors.header:
        raise ValueError(f"{path}: its header has no network sizes; want a file written by swiftvideo, or "
                         "the folder of a model with its config.json")
    try:
        config = WanConfig(**json.loads(tensors.header["config"]))
    except (ValueError, TypeError) as why:
        raise ValueError(f"{path}: its header's sizes, {tensors.header['config']}, are not a network's "
                         f"({why})") from why
    return Source(path, config, tensors, {name: name for name in tensors})


def _names(tensors: Stored) -> dict[str, str]:
    """Returns our name -> the file's, for released or diffusers' names, with or without ComfyUI's prefix."""
    prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), "")
    bare = {name.removeprefix(prefix): name for name in tensors}
    if any(name.startswith("condition_embedder.") for name in bare):
        return {or_itself(DIT.back, name): full for name, full in bare.items()}
    return bare


def _config(config: dict, tensors: Stored, names: dict[str, str], folder: Path) -> WanConfig:
    """Returns sizes from config.json, and text and image width, which released configs omit, from tensors."""
    for key, values in FIXED.items():
        if key in config and config[key] not in values:
            raise ValueError(f"{folder}/config.json: {key} is {config[key]!r}; want {values[0]!r}")

    def width(name: str) -> int | None:
        shape = tensors.shape(names[name]) if name in names else ()
        return shape[-1] if shape else None

    try:
        heads = config["num_heads"] if "dim" in config else config["num_attention_heads"]
        dim = config["dim"] if "dim" in config else heads * config["attention_head_dim"]
        return WanConfig(
            dim=dim, heads=heads, layers=config["num_layers"], ffn_dim=config["ffn_dim"],
            text_dim=config.get("text_dim") or width("text_embedding.0.weight") or 4096,
            image_dim=width("img_emb.proj.1.weight"), condition=_channels(config) - 16,
            freq_dim=config.get("freq_dim", 256), eps=config.get("eps", 1e-6))
    except (KeyError, TypeError, ValueError) as why:
        raise ValueError(f"{folder}/config.json: not a Wan network ({why!r})") from why


def _channels(config: dict) -> int:
    channels = config["in_dim"] if "in_dim" in config else config["in_channels"]
    if channels != IMAGE_TO_VIDEO:
        raise ValueError(f"{channels} input channels; want {IMAGE_TO_VIDEO}")
    return channels
