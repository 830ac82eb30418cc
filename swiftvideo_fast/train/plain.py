"""The engine of one process: every tensor whole.  engine.py is the same face over many processes."""

import torch
from torch import Tensor, nn

from swiftvideo_fast.config import Optim
from swiftvideo_fast.train.checkpoint import Piece
from swiftvideo_fast.train.ema import Ema
from swiftvideo_fast.train.optimizer import adamw, set_rate, set_steps


class Plain:
    """Hands out networks that train, that stay, that follow.  passes: backward passes a step."""

    rank, world = 0, 1

    def __init__(self, passes: int = 1):
        self.passes = passes

    def trained(self, net: nn.Module, optim: Optim) -> "Trained":
        return Trained(net, optim, self.passes)

    def frozen(self, net: nn.Module) -> nn.Module:
        return net.requires_grad_(False).eval()

    def average(self, trained: "Trained", decay: float) -> Ema:
        return Ema(trained.net, decay)

    def mean(self, values: list[float]) -> list[float]:
        """Over all processes, of what each gives."""
        return values


class Trained:
    """A network and its optimizer: backward() for each pass of a step, then step()."""

    def __init__(self, net: nn.Module, optim: Optim, passes: int):
        self.net, self.optim, self.passes = net, optim, passes
        self.named = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self.optimizer = adamw(self.named.values(), optim)
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
            found |= {f"{kind}/{name}": x for kind, x in self.optimizer.state[p].items() if kind != "step"}
        return {name: Piece.whole(x) for name, x in found.items()} | {"steps": Piece.whole(self.steps)}

    def settle(self) -> None:
        """To be called once the pieces have been filled."""
        set_steps(self.optimizer, int(self.steps))
