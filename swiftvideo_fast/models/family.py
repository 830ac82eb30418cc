"""The protocol of a kind of model: latent geometry, network, how it is called, codec."""

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

    channels: of a latent.  stride_t: pixel frames a latent frame, after the first, which stands alone.
    stride: pixels a latent, in height and width.  patch: latents a token, in height and width.
    """

    channels: int
    stride_t: int
    stride: int
    patch: int

    def shape(self, frames: int, height: int, width: int, where: str = "clip") -> tuple[int, int, int]:
        """(T, H, W) of a clip's latent; ValueError, naming `where`, for what the strides do not divide."""
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
        """The pixel frames of latent frames start to start + count."""
        first, last = (max(self.stride_t * (i - 1) + 1, 0) for i in (start, start + count))
        return slice(first, last)


class Codec(Protocol):
    """Pixels and captions to latents and conditions, and back.

    identity: what decides its output's bytes, as plain values (file digests, versions), for manifests.
    null_text: (L, E), the embedding of no text.
    """

    identity: dict[str, Any]
    null_text: Tensor

    def encode(self, pixels_BCTHW: Tensor, captions: list[str]) -> tuple[Tensor, Condition]:
        """(x0, its first-frame condition) of clips (B, 3, T, H, W) in [-1, 1]: the two below in one."""

    def encode_pixels(self, pixels_BCTHW: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(x0, and the `frames` and `image` of its first-frame condition)."""

    def encode_text(self, captions: list[str]) -> Tensor:
        """(B, L, E), zeros after each caption's own length."""

    def decode(self, z_BCTHW: Tensor) -> Tensor:
        """Pixels in [-1, 1]."""

    def decode_window(self, z_BCTHW: Tensor, start: int, count: int) -> Tensor:
        """Pixels of latent frames start to start + count, as a whole decode gives them; differentiable."""


class Family(Protocol):
    """A kind of model.  presets: sizes by name, for networks from scratch and for accounts.

    A network may have `recompute`, and, to be sharded block by block, `leaves` (module classes that are
    gathered whole) and `share_tokens(ulysses)`; see models/wan/network.py.
    """

    name: str
    latent: Latent
    presets: dict[str, Any]

    def network(self, sizes: Any) -> nn.Module:
        """A network of these sizes, kept as its `config`."""

    def initialise(self, net: nn.Module, rng: torch.Generator) -> None:
        """Weights for training from scratch, equal on every rank."""

    def call(self, net: Any, x_t: Tensor, t: Tensor, condition: Condition, s: Tensor | None = None) -> Tensor:
        """The velocity F(x_t, t), or u(x_t, t, s) of a flow map.  x_t and t may be Duals."""

    def features(self, net: Any, x_t: Tensor, t: Tensor, condition: Condition) -> list[Tensor]:
        """The features for a latent critic: the outputs of a network's blocks and its velocity, (B, N, C)."""

    def widths(self, sizes: Any) -> list[int]:
        """C of each of `features`."""

    def add_second_time(self, net: nn.Module) -> nn.Module:
        """Have net take s, in place: u(x_t, t, s) = F(x_t, t) to begin with.  A family without flow maps has
        no such method."""

    def activations(self, sizes: Any, tokens: int, recompute: str, stored: int) -> int:
        """Bytes that a pass with a backward over so many tokens holds, elements of `stored` bytes.  A family
        without an account has no such method, and is not refused for want of memory."""

    def load(self, file: Path | str, *, mapped: bool = False,
             dtype: torch.dtype = torch.float32) -> nn.Module:
        """The network of a weight file, stored as `cast` does it; mapped: as it lies in the file, from which
        each weight is read when it is used."""

    def sizes(self, file: Path | str) -> Any:
        """The sizes of the network of a weight file, its weights unread.  They have `text_dim`, the width of
        the text embedding."""

    def cast(self, net: nn.Module, dtype: torch.dtype) -> nn.Module:
        """Store its large matrices as dtype, in place; what needs fp32 stays."""

    def save(self, net: nn.Module, file: Path | str, **about: Any) -> None:
        """Write what `load` reads; about: JSON for the header.  Atomic."""

    def codec(self, model: Model, sizes: Any) -> Codec:
        """The codec of a config's model section, for networks of these sizes."""


def sizes_of(family: Family, model: Model) -> Any:
    """The sizes of the network that a model section names, without its weights."""
    if model.weights:
        return family.sizes(model.start)
    known_name("model.preset", model.preset, family.presets)
    return family.presets[model.preset]
