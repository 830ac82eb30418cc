"""theta- : an exponential moving average of the student, as a network of its own."""

import copy

import torch
from torch import nn

from swiftvideo_fast import ops


class Ema:
    """net: a frozen copy of the student; update() moves it (Algorithm 1, line 11)."""

    def __init__(self, student: nn.Module, decay: float):
        self.student, self.decay = student, decay
        self.net = copy.deepcopy(student).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self) -> None:
        """theta- <- decay theta- + (1 - decay) theta."""
        ops.ema_(list(self.net.parameters()), list(self.student.parameters()), self.decay)
