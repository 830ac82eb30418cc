"""Continuous-time consistency distillation: Algorithm 1 of the paper."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from swiftvideo_fast import jvp, ops, path
from swiftvideo_fast.config.strict import NATURAL, POSITIVE, SHARE, one_of, option
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.objectives.base import AVERAGE, STUDENT, TEACHER, Consistency, Jump, LogValues, Nets


@dataclass(frozen=True)
class Ccd:
    """Continuous-time consistency distillation (Algorithm 1).

    guidance: teacher's guidance scale w in u + w (c - u).  warmup: H, steps until r reaches r_max.  norm:
    tangent normalisation, l2 (the paper), rms or clip.  c: the norm's constant.  r_max: final r; below 1 the
    distillation stays partial, which suits Euler sampling.
    """

    name: ClassVar[str] = "ccd"
    guidance: float = option(NATURAL, 3.0)
    warmup: int = option(NATURAL, 1000)
    norm: str = option(one_of("l2", "rms", "clip"), "l2")
    c: float = option(POSITIVE, 0.1)
    r_max: float = option(SHARE, 1.0)


class ConsistencyDistillation(Consistency):
    """CCD.  student: F_theta, trained.  average: F_theta-, its EMA.  teacher: F_pretrain, frozen."""

    Options = Ccd

    def jump(self, nets, batch, rng, step) -> Jump:
        return self.jump_from(path.draw(batch.x0, rng, self.cfg.times), nets, batch.condition, step)

    def jump_from(self, point: path.Point, nets: Nets, condition: Condition, step: int) -> Jump:
        """Lines 5 to 9 of Algorithm 1.  The loss is summed over a clip's elements and averaged over clips."""
        F, g, log = self.target(point, nets, condition, step)
        v = self.velocity(nets[STUDENT], point.x_t, point.t, condition)
        return Jump(point.x_t, point.t, v, ops.ccd_loss(v, F, g).mean(), log)

    @torch.no_grad()
    def target(self, point: path.Point, nets: Nets, condition: Condition,
               step: int) -> tuple[Tensor, Tensor, LogValues]:
        """Returns (F-, g, log): the EMA's velocity and the normalised tangent, both without gradient."""
        o = self.options
        dx_dt = self.velocity(nets[TEACHER], point.x_t, point.t, condition, o.guidance)
        F, dF_dt = jvp(lambda x, t: self.velocity(nets[AVERAGE], x, t, condition),
                       (point.x_t, point.t), (dx_dt, torch.ones_like(point.t)))
        r = warmup(step, o.warmup, o.r_max)
        g, size = ops.ccd_gradient(dx_dt, F, dF_dt, point.t, r, norm=o.norm, c=o.c)
        log = {"tangent": size.mean().item(), "dF_dt": dF_dt.square().mean().sqrt().item(), "r": r}
        return F, g, log


def warmup(step: int, H: int, r_max: float = 1.0) -> float:
    """r = min(r_max, step / H), the weight of the tangent's second term (eq. 9)."""
    return min(r_max, step / H) if H else r_max
