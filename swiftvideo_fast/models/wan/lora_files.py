"""LoRA files: reads ours, renames factors for ComfyUI and diffusers.

alpha equals the rank and is not written: readers default a missing alpha to the rank.
"""

from pathlib import Path

from torch import Tensor

from swiftvideo_fast.models.lora import PREFIX
from swiftvideo_fast.models.wan.names import DIT
from swiftvideo_fast.models.weights import Stored

TRANSFORMER = "transformer."            # diffusers' prefix
FACTORS = ".lora_A.weight", ".lora_B.weight"


def read(path: Path) -> dict[str, Tensor]:
    """Returns {"blocks.0.self_attn.q.lora_A.weight": ...} of a file by lora.save; ValueError for others."""
    stored = Stored(path)
    tensors = {name.removeprefix(PREFIX): stored[name] for name in stored}
    if foreign := [name for name in tensors if not name.endswith(FACTORS)]:
        raise ValueError(f"{path}: {foreign[0]} is not a LoRA factor; want a file written by swiftvideo")
    return tensors


def comfyui(adapters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the factors under ComfyUI's names."""
    return {f"{PREFIX}{name}": tensor for name, tensor in adapters.items()}


def diffusers(adapters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the factors under diffusers' names."""
    renamed = {}
    for name, tensor in adapters.items():
        layer, factor = name.split(".lora_")
        renamed[f"{TRANSFORMER}{DIT.of(layer + '.weight').removesuffix('.weight')}.lora_{factor}"] = tensor
    return renamed
