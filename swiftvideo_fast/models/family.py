"""The family protocol of a kind of model: latent geometry, network, its call signature, codec."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from swiftvideo_fast.config import Model
from swiftvideo_fast.config.strict import known_name, want
from swiftvideo_fast.models.condition import Condition


@dataclass(frozen=True)
class Latent:
    """The latent geometry of a causal video codec and its transformer.

    channels: latent channels.  stride_t: pixel frames per latent frame, except the first, which is one frame.
    stride: pixels per latent, in height and width.  patch: latents per token, in height and width.
    """

    channels: int
    stride_t: int
    stride: int
    patch: int

    def shape(self, frames: int, height: int, width: int, where: str = "clip") -> tuple[int, int, int]:
        """Returns a clip's latent shape (T, H, W).  ValueError, naming `where`, for sizes not divisible by
        the strides."""
        side = self.stride * self.patch
        want(frames > 1 and frames % self.stride_t == 1, f"{where}.frames", frames,
             f"{self.stride_t}n + 1, n > 0")
        want(height > 0 and width > 0 and height % side == width % side == 0, f"{where}.size",
             f"{width}x{height}", f"positive multiples of {side} (codec stride {self.stride}, "
             f"patch {self.patch})")
        return (frames - 1) // self.stride_t + 1, height // self.stride, width // self.stride

    def tokens(self, frames: int, height: int, width: int) -> int:
        T, H, W = self.shape(frames, height, width)
        return T * H * W // self.patch**2

    def frames(self, start: int, count: int) -> slice:
        """Returns the pixel frames of latent frames start to start + count - 1."""
        first, last = (max(self.stride_t * (i - 1) + 1, 0) for i in (start, start + count))
        return slice(first, last)


class Codec(Protocol):
    """Encodes pixels and captions to latents and conditions, and decodes latents.

    identity: plain values that determine its output's bytes (file digests, versions), for manifests.
    null_text: (L, E), the embedding of the empty text.
    """

    identity: dict[str, Any]
    null_text: Tensor

    def encode(self, pixels_BCTHW: Tensor, captions: list[str]) -> tuple[Tensor, Condition]:
        """Returns (x0, first-frame condition) of clips (B, 3, T, H, W) in [-1, 1]: encode_pixels and
        encode_text."""

    def encode_pixels(self, pixels_BCTHW: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns (x0, and `frames` and `image` of the first-frame condition)."""

    def encode_text(self, captions: list[str]) -> Tensor:
        """Returns text embeddings (B, L, E), zero-padded."""

    def decode(self, z_BCTHW: Tensor) -> Tensor:
        """Returns pixels (B, 3, T, H, W) in [-1, 1]."""

    def decode_window(self, z_BCTHW: Tensor, start: int, count: int) -> Tensor:
        """Returns the pixels of latent frames start to start + count - 1, equal to those of a full decode;
        differentiable."""


class Family(Protocol):
    """A kind of model.  presets: sizes by name, for networks from scratch and for `plan`.

    A network may have `recompute` and, for block-wise sharding, `leaves` (module classes gathered at once)
    and `share_tokens(ulysses)`; see models/wan/network.py.
    """

    name: str
    latent: Latent
    presets: dict[str, Any]

    def network(self, sizes: Any) -> nn.Module:
        """Returns a network of these sizes, which become its `config`."""

    def initialise(self, net: nn.Module, rng: torch.Generator) -> None:
        """Initialises weights for training from scratch, equal on all ranks."""

    def call(self, net: Any, x_t: Tensor, t: Tensor, condition: Condition, s: Tensor | None = None) -> Tensor:
        """Returns the velocity F(x_t, t), or u(x_t, t, s) of a flow map.  x_t, t may be Duals; t, s: (B,)."""

    def features(self, net: Any, x_t: Tensor, t: Tensor, condition: Condition) -> list[Tensor]:
        """Returns features for a latent critic: the blocks' outputs and the velocity, (B, N, C) each."""

    def widths(self, sizes: Any) -> list[int]:
        """Returns C of each of `features`."""

    def add_second_time(self, net: nn.Module) -> nn.Module:
        """Adds the input s, in place, with u(x_t, t, s) = F(x_t, t) initially.  Families without flow maps
        lack this method."""

    def activations(self, sizes: Any, tokens: int, recompute: str, stored: int) -> int:
        """Returns the activation bytes of a forward and backward over `tokens`, with `stored` bytes per
        element.  Optional: a family without it is not checked for memory."""

    def load(self, file: Path | str, *, mapped: bool = False,
             dtype: torch.dtype = torch.float32) -> nn.Module:
        """Returns the network of a weight file, stored as by `cast`.  mapped: memory-mapped in the file's
        dtype; each weight is read on use."""

    def sizes(self, file: Path | str) -> Any:
        """Returns the sizes of a weight file's network without reading weights; `text_dim` is the width of
        the text embedding."""

    def cast(self, net: nn.Module, dtype: torch.dtype) -> nn.Module:
        """Casts the large matrices to dtype, in place; parameters that need fp32 stay fp32."""

    def save(self, net: nn.Module, file: Path | str, **about: Any) -> None:
        """Writes a file for `load`, atomically.  about: JSON for the header."""

    def codec(self, model: Model, sizes: Any) -> Codec:
        """Returns the codec of a config's model section, for networks of these sizes."""


def sizes_of(family: Family, model: Model) -> Any:
    """Returns the sizes of the network that a model section names, without reading weights."""
    if model.weights:
        return family.sizes(model.start)
    known_name("model.preset", model.preset, family.presets)
    return family.presets[model.preset]
