"""What a step minimises.  One file an objective."""

from collections.abc import Mapping

import torch
from torch import Tensor

from swiftvideo_fast import path
from swiftvideo_fast.data.latents import Latents

Log = dict[str, float | Tensor]         # a tensor is shown as a histogram


class Objective:
    """What the loop asks for.  trained: what it trains beside the student, by name, as an engine hands it out
    (`engine.trained(net, optim)`): the checkpoint keeps it, the objective calls its backward and step."""

    trained: Mapping[str, object] = {}

    def __call__(self, point: path.Point, batch: Latents, step: int,
                 rng: torch.Generator) -> tuple[Tensor, Log]:
        """(the student's loss, what to log), once a pass; random draws beyond the point come from rng."""
        raise NotImplementedError

    def after_step(self) -> Log:
        """What follows once the student has moved: a step of the other nets."""
        return {}


class Consistency(Objective):
    """An objective that jumps to x0, which an adversary may judge."""

    def distil(self, point: path.Point, batch: Latents, step: int) -> tuple[Tensor, Tensor, Log]:
        """(loss, x0-hat = x_t - t F(x_t, t) with the student's graph, what to log)."""
        raise NotImplementedError

    def __call__(self, point, batch, step, rng):
        loss, _, log = self.distil(point, batch, step)
        return loss, log
