"""Low-rank adapters on every linear layer of a network (Hu et al. 2022), through peft.

    y = W x + b + B A x         A (rank, in) random, B (out, rank) zero initially; alpha / rank = 1

The patch embedding, a convolution, has no adapter.  jvp supports adapters: peft's layer consists of linear
maps.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from swiftvideo_fast import sealed
from swiftvideo_fast.atomic import atomic_write

NAME = "default"                    # peft's name for a layer's only adapter
PREFIX = "diffusion_model."         # of names in files: ComfyUI's, which diffusers converts


def attach(net: nn.Module, rank: int, rng: torch.Generator, dtype: torch.dtype | None = None) -> None:
    """Adds adapters to the linear layers of net, in place, and freezes all else; net's output is unchanged.

    dtype: of the adapters; None: each layer's own.  ValueError without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as why:
        raise ValueError("objective.rank: LoRA needs peft: pip install 'swiftvideo_fast[lora]'; or set "
                         "objective.rank=0 to train all weights") from why
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    net.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), net)
    for _, layer in adapted(net):
        for factor in (layer.lora_A, layer.lora_B):
            factor.to(dtype or layer.base_layer.weight.dtype)
        nn.init.kaiming_uniform_(layer.lora_A[NAME].weight, a=math.sqrt(5), generator=rng)


def adapted(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields (name, layer) of the layers with adapters."""
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in net.named_modules() if isinstance(module, LoraLayer))


def cast(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Casts the adapters to dtype, in place."""
    for _, layer in adapted(net):
        for factor in (layer.lora_A, layer.lora_B):
            factor.to(dtype)
    return net


class Base:
    """Calls the network with its adapters off: the base network, without a second copy."""

    def __init__(self, net: nn.Module):
        self.net = net

    @torch.no_grad()
    def __call__(self, *inputs: Tensor | None) -> Tensor:
        try:
            self._switch(False)
            return self.net(*inputs)
        finally:
            self._switch(True)

    def _switch(self, on: bool) -> None:
        for _, layer in adapted(self.net):
            layer.enable_adapters(on)


@torch.no_grad()
def merged(net: nn.Module) -> nn.Module:
    """Returns a network of net's class and config with weights W + B A.  Other parameters are shared."""
    state = {name.replace(".base_layer.", "."): x for name, x in net.state_dict().items()
             if ".lora_" not in name}
    for name, layer in adapted(net):
        W, A, B = (part.weight for part in (layer.base_layer, layer.lora_A[NAME], layer.lora_B[NAME]))
        state[f"{name}.weight"] = (W.double() + B.double() @ A.double()).to(W)
    with torch.device("meta"):
        plain = type(net)(net.config)
    plain.load_state_dict(state, assign=True)
    return plain


def save(net: nn.Module, path: Path | str, **about) -> None:
    """Writes A and B atomically, under names that ComfyUI and diffusers load.  about: JSON for the header."""
    tensors = {f"{PREFIX}{name}.{factor}.weight": getattr(layer, factor)[NAME].weight
               for name, layer in adapted(net) for factor in ("lora_A", "lora_B")}
    with atomic_write(path) as tmp:
        sealed.save(tensors, tmp, {"about": json.dumps(about)})
