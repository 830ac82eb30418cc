"""What a step minimises.  One file an objective."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swiftvideo_fast import path
from swiftvideo_fast.data.latents import Latents

Log = dict[str, float | Tensor]         # a tensor is shown as a histogram


class Objective:
    """What the loop asks for.  trained: what it trains beside the student, by name, as an engine hands it out
    (`engine.trained(net, optim)`): the checkpoint keeps it, the objective calls its backward and step.
    teacher: frozen, for those who watch."""

    trained: Mapping[str, object] = {}
    teacher: nn.Module | None = None

    def __call__(self, point: path.Point, batch: Latents, step: int,
                 rng: torch.Generator) -> tuple[Tensor, Log]:
        """(the student's loss, what to log), once a pass; random draws beyond the point come from rng."""
        raise NotImplementedError

    def after_step(self) -> list[Log]:
        """What follows once the student has moved: a step of the other nets.  A log for each pass of it."""
        return []


@dataclass(frozen=True)
class Jump:
    """One evaluation of the student, v = F_theta(x_t, t) with its graph, and the loss of it."""

    x_t: Tensor
    t: Tensor
    v: Tensor
    loss: Tensor
    log: Log

    @property
    def x0(self) -> Tensor:
        """x0-hat = x_t - t v."""
        return self.x_t - path.over(self.t, self.v) * self.v


class Consistency(Objective):
    """An objective whose student jumps to x0, which an adversary may judge."""

    def jump(self, point: path.Point, batch: Latents, step: int) -> Jump:
        raise NotImplementedError

    def __call__(self, point, batch, step, rng):
        jump = self.jump(point, batch, step)
        return jump.loss, jump.log
