"""Discrete-time consistency distillation (eq. 3), the baseline that CCD is compared with (Table 2a)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from swiftvideo_fast import path
from swiftvideo_fast.config.strict import NATURAL, POSITIVE, option
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.objectives.base import AVERAGE, STUDENT, TEACHER, Consistency, Jump, Nets


@dataclass(frozen=True)
class Dcd:
    """Discrete-time consistency distillation (eq. 3).

    guidance: teacher's guidance scale.  grid: number of grid times; the teacher takes one Euler step between.
    """

    name: ClassVar[str] = "dcd"
    guidance: float = option(NATURAL, 3.0)
    grid: int = option(POSITIVE, 50)


class DiscreteDistillation(Consistency):
    """DCD: the student at t matches its EMA one grid step closer to the data; the teacher takes that step."""

    Options = Dcd

    def jump(self, nets, batch, rng, step) -> Jump:
        x1 = path.draw_noise(batch.x0, rng)
        t = self.on_grid(path.draw_times(batch.x0, rng, self.cfg.times))
        return self.jump_from(path.interpolate(batch.x0, x1, t), t, nets, batch.condition)

    def on_grid(self, t: Tensor) -> Tensor:
        """Returns t, (B,), rounded up to a multiple of 1 / grid."""
        grid = self.options.grid
        return ((t * grid).ceil() / grid).clamp(1 / grid, 1)

    def jump_from(self, x_t: Tensor, t: Tensor, nets: Nets, condition: Condition) -> Jump:
        """|| f_theta(x_t, t) - f_theta-(x_s, s) ||^2 with t on the grid, s = t - 1 / grid."""
        target = self.target(x_t, t, nets, condition)
        v = self.velocity(nets[STUDENT], x_t, t, condition)
        return Jump(x_t, t, v, (x_t - path.over(t, x_t) * v - target).square().mean(), {})

    @torch.no_grad()
    def target(self, x_t: Tensor, t: Tensor, nets: Nets, condition: Condition) -> Tensor:
        """f_theta-(x_s, s)."""
        s = t - 1 / self.options.grid
        v = self.velocity(nets[TEACHER], x_t, t, condition, self.options.guidance)
        x_s = x_t - path.over(t - s, x_t) * v
        return x_s - path.over(s, x_t) * self.velocity(nets[AVERAGE], x_s, s, condition)
