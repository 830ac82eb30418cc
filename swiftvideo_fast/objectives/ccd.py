"""Continuous-time consistency distillation: Algorithm 1 of the paper."""

import torch
from torch import Tensor, nn

from swiftvideo_fast import jvp, ops, path
from swiftvideo_fast.config import Ccd
from swiftvideo_fast.data.latents import Latents
from swiftvideo_fast.models.conditioning import Condition, velocity
from swiftvideo_fast.objectives import Consistency, Jump


class ConsistencyDistillation(Consistency):
    """student: F_theta, trained.  average: F_theta-, its EMA.  teacher: F_pretrain, frozen."""

    def __init__(self, options: Ccd, student: nn.Module, average: nn.Module, teacher: nn.Module):
        self.options, self.student, self.average, self.teacher = options, student, average, teacher

    def jump(self, point: path.Point, batch: Latents, step: int) -> Jump:
        """Lines 5 to 9.  The loss is summed over a clip's elements, averaged over clips."""
        F, g, log = self.target(point, batch.condition, step)
        v = velocity(self.student, point.x_t, point.t, batch.condition)
        return Jump(point.x_t, point.t, v, ops.ccd_loss(v, F, g).mean(), log)

    @torch.no_grad()
    def target(self, point: path.Point, condition: Condition, step: int) -> tuple[Tensor, Tensor, dict]:
        """(F-, g, what to log): the EMA's velocity and the normalised tangent, both under stop-gradient."""
        o = self.options
        dx_dt = velocity(self.teacher, point.x_t, point.t, condition, o.guidance)
        F, dF_dt = jvp(lambda x, t: velocity(self.average, x, t, condition),
                       (point.x_t, point.t), (dx_dt, torch.ones_like(point.t)))
        r = warmup(step, o.warmup, o.r_max)
        g, size = ops.ccd_gradient(dx_dt, F, dF_dt, point.t, r, norm=o.norm, c=o.c)
        log = {"tangent": size.mean().item(), "dF_dt": dF_dt.square().mean().sqrt().item(), "r": r}
        return F, g, log


def warmup(step: int, H: int, r_max: float = 1.0) -> float:
    """r = min(r_max, step / H): how much of the tangent's second half is in (eq. 9)."""
    return min(r_max, step / H) if H else r_max
