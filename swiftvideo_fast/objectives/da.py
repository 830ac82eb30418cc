"""Distribution alignment (eq. 10): an adversary on real clips, on top of any consistency objective.

    x0-hat = x_t - t F(x_t, t)
    L_G = L_distill + lambda_adv E sum_k max(0, 1 - D_k(x0-hat))                                      (10a)
    L_D = E sum_k max(0, 1 - D_k(x0)) + max(0, 1 + D_k(x0-hat))                                       (10b)

The adversarial gradient at x0-hat is computed in the forward pass.  This frees the graph of decoder and
backbone before the student's backward, and gives both losses' gradients for `adaptive`.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from swiftvideo_fast import path
from swiftvideo_fast.adversary import discriminator
from swiftvideo_fast.adversary.backbones import features, load_backbone
from swiftvideo_fast.adversary.discriminator import CONDITION_TIMES, Critic, CriticInput, Logits
from swiftvideo_fast.adversary.views import View, draw_view
from swiftvideo_fast.config import Config, Optim
from swiftvideo_fast.config.strict import NATURAL, POSITIVE, Limit, option
from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.models.family import Codec
from swiftvideo_fast.objectives.base import (
    STUDENT,
    Consistency,
    Frozen,
    Jump,
    LogValues,
    Loss,
    Nets,
    Network,
    Objective,
    Setup,
    Trains,
)
from swiftvideo_fast.seeds import generator

CRITIC, BACKBONE = "critic", "backbone"
BETAS = (0.0, 0.99)         # the critic's AdamW, from StyleGAN-T
HELD_OUT = 32               # clips for measuring the critic's accuracy


@dataclass(frozen=True)
class Da:
    """Distribution alignment (eq. 10), on top of a consistency objective.

    weight: lambda_adv.  adaptive: weight is the target ratio of adversarial to distillation gradient norm.
    start: N_warmup, steps of distillation alone.  lead: steps before start in which the critic already
    trains.  lr: the critic's learning rate.  backbone: a DINOv2, by folder or hub name, or filters.  window:
    latent frames per critic input.  crop: side of the crop in pixels.  project: a learned projection of the
    latents replaces the decoder.  raw: real clips are source pixels, not decoded latents.  watch: steps
    between measurements of the critic's accuracy on held-out clips, 0 for none.
    """

    weight: float = option(NATURAL, 0.01)
    adaptive: bool = False
    start: int = option(NATURAL, 1000)
    lead: int = option(NATURAL, 0)
    lr: float = option(POSITIVE, 1e-6)
    backbone: str = "facebook/dinov2-small"
    window: int = option(POSITIVE, 2)
    crop: int = option(Limit(lambda x: x >= 16, "16 pixels or more"), 224)
    project: bool = False
    raw: bool = False
    watch: int = option(NATURAL, 0)


class DistributionAlignment(Objective):
    """Adds (10) to a consistency objective, `distillation`: a critic, its backbone, and its turn."""

    def __init__(self, cfg: Config, setup: Setup, distillation: Consistency):
        super().__init__(cfg, setup)
        self.options, self.distillation = cfg.da, distillation
        self.latent = setup.family.latent

    def networks(self) -> dict[str, Network]:
        critic = Trains(self.build_critic, Optim(self.options.lr, "constant", betas=BETAS, weight_decay=0.0,
                                                 clip=math.inf, max_skips=self.cfg.optim.max_skips))
        return self.distillation.networks() | {BACKBONE: Frozen(lambda: self.backbone), CRITIC: critic}

    @cached_property
    def backbone(self) -> nn.Module:
        return load_backbone(self.options.backbone)

    def build_critic(self) -> Critic:
        """Returns a critic initialised from the seed, hence equal on all ranks."""
        text_dim = self.setup.sizes().text_dim
        critic = Critic(self.backbone.widths, text_dim, self.latent if self.options.project else None)
        discriminator.initialise(critic, generator(self.cfg.run.seed, "judge"))
        return critic

    def turns(self, step: int) -> tuple[str, ...]:
        base = self.distillation.turns(step)
        early = step < self.options.start - self.options.lead
        return base if early or STUDENT not in base else (*base, CRITIC)

    def loss(self, turn, nets, batch, rng, step, carry=None) -> Loss:
        if turn == CRITIC:
            return self.critic_loss(nets, carry[1])
        if turn != STUDENT:
            return self.distillation.loss(turn, nets, batch, rng, step, carry and carry[0])
        return self.student_loss(nets, batch, rng, step)

    def student_loss(self, nets: Nets, batch: Batch, rng: torch.Generator, step: int) -> Loss:
        """(10a) from step `start` on, the distillation loss before.  Carries the distillation's carry and the
        critic's input."""
        o, jump = self.options, self.distillation.jump(nets, batch, rng, step)
        if CRITIC not in self.turns(step):
            return Loss(jump.loss, jump.log, (jump.carry, None))
        x0 = jump.x0.detach().requires_grad_(step >= o.start)
        seen = self.critic_input(nets, x0, batch, jump.t, rng, jump.real)
        loss, log = jump.loss, jump.log
        if step >= o.start:
            adversarial = hinge(self.logits(nets, seen)[1], 1)
            [g_adv] = torch.autograd.grad(adversarial, x0)
            weight, weights = self.weigh(jump, g_adv)
            loss = jump.loss + weight * WithGradient.apply(jump.x0, adversarial.detach(), g_adv)
            log = log | {"distillation": jump.loss.item(), "adversarial": adversarial.item()} | weights
        if o.watch and (step + 1) % o.watch == 0:           # the loop logs step + 1
            log = log | self.measure(nets)
        return Loss(loss, log, (jump.carry, seen.detached()))

    def critic_loss(self, nets: Nets, seen: CriticInput) -> Loss:
        """(10b), on the critic input of the student's turn."""
        real, fake = self.logits(nets, seen)
        nets[CRITIC].heads.eval()           # one power iteration per step, not per micro-batch
        shown = {f"logits/{name}": torch.cat([x.detach().flatten() for x in sum(logits.values(), [])])
                 for name, logits in (("real", real), ("fake", fake))}
        return Loss(hinge(real, 1) + hinge(fake, -1), accuracy("seen", real, fake) | shown)

    def critic_input(self, nets: Nets, x0: Tensor, batch: Batch, t: Tensor,
                     rng: torch.Generator, real: Tensor | None = None) -> CriticInput:
        """Returns x0 and the real clips (or latents `real`) through one window; gradients reach x0 alone."""
        o = self.options
        view = draw_view(len(x0), x0.shape[2], o.window, rng)
        with torch.no_grad():
            if real is None and o.raw:
                real = batch.real_pixels(self.latent.frames(view.start, o.window))
            else:
                real = self.window(batch.x0 if real is None else real, view)
        seen = CriticInput(real, self.window(x0, view), view, conditioning(t, batch.condition))
        if o.project:
            return seen
        return replace(seen, features=features(nets[BACKBONE], seen.shown(lambda x: x, o.crop)))

    def window(self, z: Tensor, view: View) -> Tensor:
        """Returns the view's frames of latents z, (B, C, T, H, W): decoded, or as latents with `project`."""
        count = self.options.window
        if self.options.project:
            return z[:, :, view.start:view.start + count]
        return self.codec.decode_window(z, view.start, count)

    @cached_property
    def codec(self) -> Codec:
        return self.setup.codec()

    def logits(self, nets: Nets, seen: CriticInput) -> tuple[Logits, Logits]:
        return nets[CRITIC](seen, nets[BACKBONE], self.options.crop)

    def weigh(self, jump: Jump, g_adv: Tensor) -> tuple[float, LogValues]:
        """Returns (lambda_adv, log).  Logs gradient norms at x0-hat and their ratio, averaged over clips."""
        [at_v] = torch.autograd.grad(jump.loss, jump.v, retain_graph=True)
        g_distill_B = at_v.flatten(1).norm(dim=1) / jump.t                  # dx0-hat = -t dv
        g_adv_B = g_adv.flatten(1).norm(dim=1)
        ratio, weight = (g_adv_B / g_distill_B.clamp(min=1e-12)).mean().item(), self.options.weight
        if self.options.adaptive:
            weight /= max(ratio, 1e-12)
        return weight, {"lambda": weight, "gradient/ratio": weight * ratio,
                        "gradient/distillation": g_distill_B.mean().item(),
                        "gradient/adversarial": g_adv_B.mean().item()}

    @cached_property
    def held_out(self) -> tuple[path.Point, Batch]:
        seed = self.cfg.run.seed
        clips = self.setup.clips().clips("valid", HELD_OUT, seed).to(self.setup.device)
        return path.draw(clips.x0, generator(seed, "watch"), self.cfg.times), clips

    @torch.no_grad()
    def measure(self, nets: Nets) -> LogValues:
        """Returns the critic's accuracy on held-out clips."""
        point, clips = self.held_out
        x0 = self.distillation.x0(nets[STUDENT], point.x_t, point.t, clips.condition)
        seen = self.critic_input(nets, x0, clips, point.t, torch.Generator().manual_seed(0))
        return accuracy("held out", *self.logits(nets, seen))


class WithGradient(torch.autograd.Function):
    """Returns `value`, with the precomputed `gradient` with respect to x."""

    @staticmethod
    def forward(ctx, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream * ctx.saved_tensors[0], None, None


def hinge(logits: Logits, sign: int) -> Tensor:
    """E sum_k max(0, 1 - sign D_k): mean over a head's logits, sum over heads."""
    return sum((1 - sign * D_k).relu().mean() for heads in logits.values() for D_k in heads)


def accuracy(where: str, real: Logits, fake: Logits) -> dict[str, float]:
    """Returns, per kind of head, the fraction of pairs whose real clip has the higher mean logit."""
    def mean_B(heads: list[Tensor]) -> Tensor:
        return sum(D_k.flatten(1).mean(1) for D_k in heads)

    return {f"{where}/{kind}": (mean_B(real[kind]) > mean_B(fake[kind])).float().mean().item()
            for kind in real}


def conditioning(t: Tensor, condition: Condition) -> Tensor:
    """Returns the critic's conditioning, (B, 8 + E): cos k pi t for k = 1 to 8, and the mean text token."""
    k = torch.arange(1, CONDITION_TIMES + 1, device=t.device)
    return torch.cat([(math.pi * t[:, None] * k).cos(), condition.text.mean(1, dtype=t.dtype)], 1)
