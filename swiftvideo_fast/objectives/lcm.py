"""Latent consistency models (Luo et al. 2023, arXiv 2310.04378; eq. 15 and 16), for flow models.

    t on a grid of N even times, s = t - 1 / N,  w ~ U(guidance - spread, guidance + spread) a clip
    x_s = x_t - (t - s) v(x_t, t; w)                  the teacher's step, guided by u + w (c - u)
    loss = d(f_theta(x_t, t), f_theta-(x_s, s)),      f(x, t) = x - t F(x, t)

As in `train_lcm_distill_sd_wds.py` of luosiallen/latent-consistency-model: N = 50 solver times, uniformly
drawn, and the EMA as target.  Departures: an Euler step in place of DDIM; f without c_skip and c_out, because
a flow model satisfies the boundary condition; w is its w plus one, and its range is 5 to 15; the student is
not conditioned on w, as in its LoRA variant (which has no EMA target).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from swiftvideo_fast import path
from swiftvideo_fast.config.strict import NATURAL, POSITIVE, one_of, option
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.objectives.base import AVERAGE, STUDENT, TEACHER, Consistency, Jump, Nets, huber


@dataclass(frozen=True)
class Lcm:
    """Latent consistency models, sampled with sample.sampler: consistency.

    guidance, spread: teacher's guidance scale, uniform in guidance - spread to guidance + spread.  grid: N,
    number of times.  distance: huber or l2, mean over elements.  c: the Huber constant.
    """

    name: ClassVar[str] = "lcm"
    guidance: float = option(NATURAL, 3.0)
    spread: float = option(NATURAL, 1.0)
    grid: int = option(POSITIVE, 50)
    distance: str = option(one_of("huber", "l2"), "huber")
    c: float = option(POSITIVE, 1e-3)


class LatentConsistency(Consistency):
    """LCM: the student at t matches its EMA one grid step closer to the data; the teacher takes that step."""

    Options = Lcm

    def jump(self, nets, batch, rng, step) -> Jump:
        x1, (t, w) = path.draw_noise(batch.x0, rng), self.draw(len(batch), rng)
        t, w = t.to(batch.x0.device), w.to(batch.x0.device)
        return self.jump_from(path.interpolate(batch.x0, x1, t), t, w, nets, batch.condition)

    def draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns times t and guidance scales w, (B,) each."""
        o = self.options
        t = torch.randint(1, o.grid + 1, (count,), generator=rng) / o.grid
        return t, o.guidance + o.spread * (2 * torch.rand(count, generator=rng) - 1)

    def jump_from(self, x_t: Tensor, t: Tensor, w: Tensor, nets: Nets, condition: Condition) -> Jump:
        target = self.target(x_t, t, w, nets, condition)
        v = self.velocity(nets[STUDENT], x_t, t, condition)
        d = x_t - path.over(t, x_t) * v - target
        loss = d.square() if self.options.distance == "l2" else huber(d, self.options.c)
        return Jump(x_t, t, v, loss.mean(), {})

    @torch.no_grad()
    def target(self, x_t: Tensor, t: Tensor, w: Tensor, nets: Nets, condition: Condition) -> Tensor:
        """f_theta-(x_s, s)."""
        s = t - 1 / self.options.grid
        x_s = x_t - path.over(t - s, x_t) * self.velocity(nets[TEACHER], x_t, t, condition, w)
        return self.x0(nets[AVERAGE], x_s, s, condition)
