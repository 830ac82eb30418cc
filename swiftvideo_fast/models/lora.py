"""Low-rank adapters on every linear layer of a network (Hu et al. 2022), through peft.

    y = W x + b + B A x         A (rank, in), drawn; B (out, rank), zero at the start; alpha / rank = 1

The patch embedding is a convolution by name and stays as it is.  Adapters pass under jvp: peft's layer is
made of linear maps.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from swiftvideo_fast import sealed
from swiftvideo_fast.atomic import atomic_write

NAME = "default"                    # peft's, of the one adapter a layer has
PREFIX = "diffusion_model."         # of names in files: ComfyUI's; diffusers converts from it


def attach(net: nn.Module, rank: int, rng: torch.Generator, dtype: torch.dtype | None = None) -> None:
    """Put adapters on the linear layers of net, in place, and freeze all else; net computes what it did.

    dtype: of the adapters, in which they are drawn; None: each layer's own.
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
    """(name, layer) of the layers that have adapters."""
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in net.named_modules() if isinstance(module, LoraLayer))


def cast(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Store the adapters as dtype, in place."""
    for _, layer in adapted(net):
        for factor in (layer.lora_A, layer.lora_B):
            factor.to(dtype)
    return net


class Base:
    """The network with its adapters off, called as the network is: the one it was, at no second copy."""

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
    """A plain network, of net's class and config, of W + B A; what has no adapter is shared with net."""
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
    """Write A and B under names that ComfyUI and diffusers load; `about` as JSON in the header.  Atomic."""
    tensors = {f"{PREFIX}{name}.{factor}.weight": getattr(layer, factor)[NAME].weight
               for name, layer in adapted(net) for factor in ("lora_A", "lora_B")}
    with atomic_write(path) as tmp:
        sealed.save(tensors, tmp, {"about": json.dumps(about)})
