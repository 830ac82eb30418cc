"""theta- : the exponential moving average of a trained network, kept as a separate network."""

import copy

import torch
from torch import Tensor

from swiftvideo_fast import ops
from swiftvideo_fast.train.checkpoint import Shard
from swiftvideo_fast.train.engine import Trained

Named = dict[str, Tensor]


def update(averages: Named, masters: Named, copies: Named, decay: float) -> None:
    """Updates the fp32 averages in place, and the stored copies where these are separate tensors."""
    for separate in (False, True):
        names = [name for name in averages if (averages[name] is not copies[name]) == separate]
        ops.ema_([averages[name] for name in names], [masters[name] for name in names], decay,
                 [copies[name] for name in names] if separate else None)


class Ema:
    """net: a frozen copy, moved by update() (Algorithm 1, line 11).  averages: fp32, by name.

    Frozen parameters of the trained network (the base under a LoRA) are shared, not copied.
    """

    def __init__(self, trained: Trained, decay: float):
        self.decay, self.masters = decay, trained.masters
        shared = {id(p): p for p in trained.net.parameters() if not p.requires_grad}
        self.net = copy.deepcopy(trained.net, shared).requires_grad_(False).eval()
        self.copies = {name: self.net.get_parameter(name) for name in self.masters}
        self.averages = {name: p if p.dtype == master.dtype else master.detach().clone()
                         for (name, p), master in zip(self.copies.items(), self.masters.values())}

    @torch.no_grad()
    def update(self) -> None:
        """theta- <- decay theta- + (1 - decay) theta."""
        update(self.averages, self.masters, self.copies, self.decay)

    def shards(self) -> dict[str, Shard]:
        return {f"weight/{name}": Shard.whole(p) for name, p in self.averages.items()}

    @torch.no_grad()
    def after_restore(self) -> None:
        """Copies the fp32 averages to the stored weights."""
        for name, average in self.averages.items():
            if average is not self.copies[name]:
                self.copies[name].copy_(average)
