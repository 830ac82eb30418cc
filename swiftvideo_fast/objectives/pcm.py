"""Phased consistency models (Wang et al. 2024, arXiv 2405.18407), for flow models; without their adversary.

    T_0 = 0 < ... < T_N = 1: path.ladder(N, sample.shift), P phases of N / P steps,  t = T_k,  s = T_{k - 1}
    e: the start of the phase that t is in, e <= s         phi(x, t) = x - (t - e) F(x, t)
    x_s  = x_t - (t - s) v(x_t, t)                          the teacher's step, guided by u + w (c - u)
    loss = mean huber(phi_theta(x_t, t) - sg(phi_theta(x_s, s)))

As in `code/text_to_image_sd3` of G-U-N/Phased-Consistency-Model: the target by the student itself, not by
an average, which is kept for sampling alone.  Sampled by Euler in P steps, without noise or guidance.
Departures: its lowest edge is its smallest sigma, here 0; phases are of one length, where it rounds; its
w = 3 of c + w (c - u) is 4 here; the adversary on the teacher's features is left out.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from swiftvideo_fast import path
from swiftvideo_fast.config.strict import POSITIVE, one_of, option, want
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.objectives.base import STUDENT, TEACHER, Frozen, Loss, Nets, Objective, huber


@dataclass(frozen=True)
class Pcm:
    """Phased consistency models, sampled by Euler in as many steps as phases.

    guidance: of the teacher.  phases: P.  grid: N, a multiple.  distance: huber (with c) or l2, means over
    elements.
    """

    name: ClassVar[str] = "pcm"
    guidance: float = 3.0
    phases: int = option(POSITIVE, 4)
    grid: int = option(POSITIVE, 100)
    distance: str = option(one_of("huber", "l2"), "huber")
    c: float = option(POSITIVE, 1e-3)


class PhasedConsistency(Objective):
    """The student at t against itself one grid step nearer the start of the phase."""

    Options = Pcm

    def __init__(self, cfg, setup):
        super().__init__(cfg, setup)
        o = self.options
        want(o.grid % o.phases == 0, "objective.grid", o.grid, f"a multiple of objective.phases, {o.phases}")

    def networks(self):
        return super().networks() | {TEACHER: Frozen(self.setup.teacher)}

    def loss(self, turn, nets, batch, rng, step, handed=None):
        x1 = path.draw_noise(batch.x0, rng)
        k = torch.randint(1, self.options.grid + 1, (len(batch),), generator=rng)
        t, s, e = (x.to(batch.x0.device) for x in self.times(k))
        return self.loss_from(path.interpolate(batch.x0, x1, t), t, s, e, nets, batch.condition)

    def times(self, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(T_k, T_{k - 1}, the start of T_k's phase)."""
        o = self.options
        T = torch.tensor(path.ladder(o.grid, self.cfg.sample.shift)).flip(0)
        length = o.grid // o.phases
        return T[k], T[k - 1], T[(k - 1) // length * length]

    def loss_from(self, x_t: Tensor, t: Tensor, s: Tensor, e: Tensor, nets: Nets,
                  condition: Condition) -> Loss:
        with torch.no_grad():
            v = self.velocity(nets[TEACHER], x_t, t, condition, self.options.guidance)
            x_s = x_t - path.over(t - s, x_t) * v
            target = self.to_edge(nets, x_s, s, e, condition)
        d = self.to_edge(nets, x_t, t, e, condition) - target
        return Loss((d.square() if self.options.distance == "l2" else huber(d, self.options.c)).mean(), {})

    def to_edge(self, nets: Nets, x: Tensor, t: Tensor, e: Tensor, condition: Condition) -> Tensor:
        """phi."""
        return x - path.over(t - e, x) * self.velocity(nets[STUDENT], x, t, condition)
