"""Distribution alignment (eq. 10): an adversary on real clips, on top of any consistency objective.

    x0-hat = x_t - t F(x_t, t)
    L_G = L_distill + lambda_adv E sum_k max(0, 1 - D_k(x0-hat))                                      (10a)
    L_D = E sum_k max(0, 1 - D_k(x0)) + max(0, 1 + D_k(x0-hat))                                       (10b)

The adversary's gradient at x0-hat is taken at once, in the forward: the graph of decoding and features dies
before the student's backward begins, and both losses' gradients are known there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from swiftvideo_fast import path
from swiftvideo_fast.config import Da
from swiftvideo_fast.data.latents import Latents
from swiftvideo_fast.models.augment import View, draw_view
from swiftvideo_fast.models.backbones import features
from swiftvideo_fast.models.conditioning import Condition, velocity
from swiftvideo_fast.models.discriminator import Discriminator, Projection
from swiftvideo_fast.objectives import Consistency, Jump, Log, Objective

TIMES = 8                   # cosines of t that the heads are told
BETAS = (0.0, 0.99)         # of the heads' AdamW: StyleGAN-T's
Logits = dict[str, list[Tensor]]        # kind of head -> level by level


@dataclass(frozen=True)
class Exhibit:
    """One window of real clips and of the student's beside them, seen alike.  c: what the heads are told.
    features: the backbone's of both, level by level; None where what it is shown is learned."""

    real: Tensor
    fake: Tensor
    view: View
    c: Tensor
    features: list[Tensor] | None = None

    def detached(self) -> "Exhibit":
        kept = self.features and [x.detach() for x in self.features]
        return replace(self, fake=self.fake.detach(), features=kept)

    def shown(self, picture: Callable, crop: int) -> Tensor:
        """(2 B, ...): the pixels of both in this view."""
        return torch.cat([self.view.of(picture(window), crop) for window in (self.real, self.fake)])


class Judge(nn.Module):
    """What the adversary trains: the heads, and the projection in place of a decoder."""

    def __init__(self, widths: list[int], text_dim: int, project: bool):
        super().__init__()
        self.heads = Discriminator(widths, TIMES + text_dim)
        self.picture = Projection() if project else nn.Identity()

    def forward(self, exhibit: Exhibit, backbone: nn.Module, crop: int) -> tuple[Logits, Logits]:
        """Of the real clips, of the student's."""
        seen = exhibit.features or features(backbone, exhibit.shown(self.picture, crop))
        both = self.heads(seen, torch.cat([exhibit.c] * 2))
        halves = {kind: [x.chunk(2) for x in heads] for kind, heads in both.items()}
        return tuple({kind: [half[i] for half in heads] for kind, heads in halves.items()} for i in (0, 1))


class DistributionAlignment(Objective):
    """(10) on top of `distillation`.  judge: a Judge as an engine hands it out.  codec: has decode_window, or
    is None where latents are projected.  held_out: clips that nothing trains on, to watch the heads by."""

    def __init__(self, options: Da, distillation: Consistency, judge, backbone: nn.Module, codec,
                 held_out: tuple[path.Point, Latents] | None = None):
        self.options, self.distillation, self.teacher = options, distillation, distillation.teacher
        self.backbone, self.codec, self.held_out = backbone, codec, held_out
        self.trained, self.judge = {"judge": judge}, judge.net
        self.exhibits: list[Exhibit] = []

    def __call__(self, point: path.Point, batch: Latents, step: int,
                 rng: torch.Generator) -> tuple[Tensor, Log]:
        """(10a), from step `start` on; before, the distillation alone, for the last `lead` steps judged."""
        o, jump = self.options, self.distillation.jump(point, batch, step)
        if step < o.start - o.lead:
            return jump.loss, jump.log
        self.judge.eval()
        x0 = jump.x0.detach().requires_grad_(step >= o.start)
        exhibit = self.exhibit(x0, batch, jump.t, rng)
        self.exhibits.append(exhibit.detached())
        loss, log = jump.loss, jump.log
        if step >= o.start:
            adversarial = hinge(self.logits(exhibit)[1], 1)
            [pull] = torch.autograd.grad(adversarial, x0)
            weight, seen = self.weigh(jump, pull)
            loss = jump.loss + weight * Known.apply(jump.x0, adversarial.detach(), pull)
            log = log | {"distillation": jump.loss.item(), "adversarial": adversarial.item()} | seen
        if self.held_out and (step + 1) % o.watch == 0:         # as the loop counts for its log
            log = log | self.watch()
        return loss, log

    def after_step(self) -> list[Log]:
        """A step of the heads down (10b), on what the student has just been judged by."""
        if not self.exhibits:
            return []
        self.judge.train()
        logs = []
        for exhibit in self.exhibits:
            real, fake = self.logits(exhibit)
            loss = hinge(real, 1) + hinge(fake, -1)
            self.trained["judge"].backward(loss)
            self.judge.heads.eval()         # one power iteration a step, however many passes it has here
            shown = {f"logits/{name}": torch.cat([x.detach().flatten() for x in sum(logits.values(), [])])
                     for name, logits in (("real", real), ("fake", fake))}
            logs.append({"discriminator": loss.item()} | accuracy("seen", real, fake) | shown)
        self.trained["judge"].step(self.options.lr)
        self.exhibits.clear()
        return logs

    def exhibit(self, x0: Tensor, batch: Latents, t: Tensor, rng: torch.Generator) -> Exhibit:
        """The student's x0 and the real clips through one window; only x0 with a graph."""
        o = self.options
        view = draw_view(len(x0), x0.shape[2], o.window, rng)
        with torch.no_grad():
            real = batch.filmed(view.start, o.window) if o.raw else self.window(batch.x0, view)
        exhibit = Exhibit(real, self.window(x0, view), view, told(t, batch.condition))
        if self.codec is None:
            return exhibit
        return replace(exhibit, features=features(self.backbone, exhibit.shown(lambda x: x, o.crop)))

    def window(self, z: Tensor, view: View) -> Tensor:
        count = self.options.window
        if self.codec is None:
            return z[:, :, view.start:view.start + count]
        return self.codec.decode_window(z, view.start, count)

    def logits(self, exhibit: Exhibit) -> tuple[Logits, Logits]:
        return self.judge(exhibit, self.backbone, self.options.crop)

    def weigh(self, jump: Jump, pull: Tensor) -> tuple[float, Log]:
        """(lambda_adv, means over clips of the gradients' norms at x0-hat and of their ratio)."""
        [at_v] = torch.autograd.grad(jump.loss, jump.v, retain_graph=True)
        hold_B = at_v.flatten(1).norm(dim=1) / jump.t                   # dx0-hat = -t dv
        pull_B = pull.flatten(1).norm(dim=1)
        ratio, weight = (pull_B / hold_B.clamp(min=1e-12)).mean().item(), self.options.weight
        if self.options.adaptive:
            weight /= max(ratio, 1e-12)
        return weight, {"lambda": weight, "gradient/ratio": weight * ratio,
                        "gradient/distillation": hold_B.mean().item(),
                        "gradient/adversarial": pull_B.mean().item()}

    @torch.no_grad()
    def watch(self) -> Log:
        """The heads' accuracy on clips that they and the student have not been trained on."""
        point, clips = self.held_out
        v = velocity(self.distillation.student, point.x_t, point.t, clips.condition)
        exhibit = self.exhibit(point.x_t - path.over(point.t, v) * v, clips, point.t,
                               torch.Generator().manual_seed(0))
        return accuracy("held out", *self.logits(exhibit))


class Known(torch.autograd.Function):
    """A value whose gradient at x is known."""

    @staticmethod
    def forward(ctx, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx, upstream: Tensor):
        return upstream * ctx.saved_tensors[0], None, None


def hinge(logits: Logits, sign: int) -> Tensor:
    """E sum_k max(0, 1 - sign D_k): the mean over a head's logits, the sum over heads."""
    return sum((1 - sign * D_k).relu().mean() for heads in logits.values() for D_k in heads)


def accuracy(where: str, real: Logits, fake: Logits) -> dict[str, float]:
    """For each kind of head the share of pairs in which the real clip has the higher mean logit."""
    def mean_B(heads: list[Tensor]) -> Tensor:
        return sum(D_k.flatten(1).mean(1) for D_k in heads)

    return {f"{where}/{kind}": (mean_B(real[kind]) > mean_B(fake[kind])).float().mean().item()
            for kind in real}


def told(t: Tensor, condition: Condition) -> Tensor:
    """(B, 8 + E): cos k pi t for k = 1 to 8, and the mean of the text's tokens."""
    k = torch.arange(1, TIMES + 1, device=t.device)
    return torch.cat([(math.pi * t[:, None] * k).cos(), condition.text.mean(1)], 1).to(condition.text)
