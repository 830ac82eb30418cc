"""The family of Wan2.1 image-to-video transformers."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swiftvideo_fast.config import Model
from swiftvideo_fast.config.strict import want
from swiftvideo_fast.models import weights
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.models.wan import encoders
from swiftvideo_fast.models.wan.codec import WanCodec
from swiftvideo_fast.models.wan.network import Wan, add_second_time, cast, initialise
from swiftvideo_fast.models.wan.sizes import PRESETS, WanConfig, activations
from swiftvideo_fast.models.wan.vae import LATENT


class WanFamily:
    """family.Family of Wan2.1."""

    name = "wan"
    latent = LATENT
    presets = {name: PRESETS[name] for name in ("1.3b", "14b")}

    def network(self, sizes: WanConfig) -> Wan:
        return Wan(sizes)

    def initialise(self, net: Wan, rng: torch.Generator) -> None:
        initialise(net, rng)

    def call(self, net: Any, x_t: Tensor, t: Tensor, condition: Condition, s: Tensor | None = None) -> Tensor:
        second = () if s is None else (s,)
        return net(x_t, t, condition.text, condition.frames, condition.image, *second)

    def features(self, net: Any, x_t: Tensor, t: Tensor, condition: Condition) -> list[Tensor]:
        """Returns the blocks' outputs, then the velocity: DeepSpeed's hooks need the network's output."""
        found = []
        hooks = [block.register_forward_hook(lambda block, inputs, out: found.append(out))
                 for block in net.blocks]
        try:
            velocity = self.call(net, x_t, t, condition)
        finally:
            for hook in hooks:
                hook.remove()
        return [*found, velocity.flatten(2).mT]

    def widths(self, sizes: WanConfig) -> list[int]:
        return [sizes.dim] * sizes.layers + [sizes.latent]

    def activations(self, sizes: WanConfig, tokens: int, recompute: str, stored: int) -> int:
        return activations(sizes, tokens, recompute, stored)

    def add_second_time(self, net: Wan) -> Wan:
        return add_second_time(net)

    def load(self, file: Path | str, *, mapped: bool = False, dtype: torch.dtype = torch.float32) -> Wan:
        return weights.load(file, mapped=mapped, dtype=dtype)

    def sizes(self, file: Path | str) -> WanConfig:
        return weights.sizes(file)

    def cast(self, net: Wan, dtype: torch.dtype) -> Wan:
        return cast(net, dtype)

    def save(self, net: nn.Module, file: Path | str, **about: Any) -> None:
        weights.save(net, file, **about)

    def codec(self, model: Model, sizes: WanConfig) -> WanCodec:
        """Returns the codec of the folder model.codec, default model.weights (a base model with encoders)."""
        folder = model.codec or model.weights
        want(bool(folder) and Path(folder).is_dir(), "model.codec", folder,
             "a folder with Wan's VAE, text and image encoder, if model.weights is not one")
        encoders.check_folder(folder)
        return WanCodec(folder)
