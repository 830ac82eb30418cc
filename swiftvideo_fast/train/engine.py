"""What the loop asks of an engine; single.py has that of one process, zero3.py that of many."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from swiftvideo_fast.config import Optim
from swiftvideo_fast.train.checkpoint import Part
from swiftvideo_fast.train.ranks import Ranks


class Trained(Part, Protocol):
    """A network and its optimizer: backward() for each micro-batch of a turn, then step().

    net: to be called.  named: the parameters that train.
    """

    net: Any
    named: Mapping[str, nn.Parameter]

    def backward(self, loss: Tensor) -> None: ...

    def step(self, lr: float) -> float:
        """The norm of the gradient before it is clipped.  When that is not finite, nothing moves."""


class Averaged(Part, Protocol):
    """An exponential moving average of a trained network, as a frozen network."""

    net: Any

    def update(self) -> None: ...


class Engine(Protocol):
    """Where networks live and how they move.  device: where their inputs must lie.  mapped: the networks it
    is given may have their weights in a file still (models/weights.py)."""

    device: torch.device
    ranks: Ranks
    mapped: bool

    def trained(self, net: nn.Module, optim: Optim) -> Trained:
        """A network that trains."""

    def averaged(self, net: nn.Module, optim: Optim, decay: float) -> tuple[Trained, Averaged]:
        """A network that trains, and its average."""

    def frozen(self, net: nn.Module) -> nn.Module:
        """A network that stays."""
