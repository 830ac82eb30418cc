"""What the loop asks of an engine, and the engine of one process; engine.py has that of many."""

from typing import Protocol

import torch
from torch import Tensor, nn

from swiftvideo_fast.config import Config, Optim
from swiftvideo_fast.train.checkpoint import Piece
from swiftvideo_fast.train.ema import Ema
from swiftvideo_fast.train.optimizer import adamw, moments, prime, set_rate, set_steps
from swiftvideo_fast.train.ranks import ALONE, Ranks, own_device, passes_of


class Engine(Protocol):
    """Where networks live and how they move.  device: where their inputs must lie.  mapped: the networks it
    is given may have their weights in a file still (models/weights.py)."""

    device: torch.device
    ranks: Ranks
    mapped: bool

    def student(self, net: nn.Module, optim: Optim, decay: float) -> tuple["Trained", Ema]:
        """A network that trains, and the average that follows it."""

    def trained(self, net: nn.Module, optim: Optim) -> "Trained":
        """A network that trains."""

    def frozen(self, net: nn.Module) -> nn.Module:
        """A network that stays."""


class Plain:
    """One process, every tensor whole."""

    mapped = False

    def __init__(self, cfg: Config):
        self.device, self.ranks = own_device(), ALONE
        self.passes, _ = passes_of(cfg, ALONE)

    def student(self, net: nn.Module, optim: Optim, decay: float) -> tuple["Trained", Ema]:
        trained = self.trained(net, optim)
        return trained, Ema(trained.net, decay)

    def trained(self, net: nn.Module, optim: Optim) -> "Trained":
        return Trained(net.to(self.device), optim, self.passes)

    def frozen(self, net: nn.Module) -> nn.Module:
        return net.to(self.device).requires_grad_(False).eval()


class Trained:
    """A network and its optimizer: backward() for each pass of a step, then step()."""

    def __init__(self, net: nn.Module, optim: Optim, passes: int):
        self.net, self.optim, self.passes = net, optim, passes
        self.named = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self.optimizer = adamw(self.named.values(), optim)
        prime(self.optimizer, self.named.values())
        self.steps = torch.zeros(1)

    def backward(self, loss: Tensor) -> None:
        (loss / self.passes).backward()

    def step(self, lr: float) -> float:
        """The norm of the gradient before it is clipped.  When that is not finite, nothing moves."""
        norm = nn.utils.clip_grad_norm_(self.named.values(), self.optim.clip)
        if norm.isfinite():
            set_rate(self.optimizer, lr)
            self.optimizer.step()
            self.steps += 1
        self.optimizer.zero_grad()
        return norm.item()

    def pieces(self) -> dict[str, Piece]:
        """Weights, buffers, moments and the count of steps."""
        found = {f"weight/{name}": p for name, p in self.named.items()}
        found |= {f"buffer/{name}": b for name, b in self.net.named_buffers()}
        for name, p in self.named.items():
            found |= {f"{kind}/{name}": x for kind, x in moments(self.optimizer.state[p]).items()}
        return {name: Piece.whole(x) for name, x in found.items()} | {"steps": Piece.whole(self.steps)}

    def settle(self) -> None:
        """To be called once the pieces have been filled."""
        set_steps(self.optimizer, int(self.steps))
