"""The passes whose memory is accounted for: each builds its networks and gives (its account, one run of it).

    jvp     the EMA network and its tangent, under no_grad
    train   the student's loss, forward and backward
    step    Algorithm 1 whole: guided teacher, jvp of the EMA, student, clipped gradients, AdamW, average
    ta      trajectory alignment whole: winner and loser through the base and the student, AdamW, average;
            LoRA of rank 64, its base stored once
    da      that step with eq. 10 on top: a window decoded by Wan's VAE and seen by DINOv2 ViT-S/14, both in
            fp32; the heads and their step; AdamW's moments in 8 bits
A step is taken on one device, one clip, nothing sharded.  It holds, beside gradients, the student, the EMA's
copy and the teacher as stored (bf16), and in fp32 the masters, AdamW's two moments and the EMA: 22 bytes a
parameter; AdamW goes parameter by parameter.
"""

import math
import sys
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from bench.account import Account
from swiftvideo_fast import jvp, ops, path
from swiftvideo_fast.config import Ccd, Da, Optim, Ta
from swiftvideo_fast.config.strict import known_name
from swiftvideo_fast.data.latents import Latents
from swiftvideo_fast.data.pairs import Pairs
from swiftvideo_fast.models import lora
from swiftvideo_fast.adversary.backbones import Dino
from swiftvideo_fast.models.condition import Condition, velocity
from swiftvideo_fast.models.vae import WanVae
from swiftvideo_fast.models.wan import network as wan
from swiftvideo_fast.models.wan.network import PRESETS, RECOMPUTE, Wan, cast
from swiftvideo_fast.objectives.ccd import ConsistencyDistillation
from swiftvideo_fast.objectives.da import DistributionAlignment, Judge
from swiftvideo_fast.objectives.ta import TrajectoryAlignment
from swiftvideo_fast.ops import reference
from swiftvideo_fast.train.single import Trained

STRIDE_T, STRIDE = 4, 8                 # of the codec: pixel frames and pixels a latent
TEXT, IMAGE = 512, 257                  # tokens of the two encoders


@dataclass(frozen=True)
class Setting:
    """What is accounted for.  frames: 4n + 1, in pixel space; size: (width, height), multiples of 16.

    recompute: the student's, of models.wan.network.RECOMPUTE.
    """

    preset: str = "1.3b"
    frames: int = 61
    size: tuple[int, int] = (832, 480)
    dtype: torch.dtype = torch.bfloat16
    recompute: str = "blocks"

    def __post_init__(self):
        known_name("memory: --recompute", self.recompute, RECOMPUTE)
        if self.frames % STRIDE_T != 1 or any(s % (2 * STRIDE) for s in self.size):
            raise ValueError(f"memory: {self.frames} frames of {self.size[0]}x{self.size[1]}; "
                             "want 4n + 1 frames, sides multiples of 16")

    @property
    def latent(self) -> tuple[int, int, int]:
        return (self.frames - 1) // STRIDE_T + 1, self.size[1] // STRIDE, self.size[0] // STRIDE

    @property
    def tokens(self) -> int:
        return math.prod(self.latent) // 4

    def point(self) -> path.Point:
        x0, x1 = (torch.randn(1, PRESETS[self.preset].latent, *self.latent) for _ in range(2))
        t = torch.full((1,), 0.5)
        return path.Point(x0, x1, t, path.interpolate(x0, x1, t))

    def condition(self) -> Condition:
        c = PRESETS[self.preset]
        text, null_text = (torch.randn(1, TEXT, c.text_dim) for _ in range(2))
        image = torch.randn(1, IMAGE, c.image_dim) if c.image_dim else None
        return Condition(torch.randn(1, c.condition, *self.latent), text, null_text, image)

    def network(self, *, trained: bool, rank: int = 0) -> Wan:
        """Of the preset's sizes, on the current default device.  rank: of LoRA, then all that is trained."""
        def build() -> Wan:
            net = cast(Wan(PRESETS[self.preset]), self.dtype).requires_grad_(trained)
            if rank:
                lora.attach(net, rank, torch.Generator())
            return net

        net = hollow(build)
        net.recompute = self.recompute
        return net


def hollow(build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` makes, not initialised: weights of zero, on the current default device."""
    with unset_fake_temporarily(), torch.device("meta"):
        net = build()
    for module in net.modules():        # Module.to_empty would swap tensors, which fakes refuse
        for name, p in module.named_parameters(recurse=False):
            module._parameters[name] = nn.Parameter(torch.zeros(p.shape, dtype=p.dtype), p.requires_grad)
    return net


def jvp_pass(setting: Setting, transform: Callable = jvp) -> tuple[Account, Callable]:
    net, point, condition = setting.network(trained=False), setting.point(), setting.condition()

    def run():
        with torch.no_grad():
            return transform(lambda x, t: velocity(net, x, t, condition), (point.x_t, point.t),
                             (point.velocity, torch.ones_like(point.t)))

    return _account(net.parameters(), point, condition, net=net), run


def train_pass(setting: Setting) -> tuple[Account, Callable]:
    net, point, condition = setting.network(trained=True), setting.point(), setting.condition()

    def run():
        F = torch.zeros_like(point.x_t)
        ops.ccd_loss(velocity(net, point.x_t, point.t, condition), F, F).mean().backward()

    return _account(net.parameters(), point, condition, student=net), run


def step_pass(setting: Setting) -> tuple[Account, Callable]:
    student, average, teacher = (setting.network(trained=trained) for trained in (True, False, False))
    point, condition = setting.point(), setting.condition()
    objective = ConsistencyDistillation(Ccd(), student, average, teacher)
    masters, moments, apply_gradients = adamw(list(student.parameters()))
    averages = [master.clone() for master in masters]

    def run():
        loss, _ = objective(point, Latents(point.x0, condition, []), 0, None)
        loss.backward()
        apply_gradients()
        ops.ema_(averages, masters, 0.95, list(average.parameters()))

    networks = {"student": student, "average": average, "teacher": teacher}
    weights = [p for net in networks.values() for p in net.parameters()]
    return _account([*weights, *masters, *moments, *averages], point, condition, **networks), run


def ta_pass(setting: Setting) -> tuple[Account, Callable]:
    student = setting.network(trained=True, rank=Ta.rank)
    point, condition = setting.point(), setting.condition()
    factors = [p for p in student.parameters() if p.requires_grad]
    objective = TrajectoryAlignment(Ta(), student, lora.Base(student))
    masters, moments, apply_gradients = adamw(factors)
    averages = [master.clone() for master in masters]
    pairs = Pairs(point.x0, condition, [], torch.randn_like(point.x0), point.x1)

    def run():
        loss, _ = objective(point, pairs, 0, None)
        loss.backward()
        apply_gradients()
        ops.ema_(averages, masters, 0.95)

    known = [*student.parameters(), *masters, *moments, *averages]
    account = _account(known, point, condition, student=student)
    account.follow(pairs.loser)
    return account, run


def da_pass(setting: Setting) -> tuple[Account, Callable]:
    """VAE and DINOv2 have the sizes of the released ones (the VAE's class defaults to them)."""
    from diffusers import AutoencoderKLWan
    from transformers import Dinov2Config, Dinov2Model

    student, average, teacher = (setting.network(trained=trained) for trained in (True, False, False))
    point, condition = setting.point(), setting.condition()
    vae, dino = hollow(AutoencoderKLWan), hollow(lambda: Dinov2Model(Dinov2Config(
        hidden_size=384, num_attention_heads=6, num_hidden_layers=12, image_size=518, patch_size=14)))
    backbone = Dino(dino)
    judge = Trained(Judge(backbone.widths, PRESETS[setting.preset].text_dim, project=False), Optim(1e-6), 1)
    objective = DistributionAlignment(Da(start=0), ConsistencyDistillation(Ccd(), student, average, teacher),
                                      judge, backbone, WanVae(vae))
    masters, moments, apply_gradients = adamw8(list(student.parameters()))
    averages = [master.clone() for master in masters]

    def run():
        loss, _ = objective(point, Latents(point.x0, condition, []), 0, torch.Generator())
        loss.backward()
        apply_gradients()
        ops.ema_(averages, masters, 0.95, list(average.parameters()))
        objective.after_step()

    networks = {"student": student, "average": average, "teacher": teacher, "vae": vae, "dino": dino,
                "judge": judge.net}
    weights = [p for net in networks.values() for p in net.parameters()]
    of_heads = [x for state in judge.optimizer.state.values() for x in state.values()]
    return _account([*weights, *masters, *moments, *averages, *of_heads], point, condition, **networks), run


def adamw8(weights: list[nn.Parameter]) -> tuple[list[Tensor], list[Tensor], Callable]:
    """As `adamw`, with bitsandbytes' moments: a byte each, a scale for every 256; its kernel is in place."""
    masters = [p.detach().float().clone() for p in weights]
    moments = [x for p in weights for _ in range(2)
               for x in (torch.zeros(p.numel(), dtype=torch.uint8), torch.zeros(-(-p.numel() // 256)))]

    def apply_gradients():
        nn.utils.clip_grad_norm_(weights, 1.0, foreach=False)
        for p, master in zip(weights, masters, strict=True):
            gradient, p.grad = p.grad.float(), None
            master.sub_(gradient)
            p.data.copy_(master)

    return masters, moments, apply_gradients


def adamw(weights: list[nn.Parameter]) -> tuple[list[Tensor], list[Tensor], Callable]:
    """(fp32 masters of the weights, AdamW's moments, what clips the gradients and applies them)."""
    masters = [p.detach().float().clone() for p in weights]
    moments = [torch.zeros_like(master) for master in masters for _ in range(2)]
    optimizers = [torch.optim.AdamW([master], lr=1e-6, fused=True) for master in masters]
    for i, (master, optimizer) in enumerate(zip(masters, optimizers, strict=True)):
        optimizer.state[master] = {"step": torch.zeros(()), "exp_avg": moments[2 * i],
                                   "exp_avg_sq": moments[2 * i + 1]}

    def apply_gradients():
        nn.utils.clip_grad_norm_(weights, 1.0, foreach=False)
        for p, master, optimizer in zip(weights, masters, optimizers, strict=True):
            master.grad, p.grad = p.grad.float(), None
            optimizer.step()
            master.grad = None
            p.data.copy_(master)

    return masters, moments, apply_gradients


PASSES = {"jvp": jvp_pass, "train": train_pass, "step": step_pass, "ta": ta_pass, "da": da_pass}


def _account(known, point: path.Point, condition: Condition, **networks: nn.Module) -> Account:
    account = Account(known, **networks)
    for x in (*vars(point).values(), *vars(condition).values()):
        if x is not None:
            account.follow(x)
    return account


@contextmanager
def plain_torch():
    """The ops are their references in here: math attention, nothing fused, the MLP whole."""
    with ExitStack() as swapped:
        for name in filter(reference.__dict__.get, ops.__all__):
            swapped.enter_context(patch.object(ops, name, getattr(reference, name)))
        swapped.enter_context(patch.object(wan, "MLP_ROWS", sys.maxsize))
        yield
