"""The engine protocol: network placement and optimizer steps.  single.py: one process; zero3.py: ZeRO-3."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from swiftvideo_fast.config import Optim
from swiftvideo_fast.train.checkpoint import Part
from swiftvideo_fast.train.ranks import Ranks


class Trained(Part, Protocol):
    """A network and its optimizer: backward() for each micro-batch of a turn, then step().

    net: the callable network.  named: its trainable parameters by name.
    """

    net: Any
    named: Mapping[str, nn.Parameter]

    def backward(self, loss: Tensor) -> None: ...

    def step(self, lr: float) -> float:
        """Returns the gradient norm before clipping.  A non-finite gradient leaves the weights unchanged."""


class Averaged(Part, Protocol):
    """The exponential moving average of a trained network, itself a frozen network."""

    net: Any

    def update(self) -> None: ...


class Engine(Protocol):
    """Places networks and builds their optimizers.  device: device of their inputs.  mapped: accepts
    networks whose weights are memory-mapped files (models/weights.py)."""

    device: torch.device
    ranks: Ranks
    mapped: bool

    def trained(self, net: nn.Module, optim: Optim) -> Trained:
        """Returns the network with its optimizer."""

    def averaged(self, net: nn.Module, optim: Optim, decay: float) -> tuple[Trained, Averaged]:
        """Returns the network with its optimizer, and its average."""

    def frozen(self, net: nn.Module) -> nn.Module:
        """Returns the network in eval mode, without gradients."""
