"""Discrete-time consistency distillation (eq. 3): the twin that CCD is compared with (Table 2a)."""

import torch
from torch import Tensor, nn

from swiftvideo_fast import path
from swiftvideo_fast.config import Dcd
from swiftvideo_fast.data.latents import Latents
from swiftvideo_fast.models.conditioning import Condition, velocity
from swiftvideo_fast.objectives import Consistency, Jump


class DiscreteDistillation(Consistency):
    """The student at t against its EMA one grid step nearer the data, that step taken by the teacher."""

    def __init__(self, options: Dcd, student: nn.Module, average: nn.Module, teacher: nn.Module):
        self.options, self.student, self.average, self.teacher = options, student, average, teacher

    def jump(self, point: path.Point, batch: Latents, step: int) -> Jump:
        """|| f_theta(x_t, t) - f_theta-(x_s, s) ||^2 with t on the grid, s = t - 1 / grid."""
        target, x_t, t = self.target(point, batch.condition)
        v = velocity(self.student, x_t, t, batch.condition)
        return Jump(x_t, t, v, (x_t - path.over(t, x_t) * v - target).square().mean(), {})

    @torch.no_grad()
    def target(self, point: path.Point, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """(f_theta-(x_s, s), x_t, t), the drawn times rounded up to the grid."""
        grid = self.options.grid
        t = ((point.t * grid).ceil() / grid).clamp(1 / grid, 1)
        s = t - 1 / grid
        x_t = path.interpolate(point.x0, point.x1, t)
        v = velocity(self.teacher, x_t, t, condition, self.options.guidance)
        x_s = x_t - path.over(t - s, x_t) * v
        return x_s - path.over(s, x_t) * velocity(self.average, x_s, s, condition), x_t, t
