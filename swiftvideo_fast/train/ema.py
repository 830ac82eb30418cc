"""theta- : an exponential moving average of the student, as a network of its own."""

import copy

import torch
from torch import nn

from swiftvideo_fast import ops
from swiftvideo_fast.train.checkpoint import Piece


class Ema:
    """net: a frozen copy of the student; update() moves it (Algorithm 1, line 11).

    What is frozen in the student (the base of its LoRA) is shared and not copied.
    """

    def __init__(self, student: nn.Module, decay: float):
        self.decay = decay
        self.masters = {name: p for name, p in student.named_parameters() if p.requires_grad}
        shared = {id(p): p for p in student.parameters() if not p.requires_grad}
        self.net = copy.deepcopy(student, shared).requires_grad_(False).eval()
        self.averages = {name: self.net.get_parameter(name) for name in self.masters}

    @torch.no_grad()
    def update(self) -> None:
        """theta- <- decay theta- + (1 - decay) theta."""
        ops.ema_(list(self.averages.values()), list(self.masters.values()), self.decay)

    def pieces(self) -> dict[str, Piece]:
        return {f"weight/{name}": Piece.whole(p) for name, p in self.averages.items()}

    def settle(self) -> None:
        """Nothing is derived from the pieces."""
