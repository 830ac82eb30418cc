"""python -m bench memory: what a pass of the real network keeps alive at once, on any machine.

    python -m bench memory --preset wan-1.3b --frames 61 --size 832x480 --pass jvp
    python -m bench memory --against torch              beside torch.func.jvp with math attention
    python -m bench memory --pass step --png step.png   the timeline of a whole CCD step
    python -m bench memory --table                      1.3B and 14B on 80 and 141 GB, as Markdown

The passes:
    jvp     the EMA network and its tangent, under no_grad
    train   the student's loss, forward and backward, each block recomputed in the backward
    step    Algorithm 1 whole: guided teacher, jvp of the EMA, student, clipped gradients, AdamW, average
A step is taken on one device with nothing sharded.  It holds, a parameter: the student, its gradient, the EMA's
working copy and the teacher in the storage dtype, and fp32 masters, AdamW's two fp32 moments and the fp32 EMA:
24 bytes in bf16.  Sharded over n devices (ZeRO-3) each holds an n-th, and two gathered blocks.
On a machine with a GPU the pass is also run there, with random weights, and the allocator's own peak printed.
"""

import argparse
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from bench.account import Account, grouped
from swiftvideo_fast import jvp, ops, path
from swiftvideo_fast.config import Ccd
from swiftvideo_fast.models.conditioning import Condition, velocity
from swiftvideo_fast.models.wan import PRESETS, Wan, cast
from swiftvideo_fast.objectives.ccd import ConsistencyDistillation
from swiftvideo_fast.ops import reference

STRIDE_T, STRIDE = 4, 8                 # of the codec: pixel frames and pixels a latent
TEXT, IMAGE = 512, 257                  # tokens of the two encoders
DEVICES_GB = (80, 141)                  # H100, H200
USABLE = 0.94                           # of a device: context, workspaces and fragments take the rest


@dataclass(frozen=True)
class Setting:
    """What is accounted for.  frames: 4n + 1 pixel frames; size: (width, height) in pixels, multiples of 16."""

    preset: str = "1.3b"
    frames: int = 61
    size: tuple[int, int] = (832, 480)
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self):
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

    def network(self, *, trained: bool) -> Wan:
        """Of the preset's sizes, its values left as they are found; made on the current default device."""
        with unset_fake_temporarily(), torch.device("meta"):
            net = cast(Wan(PRESETS[self.preset]), self.dtype).requires_grad_(trained)
        for module in net.modules():    # Module.to_empty would swap tensors, which fakes refuse
            for name, p in module._parameters.items():
                module._parameters[name] = nn.Parameter(torch.zeros(p.shape, dtype=p.dtype), p.requires_grad)
        net.recompute = trained
        return net


# --- the passes: each gives its account and the function to run under it ---------------------------------


def jvp_pass(setting: Setting) -> tuple[Account, Callable]:
    net, point, condition = setting.network(trained=False), setting.point(), setting.condition()

    def run():
        with torch.no_grad():
            return jvp(lambda x, t: velocity(net, x, t, condition), (point.x_t, point.t),
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
    weights = list(student.parameters())
    masters, averages = ([p.detach().float().clone() for p in weights] for _ in range(2))
    optimizer = torch.optim.AdamW(masters, lr=1e-6, fused=True)
    for master in masters:
        optimizer.state[master] = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(master),
                                   "exp_avg_sq": torch.zeros_like(master)}
    moments = [x for state in optimizer.state.values() for x in state.values()]

    def run():
        loss, _ = objective(point, condition, 0, None)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0, foreach=False)
        for p, master in zip(weights, masters, strict=True):
            master.grad, p.grad = p.grad.float(), None
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for p, master in zip(weights, masters, strict=True):
                p.copy_(master)
        ops.ema_(averages, masters, 0.95, list(average.parameters()))

    known = [*weights, *average.parameters(), *teacher.parameters(), *masters, *averages, *moments]
    return _account(known, point, condition, student=student, average=average, teacher=teacher), run


PASSES = {"jvp": jvp_pass, "train": train_pass, "step": step_pass}


def _account(known, point: path.Point, condition: Condition, **networks: nn.Module) -> Account:
    account = Account(known, **networks)
    for x in (*vars(point).values(), *vars(condition).values()):
        if x is not None:
            account.follow(x)
    return account


def faked(name: str, setting: Setting) -> Account:
    """The account of a pass of which nothing is computed."""
    with FakeTensorMode():
        account, run = PASSES[name](setting)
        with account:
            run()
    return account


@contextmanager
def plain_torch():
    """The network of reference ops under torch.func.jvp: math attention, nothing fused, no rows."""
    import swiftvideo_fast.models.wan as wan

    faces = {name: getattr(reference, name) for name in ("attention", "modulate", "norm_rope", "gate", "gelu")}
    kept = {name: getattr(ops, name) for name in faces} | {"rows": wan.MLP_ROWS}
    try:
        for name, face in faces.items():
            setattr(ops, name, face)
        wan.MLP_ROWS = 1 << 62
        yield
    finally:
        wan.MLP_ROWS = kept.pop("rows")
        for name, face in kept.items():
            setattr(ops, name, face)
