"""The passes of the memory bench: each builds its networks and returns (account, function that runs it).

    jvp     the EMA network and its tangent, under no_grad
    train   the student's loss, forward and backward
    step    all of Algorithm 1: guided teacher, jvp of the EMA, student, clipped gradients, AdamW, average
    ta      all of trajectory alignment: winner and loser through the base and the student, AdamW, average;
            LoRA of rank 64, its base stored once
    da      `step` plus eq. 10: a window decoded by Wan's VAE, features of DINOv2 ViT-S/14, both in fp32; the
            critic and its step; AdamW's moments in 8 bits
    zero3   `step` under DeepSpeed ZeRO-3 in one process (no account: it does not support fake tensors)
All but the first two are a step of the training loop itself (train/loop.py) on an engine of one process, with
the objective's own networks and turns: one device, one clip, nothing sharded, weights stored as bfloat16.
"""

import math
import sys
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor, nn

from bench.account import Account
from swiftvideo_fast import jvp, ops, path
from swiftvideo_fast.adversary.backbones import Dino
from swiftvideo_fast.config import Config, Engine, Model, Optim, Run
from swiftvideo_fast.config.strict import known_name
from swiftvideo_fast.data.crops import CropOptions
from swiftvideo_fast.data.pairs import Pairs
from swiftvideo_fast.models import lora
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.models.wan import blocks
from swiftvideo_fast.models.wan.family import WanFamily
from swiftvideo_fast.models.wan.network import RECOMPUTE, Wan
from swiftvideo_fast.models.wan.sizes import PRESETS, WanConfig
from swiftvideo_fast.models.wan.vae import WanVae
from swiftvideo_fast.objectives.base import AVERAGE, STUDENT, TEACHER, Objective, Setup
from swiftvideo_fast.objectives.ccd import ConsistencyDistillation
from swiftvideo_fast.objectives.da import Da, DistributionAlignment
from swiftvideo_fast.objectives.ta import TrajectoryAlignment
from swiftvideo_fast.ops import reference
from swiftvideo_fast.train import engine as train_engine
from swiftvideo_fast.train import loop, recipe, single

TEXT, IMAGE = 512, 257                  # tokens of the two encoders
FAMILY = WanFamily()
velocity = FAMILY.call


@dataclass(frozen=True)
class Setting:
    """Model and sizes of a pass.  frames: 4n + 1 video frames; size: (width, height), multiples of 16.

    layers: number of network blocks; None: the preset's.
    recompute: the student's, of models.wan.network.RECOMPUTE.  moments: AdamW's, 32 or 8 bits; da: always 8.
    random: random weights instead of zeros.
    """

    preset: str = "1.3b"
    frames: int = 61
    size: tuple[int, int] = (832, 480)
    dtype: torch.dtype = torch.bfloat16
    recompute: str = "blocks"
    moments: int = 32
    random: bool = False
    layers: int | None = None

    def __post_init__(self):
        known_name("memory: --recompute", self.recompute, RECOMPUTE)
        try:
            FAMILY.latent.shape(self.frames, *self.size[::-1])
        except ValueError as why:
            raise ValueError(f"{self.frames} frames of {self.size[0]}x{self.size[1]}; "
                             "want 4n + 1 frames, sides multiples of 16") from why

    @property
    def config(self) -> WanConfig:
        config = PRESETS[self.preset]
        return config if self.layers is None else replace(config, layers=self.layers)

    @property
    def latent(self) -> tuple[int, int, int]:
        return FAMILY.latent.shape(self.frames, *self.size[::-1])

    @property
    def tokens(self) -> int:
        return math.prod(self.latent) // FAMILY.latent.patch**2

    def point(self) -> path.Point:
        x0, x1 = (torch.randn(1, self.config.latent, *self.latent) for _ in range(2))
        t = torch.full((1,), 0.5)
        return path.Point(x0, x1, t, path.interpolate(x0, x1, t))

    def condition(self) -> Condition:
        c = self.config
        image = torch.randn(1, IMAGE, c.image_dim) if c.image_dim else None
        return Condition(torch.randn(1, c.condition, *self.latent), torch.randn(1, TEXT, c.text_dim),
                         torch.randn(TEXT, c.text_dim), image)

    def network(self, *, trained: bool, rank: int = 0) -> Wan:
        """Returns the preset's network on the default device.  rank: of a LoRA, then all that is trained."""
        def build() -> Wan:
            net = FAMILY.cast(Wan(self.config), self.dtype).requires_grad_(trained)
            if rank:
                lora.attach(net, rank, torch.Generator())
            return net

        net = self.weighted(hollow(build))
        net.recompute = self.recompute
        return net

    def weighted(self, net: nn.Module) -> nn.Module:
        """Returns net; if `random`, with norm gains of 1 and linear weights of standard deviation 0.02."""
        for name, p in net.named_parameters() if self.random else ():
            if "norm" in name and name.endswith("weight"):
                p.data.fill_(1)
            elif p.dim() > 1:
                p.data.normal_(std=0.02)
        return net


def hollow(build: Callable[[], nn.Module]) -> nn.Module:
    """Returns build() with zero weights on the default device, without running the initialisation."""
    with torch.device("meta"):
        net = build()
    net = net.to_empty(device=torch.get_default_device())
    for p in net.parameters():
        p.data.zero_()
    return net


def jvp_pass(setting: Setting, transform: Callable = jvp) -> tuple[Account, Callable]:
    net, point, condition = setting.network(trained=False), setting.point(), setting.condition()

    def run():
        with torch.no_grad():
            return transform(lambda x, t: velocity(net, x, t, condition), (point.x_t, point.t),
                             (point.velocity, torch.ones_like(point.t)))

    return _account(net.parameters(), [*vars(point).values(), *_tensors(condition)], net=net), run


def train_pass(setting: Setting) -> tuple[Account, Callable]:
    net, point, condition = setting.network(trained=True), setting.point(), setting.condition()

    def run():
        F = torch.zeros_like(point.x_t)
        ops.ccd_loss(velocity(net, point.x_t, point.t, condition), F, F).mean().backward()

    given = [*vars(point).values(), *_tensors(condition)]
    return _account(net.parameters(), given, student=net), run


def step_pass(setting: Setting) -> tuple[Account, Callable]:
    return loop_step(setting, ConsistencyDistillation)


def ta_pass(setting: Setting) -> tuple[Account, Callable]:
    return loop_step(setting, TrajectoryAlignment, rank=TrajectoryAlignment.Options.rank)


def da_pass(setting: Setting) -> tuple[Account, Callable]:
    """VAE and DINOv2 have the released sizes (the defaults of the VAE's class)."""
    from diffusers import AutoencoderKLWan
    from transformers import Dinov2Config, Dinov2Model

    vae, dino = hollow(AutoencoderKLWan), hollow(lambda: Dinov2Model(Dinov2Config(
        hidden_size=384, num_attention_heads=6, num_hidden_layers=12, image_size=518, patch_size=14)))

    def aligned(cfg: Config, setup: Setup) -> Objective:
        objective = DistributionAlignment(cfg, setup, ConsistencyDistillation(cfg, setup))
        objective.backbone, objective.codec = Dino(setting.weighted(dino)), WanVae(setting.weighted(vae))
        build = objective.build_critic

        def build_critic() -> nn.Module:                # with a CPU generator on any default device
            device = torch.get_default_device()
            with torch.device("cpu"):
                critic = build()
            return critic if device.type == "cpu" else critic.to(device)

        objective.build_critic = build_critic
        return objective

    return loop_step(replace(setting, moments=8), aligned, da=Da(start=0), vae=vae)


def zero3_pass(setting: Setting) -> tuple[Account, Callable]:
    from swiftvideo_fast.train.zero3 import Zero3

    dtype = str(setting.dtype).removeprefix("torch.")
    return loop_step(setting, ConsistencyDistillation, engine=Zero3, spread=Engine("zero3", dtype=dtype))


def loop_step(setting: Setting, objective: Callable[[Config, Setup], Objective], *, da: Da | None = None,
              rank: int = 0, engine: Callable[[Config], train_engine.Engine] | None = None,
              spread: Engine | None = None, **networks: nn.Module) -> tuple[Account, Callable]:
    """Returns a step of the training loop on random clips.  objective: a class or a factory."""
    options = ConsistencyDistillation.Options() if da else objective.Options()
    cfg = Config(Run("bench", 1), Model(weights="released"), options, Optim(1e-6, moments=setting.moments),
                 CropOptions(batch=1), da=da, engine=spread or Engine())
    made = objective(cfg, Setup(
        FAMILY, torch.get_default_device(), sizes=lambda: setting.config,
        start=partial(setting.network, trained=True, rank=rank),
        teacher=partial(setting.network, trained=False), reference=partial(setting.network, trained=False),
        codec=None, clips=None))
    with patch.object(single, "local_device", torch.get_default_device), \
            patch.object(single, "adamw", AdamW8 if setting.moments == 8 else single.adamw):
        engine = (engine or single.Single)(cfg)
        nets, movers, averages = recipe.place(made.networks(), engine)
    x0, condition = setting.point().x0, setting.condition()
    batch = Pairs(x0, condition, [""], torch.randn_like(x0), torch.randn_like(x0))
    source = SimpleNamespace(draw=lambda count, seed, position: batch)
    run = loop.Run(cfg=cfg, engine=engine, objective=made, nets=nets, movers=movers, averages=averages,
                   open=None, tokens=setting.tokens, exported={}, export=None, fill_defaults=None,
                   source=source)
    held = [shard.data for part in run.parts.values() for name, shard in part.shards().items()
            if name != "steps"]
    modules = {role: net for role, net in nets.items() if isinstance(net, nn.Module)} | networks
    weights = [p for net in modules.values() for p in net.parameters()]
    given = [batch.x0, batch.loser, batch.noise, *_tensors(condition)]
    return _account([*weights, *held], given, **modules), lambda: loop.take_step(run, 0)


def ccd_of(net: Wan) -> tuple[ConsistencyDistillation, dict[str, Wan]]:
    """Returns the CCD objective and {role: net}, with one network in every role."""
    cfg = Config(Run("bench", 1), Model(weights="released"), ConsistencyDistillation.Options(), Optim(1e-6),
                 CropOptions())
    nets = dict.fromkeys((STUDENT, AVERAGE, TEACHER), net)
    return ConsistencyDistillation(cfg, Setup(FAMILY, net.head.head.weight.device, *[None] * 6)), nets


class AdamW8(torch.optim.Optimizer):
    """Stub of bitsandbytes' AdamW8bit, which needs a GPU: one byte per moment, a scale per 256."""

    def __init__(self, parameters, optim: Optim):
        super().__init__(parameters, {"lr": optim.lr})

    @torch.no_grad()
    def step(self) -> None:
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                scales = -(-p.numel() // 256)
                state["step"] = 0
                for i in (1, 2):
                    state[f"state{i}"] = torch.zeros(p.numel(), dtype=torch.uint8)
                    state[f"absmax{i}"] = torch.zeros(scales)
            p.sub_(p.grad)


PASSES = {"jvp": jvp_pass, "train": train_pass, "step": step_pass, "ta": ta_pass, "da": da_pass}


def _account(known, given: list[Tensor], **networks: nn.Module) -> Account:
    account = Account(known, **networks)
    for x in given:
        account.follow(x)
    return account


def _tensors(condition: Condition) -> list[Tensor]:
    return [x for x in vars(condition).values() if x is not None]


@contextmanager
def plain_torch():
    """Context that replaces the ops by their references: math attention, no fusion, unchunked MLP."""
    with ExitStack() as swapped:
        for name in filter(reference.__dict__.get, ops.__all__):
            swapped.enter_context(patch.object(ops, name, getattr(reference, name)))
        swapped.enter_context(patch.object(blocks, "MLP_ROWS", sys.maxsize))
        yield
