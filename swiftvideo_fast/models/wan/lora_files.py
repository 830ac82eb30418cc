"""LoRA files: read ours, rename factors for ComfyUI and for diffusers.

alpha equals the rank, so no alpha is written: readers default a missing alpha to the rank.
"""

from pathlib import Path

from torch import Tensor

from swiftvideo_fast.models.lora import PREFIX
from swiftvideo_fast.models.wan.names import DIT
from swiftvideo_fast.models.weights import Stored

TRANSFORMER = "transformer."            # diffusers' prefix
FACTORS = ".lora_A.weight", ".lora_B.weight"


def read(path: Path) -> dict[str, Tensor]:
    """{"blocks.0.self_attn.q.lora_A.weight": ...} of a file by lora.save.  ValueError where it is none."""
    stored = Stored(path)
    tensors = {name.removeprefix(PREFIX): stored[name] for name in stored}
    if foreign := [name for name in tensors if not name.endswith(FACTORS)]:
        raise ValueError(f"{path}: {foreign[0]} is no factor of an adapter; want a file by swiftvideo")
    return tensors


def comfyui(adapters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{PREFIX}{name}": tensor for name, tensor in adapters.items()}


def diffusers(adapters: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in adapters.items():
        layer, factor = name.split(".lora_")
        renamed[f"{TRANSFORMER}{DIT.of(layer + '.weight').removesuffix('.weight')}.lora_{factor}"] = tensor
    return renamed
