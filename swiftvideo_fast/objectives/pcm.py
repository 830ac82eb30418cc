"""Phased consistency models (Wang et al. 2024, arXiv 2405.18407), for flow models.

    T_0 = 0 < ... < T_N = 1: path.ladder(N, sample.shift), P phases of N / P steps,  t = T_k,  s = T_{k - 1}
    e: the start of the phase that t is in, e <= s; E: its end      phi(x, t) = x - (t - e) F(x, t)
    x_s  = x_t - (t - s) v(x_t, t)                          the teacher's step, guided by u + w (c - u)
    fake = phi_theta(x_t, t),  real = sg(phi_theta(x_s, s))
    L    = mean huber(fake - real) + weight mean_k max(0, 1 - D_k(y(fake)))                           (1)
    L_D  = mean_k max(0, 1 - D_k(y(real))) + max(0, 1 + D_k(y(fake)))                                 (2)
    y(x) = ((1 - q) x + (q - e) n) / (1 - e),    q ~ U(e, E), n ~ N(0, I), the same for both

D_k reads block k of the frozen teacher at (y, q); the last reads its velocity.  As in
`code/text_to_image_sd3` of G-U-N/Phased-Consistency-Model: the student itself gives the target; the average
is used for sampling only.  Sampled by Euler in P steps, without noise or guidance.  Departures: the lowest
edge is 0, not the smallest sigma; phases have equal lengths, without rounding; w = 3 of its c + w (c - u) is
4 here; critic and student are updated in every step, not in alternation.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from swiftvideo_fast import path
from swiftvideo_fast.adversary.latent import LatentCritic, hinge, initialise
from swiftvideo_fast.config.strict import NATURAL, POSITIVE, one_of, option, want
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.objectives.base import (
    STUDENT,
    TEACHER,
    Frozen,
    Loss,
    Nets,
    Network,
    Objective,
    Trains,
    huber,
)
from swiftvideo_fast.objectives.da import CRITIC, WithGradient
from swiftvideo_fast.seeds import generator


@dataclass(frozen=True)
class Pcm:
    """Phased consistency models, sampled by Euler in as many steps as phases.

    guidance: teacher's guidance scale.  phases: P.  grid: N times, a multiple of phases.  distance: huber or
    l2, mean over elements.  c: the Huber constant.  weight: factor of the adversarial loss, 0 for none.
    critic_lr: the critic's learning rate.
    """

    name: ClassVar[str] = "pcm"
    guidance: float = option(NATURAL, 3.0)
    phases: int = option(POSITIVE, 4)
    grid: int = option(POSITIVE, 100)
    distance: str = option(one_of("huber", "l2"), "huber")
    c: float = option(POSITIVE, 1e-3)
    weight: float = option(NATURAL, 0.1)
    critic_lr: float = option(POSITIVE, 1e-5)


class PhasedConsistency(Objective):
    """PCM: the student at t matches itself one grid step closer to the start of the phase."""

    Options = Pcm

    def __init__(self, cfg, setup):
        super().__init__(cfg, setup)
        o = self.options
        want(o.grid % o.phases == 0, "objective.grid", o.grid, f"a multiple of objective.phases, {o.phases}")
        want(not o.weight or hasattr(setup.family, "features"), "objective.weight", o.weight,
             f"0: the family {setup.family.name} has no features for a critic")

    def networks(self) -> dict[str, Network]:
        nets = super().networks() | {TEACHER: Frozen(self.build_teacher)}
        if self.options.weight:
            nets[CRITIC] = Trains(self.build_critic, replace(self.cfg.optim, lr=self.options.critic_lr))
        return nets

    def build_teacher(self) -> nn.Module:
        """Returns the teacher, with recomputation as configured: the adversary's graph includes it."""
        net = self.setup.teacher()
        net.recompute = self.cfg.model.recompute
        return net

    def build_critic(self) -> LatentCritic:
        critic = LatentCritic(self.setup.family.widths(self.setup.sizes()))
        initialise(critic, generator(self.cfg.run.seed, "critic"))
        return critic

    def turns(self, step: int) -> tuple[str, ...]:
        return (STUDENT, CRITIC) if self.options.weight else (STUDENT,)

    def loss(self, turn, nets, batch, rng, step, carry=None) -> Loss:
        if turn == CRITIC:
            return self.critic_loss(nets, *carry, batch.condition)
        x1 = path.draw_noise(batch.x0, rng)
        k = torch.randint(1, self.options.grid + 1, (len(batch),), generator=rng)
        times = [x.to(batch.x0.device) for x in self.times(k)]
        return self.loss_from(path.interpolate(batch.x0, x1, times[0]), *times, nets, batch.condition, rng)

    def times(self, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns (t, s, e, E) for t = T_k, (B,) each."""
        o = self.options
        T = torch.tensor(path.ladder(o.grid, self.cfg.sample.shift)).flip(0)
        length = o.grid // o.phases
        phase = (k - 1) // length
        return T[k], T[k - 1], T[phase * length], T[(phase + 1) * length]

    def loss_from(self, x_t: Tensor, t: Tensor, s: Tensor, e: Tensor, E: Tensor, nets: Nets,
                  condition: Condition, rng: torch.Generator) -> Loss:
        """(1).  Carries y(fake), y(real) and q to the critic's turn."""
        o = self.options
        with torch.no_grad():
            x_s = x_t - path.over(t - s, x_t) * self.velocity(nets[TEACHER], x_t, t, condition, o.guidance)
            real = self.to_edge(nets, x_s, s, e, condition)
        fake = self.to_edge(nets, x_t, t, e, condition)
        d = fake - real
        loss = (d.square() if o.distance == "l2" else huber(d, o.c)).mean()
        if not o.weight:
            return Loss(loss, {})
        noise, share = path.draw_noise(x_t, rng), torch.rand(len(t), generator=rng).to(t)
        q = e + share * (E - e)

        def y(x: Tensor) -> Tensor:
            return (path.over(1 - q, x) * x + path.over(q - e, x) * noise) / path.over(1 - e, x)

        leaf = fake.detach().requires_grad_()
        seen = y(leaf)
        adversarial = hinge(nets[CRITIC](self.setup.family.features(nets[TEACHER], seen, q, condition)), 1)
        [g_adv] = torch.autograd.grad(adversarial, leaf)        # frees the teacher's graph early
        total = loss + o.weight * WithGradient.apply(fake, adversarial.detach(), g_adv)
        log = {"distillation": loss.item(), "adversarial": adversarial.item()}
        return Loss(total, log, (seen.detach(), y(real), q))

    def critic_loss(self, nets: Nets, fake: Tensor, real: Tensor, q: Tensor, condition: Condition) -> Loss:
        """(2)."""
        twice = torch.arange(len(q)).repeat(2)
        with torch.no_grad():
            features = self.setup.family.features(nets[TEACHER], torch.cat([real, fake]), q[twice],
                                                  condition[twice])
        on_real, on_fake = zip(*(D_k.chunk(2) for D_k in nets[CRITIC](features)), strict=True)
        return Loss(hinge(on_real, 1) + hinge(on_fake, -1), {})

    def to_edge(self, nets: Nets, x: Tensor, t: Tensor, e: Tensor, condition: Condition) -> Tensor:
        """phi(x, t) of the student."""
        return x - path.over(t - e, x) * self.velocity(nets[STUDENT], x, t, condition)
