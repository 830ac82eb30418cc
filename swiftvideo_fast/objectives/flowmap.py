"""The two-time flow map: jumps from any t to any s along the teacher's flow, for any number of steps.

    x_s = x_t - (t - s) u(x_t, t, s)
is constant along the flow dx/dt = v, so its total derivative in t at fixed s is zero:
    v - u - (t - s) du/dt = 0,        du/dt = du/dx v + du/dt|x                                        (1)

(1) is CCD's condition with t - s in place of t, trained by eq. 7 to 9 of the paper with their normalisation
and warm-up.  s = 0 gives CCD, s = t flow matching towards v.  u is initialised from the teacher, which is
the map at s = t.  (1) is AYF's Eulerian map distillation (arXiv 2506.14603).  AnyFlow (2605.13724) takes
du/dt by central differences (`finite`).  MeanFlow (2505.13447; the paper's supplement, eq. 12 and 13) takes
the data's velocity x1 - x0 for v, whose mean is the flow's.  At its optimum only the mean of the normalised g
vanishes, not g: the map is the flow's up to the weights of the normalisation.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from swiftvideo_fast import jvp, ops, path
from swiftvideo_fast.config.strict import NATURAL, POSITIVE, SHARE, Limit, one_of, option
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.objectives.base import (
    AVERAGE,
    STUDENT,
    TEACHER,
    Consistency,
    Jump,
    LogValues,
    Nets,
    Network,
    Objective,
)
from swiftvideo_fast.objectives.ccd import warmup

STEP = 5e-3         # half-width of the central difference, as AnyFlow


@dataclass(frozen=True)
class FlowMap:
    """The two-time flow map along the teacher's flow.

    guidance, warmup, norm, c, r_max: as in ccd.  shares: fractions of pairs with s = t and with s = 0; else s
    is uniform in (0, t).  velocity: teacher, or data: x1 - x0 (MeanFlow), without guidance.  derivative:
    exact (jvp), or finite (central differences), the control.
    """

    name: ClassVar[str] = "flowmap"
    guidance: float = option(NATURAL, 3.0)
    warmup: int = option(NATURAL, 1000)
    norm: str = option(one_of("l2", "rms", "clip"), "l2")
    c: float = option(POSITIVE, 0.1)
    r_max: float = option(SHARE, 1.0)
    shares: tuple[float, float] = option(
        Limit(lambda pair: min(pair) >= 0 and sum(pair) <= 1, "two shares, at most 1 together"), (0.5, 0.25))
    velocity: str = option(one_of("teacher", "data"), "teacher")
    derivative: str = option(one_of("exact", "finite"), "exact")


class FlowMapDistillation(Consistency):
    """Flow map.  student: u_theta, trained.  average: its EMA.  teacher: v, frozen; absent if v is data's."""

    Options = FlowMap
    second_time = True

    def networks(self) -> dict[str, Network]:
        return super().networks() if self.options.velocity == "teacher" else Objective.networks(self)

    def jump(self, nets, batch, rng, step) -> Jump:
        point = path.draw(batch.x0, rng, self.cfg.times)
        return self.jump_from(point, self.draw_s(point.t, rng), nets, batch.condition, step)

    def draw_s(self, t: Tensor, rng: torch.Generator) -> Tensor:
        """Returns s, (B,): t, 0 or uniform in (0, t), by `shares`."""
        still, whole = self.options.shares
        kind, between = torch.rand(2, len(t), generator=rng).to(t)
        return torch.where(kind < still, t, torch.where(kind < still + whole, 0, between * t))

    def jump_from(self, point: path.Point, s: Tensor, nets: Nets, condition: Condition, step: int) -> Jump:
        """|| u_theta - (u- + g) ||^2, summed over a clip's elements, averaged over pairs.

        DA needs predictions of x0: with it, each clip has a second pair, (t, 0), in the same forward.
        """
        pairs = 2 if self.cfg.da else 1
        if self.cfg.da:
            twice = torch.arange(len(s)).repeat(2)
            point = path.Point(*(x[twice] for x in (point.x0, point.x1, point.t, point.x_t)))
            s, condition = torch.cat([s, torch.zeros_like(s)]), condition[twice]
        u, g, log = self.target(point, s, nets, condition, step)
        ours = self.velocity(nets[STUDENT], point.x_t, point.t, condition, s=s).chunk(pairs)
        losses = [ops.ccd_loss(*each) for each in zip(ours, u.chunk(pairs), g.chunk(pairs), strict=True)]
        x_t, t = point.x_t.chunk(pairs)[-1], point.t.chunk(pairs)[-1]
        return Jump(x_t, t, ours[-1], torch.cat(losses).mean(), log)

    @torch.no_grad()
    def target(self, point: path.Point, s: Tensor, nets: Nets, condition: Condition,
               step: int) -> tuple[Tensor, Tensor, LogValues]:
        """Returns (u-, g, log): the EMA's map and the normalised tangent, both without gradient."""
        o, x_t, t = self.options, point.x_t, point.t
        v = point.velocity
        if o.velocity == "teacher":
            v = self.velocity(nets[TEACHER], x_t, t, condition, o.guidance)

        def u(x_t: Tensor, t: Tensor) -> Tensor:
            return self.velocity(nets[AVERAGE], x_t, t, condition, s=s)

        derivative = total_derivative if o.derivative == "exact" else central_difference
        u_t, du_dt = derivative(u, x_t, t, v)
        r = warmup(step, o.warmup, o.r_max)
        g, size = ops.ccd_gradient(v, u_t, du_dt, t - s, r, norm=o.norm, c=o.c)
        return u_t, g, {"tangent": size.mean().item(), "du_dt": du_dt.square().mean().sqrt().item(), "r": r}

    def x0(self, net, x_t, t, condition) -> Tensor:
        u = self.velocity(net, x_t, t, condition, s=torch.zeros_like(t))
        return x_t - path.over(t, x_t) * u


def total_derivative(u, x_t: Tensor, t: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (u, du/dt) along (v, 1), by one forward-mode pass."""
    return jvp(u, (x_t, t), (v, torch.ones_like(t)))


def central_difference(u, x_t: Tensor, t: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (u, du/dt) from three evaluations.  Error of du/dt: O(STEP^2), plus rounding over 2 STEP.

    t - STEP may be below s, and t + STEP above 1; the network is evaluated there too.
    """
    late, early = (u(x_t + h * v, t + h) for h in (STEP, -STEP))
    return u(x_t, t), (late - early) / (2 * STEP)
