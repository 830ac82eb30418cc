"""Improved distribution matching distillation (Yin et al. 2024, arXiv 2405.14867), for flow models.

    x0    = x_t - t F_theta(x_t, t)                  at a time t of the ladder that the student is sampled on
    g     = (p_real - p_fake) / mean |p_real|,       p = x0 - (x_tau - tau F(x_tau, tau)),  a clip at a time
    L     = 1/2 mean (x0 - sg(x0 - g))^2             p_real: the teacher's, guided by u + w (c - u);       (1)
    L_fake = mean ((x1 - x0) - F_fake(x_tau, tau))^2             p_fake: the fake score's                  (2)

As in `main/sd_guidance.py` and `sd_unified_model.py` of tianweiy/DMD2.  With `simulate`, x_t is sampled by
the student without grad, down the ladder to a time drawn for all ranks; else it is a noised real clip, as in
the Wan port of NVlabs/FastGen.  The fake score is updated in every step, the student in every `every`-th;
with `exclusive` that step updates the student alone, as in FastGen.

Departures: scores are velocities, so that p_real - p_fake = tau (F_real - F_fake), and (2) is flow matching;
the classifier on the fake score's features is the critic of a `da` section on top; the ladder is
path.ladder(steps, sample.shift): shift 5 gives FastGen's .937, .833, .624.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from swiftvideo_fast import path, sampler
from swiftvideo_fast.config.strict import NATURAL, POSITIVE, Limit, option
from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.objectives.base import STUDENT, TEACHER, Consistency, Jump, Loss, Nets, Network, Trains
from swiftvideo_fast.seeds import generator

FAKE = "fake"


@dataclass(frozen=True)
class Dmd2:
    """Distribution matching with a fake score, sampled with sample.sampler: consistency.

    guidance: teacher's guidance scale.  steps: of the ladder, shifted by sample.shift.  every: steps per
    student update.  exclusive: a student update skips the fake score's.  simulate: the student's input is its
    own sample, not a noised clip.  times: range of tau, uniform.  shift: time shift of tau.  fake_lr: the
    fake score's learning rate.
    """

    name: ClassVar[str] = "dmd2"
    guidance: float = option(NATURAL, 3.0)
    steps: int = option(POSITIVE, 4)
    every: int = option(POSITIVE, 5)
    exclusive: bool = False
    simulate: bool = True
    times: tuple[float, float] = option(
        Limit(lambda pair: 0 < pair[0] < pair[1] <= 1, "two rising times in (0, 1]"), (0.02, 0.98))
    shift: float = option(POSITIVE, 1.0)
    fake_lr: float = option(POSITIVE, 4e-7)


class DistributionMatching(Consistency):
    """DMD2.  student: trained by (1).  fake: score of its samples, starts as the teacher, trained by (2)."""

    Options = Dmd2

    def networks(self) -> dict[str, Network]:
        optim = replace(self.cfg.optim, lr=self.options.fake_lr)
        return super().networks() | {FAKE: Trains(self.build_fake, optim)}

    def build_fake(self) -> nn.Module:
        net = self.setup.teacher()
        net.recompute = self.cfg.model.recompute
        return net

    def turns(self, step: int) -> tuple[str, ...]:
        if step % self.options.every:
            return (FAKE,)
        return (STUDENT,) if self.options.exclusive else (STUDENT, FAKE)

    def loss(self, turn, nets, batch, rng, step, carry=None) -> Loss:
        if turn == STUDENT:
            return super().loss(turn, nets, batch, rng, step, carry)
        return self.fake_loss(nets, self.sampled(nets, batch, rng, step) if carry is None else carry,
                              batch.condition, rng)

    def jump(self, nets, batch, rng, step) -> Jump:
        """(1).  Carries the sample x0 to the fake score's turn."""
        x_t, t = self.student_input(nets, batch, rng, step)
        v = self.velocity(nets[STUDENT], x_t, t, batch.condition)
        x0 = x_t - path.over(t, x_t) * v
        g = self.gradient(nets, x0.detach(), batch.condition, rng)
        loss = 0.5 * (x0 - (x0 - g).detach()).square().mean()
        return Jump(x_t, t, v, loss, {"gradient": g.square().mean().sqrt().item()}, x0.detach())

    @torch.no_grad()
    def sampled(self, nets: Nets, batch: Batch, rng: torch.Generator, step: int) -> Tensor:
        return self.x0(nets[STUDENT], *self.student_input(nets, batch, rng, step), batch.condition)

    def student_input(self, nets: Nets, batch: Batch, rng: torch.Generator,
                      step: int) -> tuple[Tensor, Tensor]:
        """Returns (x_t, t).  t is drawn per step: the ranks of a sharded network must make equal calls."""
        times = path.ladder(self.options.steps, self.cfg.sample.shift)[:-1]
        rung = int(torch.randint(len(times), (), generator=generator(self.cfg.run.seed, "rung", step)))
        x1 = path.draw_noise(batch.x0, rng)
        t = x1.new_full((len(x1),), times[rung])
        if not self.options.simulate:
            return path.interpolate(batch.x0, x1, t), t

        def v(x_t: Tensor, t: Tensor) -> Tensor:
            return self.velocity(nets[STUDENT], x_t, t, batch.condition)

        return sampler.consistency(v, x1, times[:rung + 1], rng), t

    @torch.no_grad()
    def gradient(self, nets: Nets, x0: Tensor, condition: Condition, rng: torch.Generator) -> Tensor:
        """g, (B, C, T, H, W); 0 where the normaliser is 0."""
        x1, tau = path.draw_noise(x0, rng), self.draw_tau(x0, rng)
        x_tau, scale = path.interpolate(x0, x1, tau), path.over(tau, x0)
        real = self.velocity(nets[TEACHER], x_tau, tau, condition, self.options.guidance)
        fake = self.velocity(nets[FAKE], x_tau, tau, condition)
        p_real = x0 - (x_tau - scale * real)
        width = p_real.abs().flatten(1).mean(1)
        return (scale * (real - fake) / path.over(width, x0)).nan_to_num()

    def fake_loss(self, nets: Nets, x0: Tensor, condition: Condition, rng: torch.Generator) -> Loss:
        """(2)."""
        x1, tau = path.draw_noise(x0, rng), self.draw_tau(x0, rng)
        v = self.velocity(nets[FAKE], path.interpolate(x0, x1, tau), tau, condition)
        return Loss((x1 - x0 - v).square().mean(), {})

    def draw_tau(self, x0: Tensor, rng: torch.Generator) -> Tensor:
        """Returns tau, (B,), uniform in `times`, then shifted."""
        (low, high), s = self.options.times, self.options.shift
        tau = low + (high - low) * torch.rand(len(x0), generator=rng)
        return (s * tau / (1 + (s - 1) * tau)).to(x0.device)
