"""OSV, one-step video generation (Mao et al. 2024, arXiv 2409.11367), for flow models; the adversary is `da`.

    f(x, t) = x - t F(x, t),    huber(d) = sqrt(|d|^2 + c^2) - c,    t on a grid of N even times
    stage 1    L = huber(f_theta(x_t, t) - x0)                              + da.weight hinge;  real: x0
    stage 2    L = weight huber(f_theta(x_t, t) - f_theta-(x_s, s))         + da.weight hinge;  real: f_theta-
               x_s: after m Euler steps of the teacher on the grid, guided by u + w (c - u)

Implemented from the paper; there is no public code.  Its discriminator is da's with `project`: a learned
projection of the latents in place of the decoder, DINOv2, spatial and temporal heads.  As published:
da.weight 0.1, da.start 0, da.project true, stage 1 with adapters (`rank`: full tuning gave static videos),
stage 2 from stage 1's student.  Departures: stage 2's discriminator is initialised anew, not from stage 1;
u lacks the image, as published, or the text; time-travel sampling (one step only) is not implemented.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from swiftvideo_fast import path
from swiftvideo_fast.config.strict import NATURAL, POSITIVE, Limit, one_of, option
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.objectives.base import AVERAGE, STUDENT, TEACHER, Consistency, Jump, Nets, Network


@dataclass(frozen=True)
class Osv:
    """OSV's two stages, sampled with sample.sampler: consistency.

    stage: 1 or 2.  guidance: teacher's guidance scale.  without: condition dropped for the teacher's u, image
    or text.  m: Euler steps of the teacher.  grid: N, number of times.  weight: factor of the Huber loss in
    stage 2.  c: the Huber constant.  rank: LoRA rank on every linear layer; 0 trains all weights.
    """

    name: ClassVar[str] = "osv"
    stage: int = option(Limit(lambda x: x in (1, 2), "1 or 2"), 2)
    guidance: float = option(NATURAL, 3.0)
    without: str = option(one_of("image", "text"), "image")
    m: int = option(POSITIVE, 5)
    grid: int = option(POSITIVE, 100)
    weight: float = option(POSITIVE, 0.1)
    c: float = option(POSITIVE, 1e-3)
    rank: int = option(NATURAL, 0)


class OneStep(Consistency):
    """OSV: the student at t matches the clip (stage 1) or its EMA m grid steps nearer the data (stage 2)."""

    Options = Osv

    def networks(self) -> dict[str, Network]:
        both = super().networks()
        return both if self.options.stage == 2 else {r: net for r, net in both.items() if r != TEACHER}

    def jump(self, nets, batch, rng, step) -> Jump:
        x1 = path.draw_noise(batch.x0, rng)
        k = torch.randint(1, self.options.grid + 1, (len(batch),), generator=rng).to(batch.x0.device)
        return self.jump_from(path.interpolate(batch.x0, x1, k / self.options.grid), k, batch.x0, nets,
                              batch.condition)

    def jump_from(self, x_t: Tensor, k: Tensor, x0: Tensor, nets: Nets, condition: Condition) -> Jump:
        """x_t, x0: (B, C, T, H, W).  k: (B,) indices of grid times, t = k / N."""
        o, t = self.options, k / self.options.grid
        target = x0 if o.stage == 1 else self.target(x_t, k, nets, condition)
        v = self.velocity(nets[STUDENT], x_t, t, condition)
        d = x_t - path.over(t, x_t) * v - target
        loss = ((d.square().flatten(1).sum(1) + o.c**2).sqrt() - o.c).mean()
        if o.stage == 1:
            return Jump(x_t, t, v, loss, {})
        return Jump(x_t, t, v, o.weight * loss, {}, real=target)

    @torch.no_grad()
    def target(self, x: Tensor, k: Tensor, nets: Nets, condition: Condition) -> Tensor:
        """f_theta-(x_s, s).  A clip that reaches time 0 early stays there."""
        for _ in range(self.options.m):
            after = (k - 1).clamp_min(0)
            v = self.guided_teacher(nets, x, k / self.options.grid, condition)
            x, k = x - path.over((k - after) / self.options.grid, x) * v, after
        return self.x0(nets[AVERAGE], x, k / self.options.grid, condition)

    def guided_teacher(self, nets: Nets, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """u + w (c - u)."""
        w = self.options.guidance
        if self.options.without == "text":
            return self.velocity(nets[TEACHER], x_t, t, condition, w)
        image = None if condition.image is None else torch.zeros_like(condition.image)
        blind = replace(condition, frames=torch.zeros_like(condition.frames), image=image)
        c, u = (self.velocity(nets[TEACHER], x_t, t, given) for given in (condition, blind))
        return u + w * (c - u)
