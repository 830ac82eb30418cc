"""swiftvideo plan: estimates memory per rank, FLOPs and communication of a run, and how to make it fit.

    swiftvideo plan --preset 14b --gpus 64 --memory 80

Networks come from the objective's `networks()`, passes from calling its losses on stub networks in their
`turns()`.  Of a parameter of n elements a rank holds ceil(n / gpus) (train/zero3.py): these sizes are exact.
Activations are counted in planes of (tokens / sequence) x dim in storage dtype:
    without grad    a few at a time, including the tangent's, with the MLP's in chunks of rows
    with grad       by --recompute: one per block, plus those of one recomputed block; or two per block (with
                    attention's outputs); or all
(counted by `python -m bench memory`, which tracks every tensor).
FLOPs are two per multiplication in matrix products; their time is FLOPs over a rate that you measured.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache, partial

import torch
from torch import Tensor, nn

from swiftvideo_fast.config import Config, Model, Optim, Run
from swiftvideo_fast.config.strict import want
from swiftvideo_fast.data.crops import CropOptions
from swiftvideo_fast.data.pairs import Pairs
from swiftvideo_fast.dual import Dual
from swiftvideo_fast.models import lora
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.models.wan.blocks import MLP_ROWS
from swiftvideo_fast.models.wan.family import WanFamily
from swiftvideo_fast.models.wan.network import RECOMPUTE
from swiftvideo_fast.models.wan.sizes import PRESETS, WanConfig, activations
from swiftvideo_fast.objectives.base import STUDENT, Average, Frozen, Objective, Setup, Trains
from swiftvideo_fast.train.recipe import TABLES
from swiftvideo_fast.train.zero3 import BUCKET

USABLE = 0.94           # fraction of device memory; context, workspaces and fragmentation take the rest
SCALES = 256            # 8-bit moments per 4-byte scale
HELD, CHUNKED = 11, 6   # planes under no_grad: in attention; in the MLP besides its chunk of rows
LATENT = WanFamily.latent
LATE = 10**9            # a step at which an objective takes all its turns


@dataclass(frozen=True)
class Call:
    """One evaluation of a network in a step.  rows: clips evaluated per clip of the micro-batch."""

    rows: int
    tangent: bool
    grad: bool


class CountedFamily(WanFamily):
    """A stub family that records calls.  trained: roles with a backward."""

    def __init__(self, trained: set[str]):
        self.trained, self.calls = trained, []

    def call(self, net: str, x_t, t, condition: Condition, s: Tensor | None = None):
        grad = torch.is_grad_enabled() and net in self.trained
        self.calls.append(Call(x_t.shape[0], isinstance(x_t, Dual), grad))
        return 1.0 * x_t

    def features(self, net: str, x_t, t, condition: Condition) -> list[Tensor]:
        self.calls.append(Call(x_t.shape[0], False, torch.is_grad_enabled()))
        return [1.0 * x_t]


class Role(str):
    """A stub network, named by its role; calling it returns its input."""

    def __call__(self, features: list[Tensor]) -> list[Tensor]:
        return features


def built(sizes: WanConfig, objective: str, family: WanFamily) -> Objective:
    """Returns the objective, with networks of these sizes on the meta device."""
    cls = TABLES.objectives[objective]
    options = cls.Options()

    def network(rank: int = 0, second_time: bool = False) -> nn.Module:
        with torch.device("meta"):
            net = family.network(replace(sizes, second_time=second_time))
            if rank:
                lora.attach(net, rank, torch.Generator())
        return net

    cfg = Config(Run("plan", 1), Model(weights="released"), options, Optim(1e-6), CropOptions())
    start = partial(network, getattr(options, "rank", 0), cls.second_time)
    return cls(cfg, Setup(family, torch.device("meta"), lambda: sizes, start, network, network, None, None))


@lru_cache
def parameters(sizes: WanConfig, objective: str) -> dict[str, list[tuple[int, bool]]]:
    """Returns role -> [(elements, trained)] over the parameters of trained and frozen networks."""
    networks = built(sizes, objective, WanFamily()).networks()
    with torch.device("meta"):
        return {role: [(p.numel(), p.requires_grad) for p in spec.build().parameters()]
                for role, spec in networks.items() if isinstance(spec, Trains | Frozen)}


@lru_cache
def calls(objective: str) -> tuple[Call, ...]:
    """Returns the network evaluations of a step, recorded by calling its losses on one small clip."""
    networks = built(PRESETS["tiny"], objective, WanFamily()).networks()
    family = CountedFamily({role for role, spec in networks.items() if isinstance(spec, Trains)})
    stub = built(PRESETS["tiny"], objective, family)
    x0, condition = torch.zeros(1, 16, 1, 2, 2), Condition(torch.zeros(1, 20, 1, 2, 2), torch.zeros(1, 1, 32),
                                                           torch.zeros(1, 32))
    batch, nets, carry = Pairs(x0, condition, [""], x0, x0), {role: Role(role) for role in networks}, None
    for turn in stub.turns(LATE):
        out = stub.loss(turn, nets, batch, torch.Generator(), LATE, carry)
        carry = carry if out.carry is None else out.carry
    return tuple(family.calls)


@dataclass(frozen=True)
class Plan:
    """A run under ZeRO-3.  memory: GB per GPU.  frames, size: of a clip, in pixels.  micro: clips per
    backward pass.  moments: bits.  sequence: GPUs that share a clip's tokens."""

    preset: str
    gpus: int
    memory: float
    frames: int = 61
    size: tuple[int, int] = (832, 480)
    micro: int = 1
    dtype: str = "bfloat16"
    moments: int = 32
    sequence: int = 1
    offload: bool = False
    recompute: str = "blocks"
    objective: str = "ccd"

    def __post_init__(self):
        c, side = self.sizes, LATENT.stride * LATENT.patch
        for name in ("gpus", "memory", "micro", "sequence"):
            value = getattr(self, name)
            want(0 < value < math.inf, f"--{name}", value, "a positive number")
        want(self.frames > 1 and self.frames % LATENT.stride_t == 1, "--frames", self.frames,
             f"{LATENT.stride_t}n + 1, n > 0")
        want(all(x > 0 and x % side == 0 for x in self.size), "--size", "{}x{}".format(*self.size),
             f"positive multiples of {side}")
        want(self.gpus % self.sequence == 0, "--gpus", self.gpus, f"a multiple of --sequence {self.sequence}")
        want(c.heads % self.sequence == 0 and self.tokens % self.sequence == 0, "--sequence", self.sequence,
             f"a divisor of {c.heads} heads and {self.tokens} tokens")

    @property
    def tokens(self) -> int:
        return LATENT.tokens(self.frames, self.size[1], self.size[0])

    @property
    def stored(self) -> int:
        """Bytes per stored weight."""
        return 2 if self.dtype == "bfloat16" else 4

    def parts(self) -> dict[str, int]:
        """Returns bytes per rank on the GPU, by part."""
        return {name: size for name, size in self.held().items()
                if not (self.offload and name in ("masters", "optimizer", "gradients"))}

    def held(self) -> dict[str, int]:
        """Returns bytes per rank by part, on the GPU or offloaded."""
        networks = built(self.sizes, self.objective, WanFamily()).networks()
        movers = [role for role, spec in networks.items() if isinstance(spec, Trains)]
        trained = sum(self._slices(role, trained=True) for role in movers)
        held = {
            "parameters": self.stored * sum(map(self._slices, movers)),
            "masters": 4 * trained,
            "optimizer": 8 * trained if self.moments == 32 else 2 * trained + 2 * 4 * trained // SCALES,
        }
        for role, spec in networks.items():
            if isinstance(spec, Average):
                copy = self.stored if self.stored < 4 else 0
                held[role] = (4 + copy) * self._slices(spec.of, trained=True)
            elif isinstance(spec, Frozen):
                held[role] = self.stored * self._slices(role)
        student = parameters(self.sizes, self.objective)[STUDENT]
        reduced = min(BUCKET, sum(n for n, trains in student if trains))
        return held | {
            "gradients": 4 * trained,
            "reduction bucket": self.stored * reduced,
            "gathered blocks": 2 * self.stored * block_parameters(self.sizes),
            "activations": self.activations(),
        }

    @property
    def sizes(self) -> WanConfig:
        return PRESETS[self.preset]

    def _slices(self, role: str, trained: bool = False) -> int:
        """Returns the elements that a rank holds of a network, or of its trained parameters."""
        found = parameters(self.sizes, self.objective)[role]
        return sum(-(-n // self.gpus) for n, trains in found if trains or not trained)

    def activations(self) -> int:
        """Returns the peak bytes of activations per GPU."""
        c = self.sizes
        tokens = self.tokens // self.sequence
        plane = self.micro * tokens * c.dim * self.stored
        under_no_grad = plane * max(HELD, CHUNKED + 4 * c.ffn_dim / c.dim * min(1, MLP_ROWS / tokens))
        rows = max(call.rows for call in calls(self.objective) if call.grad)
        with_grad = activations(c, rows * self.micro * tokens, self.recompute, self.stored)
        return int(max(under_no_grad, with_grad))

    @cached_property
    def total(self) -> int:
        return sum(self.parts().values())

    @property
    def fits(self) -> bool:
        return self.total <= USABLE * self.memory * 1e9

    def work(self) -> float:
        """Returns FLOPs per micro-batch and GPU, in linear maps and attention."""
        c, blocks = self.sizes, block_parameters(self.sizes)
        linear = 2 * blocks * c.layers * self.tokens
        attention = 4 * self.tokens**2 * c.dim * c.layers
        again = {"nothing": (0, 0), "blocks": (1, 1), "blocks but attention": (1, 0)}[self.recompute]
        total = 0.0
        for call in calls(self.objective):
            maps, attentions = (2, 3) if call.tangent else (1, 1)
            if call.grad:
                maps, attentions = maps + 2 + again[0], attentions + 2.5 + again[1]
            total += call.rows * (maps * linear + attentions * attention)
        return self.micro / self.sequence * total

    def traffic(self) -> dict[str, float]:
        """Returns bytes that a GPU receives per micro-batch, by purpose."""
        c, made, others = self.sizes, calls(self.objective), self.stored * (1 - 1 / self.gpus)
        student = parameters(c, self.objective)[STUDENT]
        whole, trained = sum(n for n, _ in student), sum(n for n, trains in student if trains)
        runs_again = self.recompute != "nothing"
        gathers = sum(2 if call.grad else 1 for call in made)    # the backward gathers again
        planes = sum(call.rows * (1 + call.tangent + call.grad * (1 + runs_again)) for call in made)
        plane = self.micro * self.tokens // self.sequence * c.dim * self.stored
        return {"gathering weights": gathers * whole * others, "reducing gradients": trained * others,
                "exchanging tokens": c.layers * 4 * planes * plane * (1 - 1 / self.sequence)}   # q, k, v, o


@lru_cache
def block_parameters(sizes: WanConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in WanFamily().network(sizes).blocks[0].parameters())


def make_fit(plan: Plan) -> tuple[str, Plan] | None:
    """Returns the cheapest change that makes the plan fit, as (options, changed plan); None without one."""
    for words, change in changes(plan):
        if change.fits:
            return words, change
    return None


def changes(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Yields (options, changed plan), cheapest first."""
    if plan.micro > 1:
        yield "--micro 1", (plan := replace(plan, micro=1))
    if plan.moments == 32:
        yield "--moments 8", replace(plan, moments=8)
    heads = PRESETS[plan.preset].heads
    for n in range(plan.sequence + 1, min(plan.gpus, heads) + 1):
        if heads % n == plan.tokens % n == plan.gpus % n == 0:
            yield f"--sequence {n}", replace(plan, sequence=n)
    yield "--offload", replace(plan, offload=True)
    for n in range(1, 8):
        yield f"--gpus {plan.gpus << n}", replace(plan, gpus=plan.gpus << n)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", required=True, choices=PRESETS, help="as model.preset")
    parser.add_argument("--gpus", type=int, required=True, help="on all nodes")
    parser.add_argument("--memory", type=float, default=80, help="GB per GPU (default: 80)")
    parser.add_argument("--objective", choices=TABLES.objectives, default=Plan.objective,
                        help=f"default: {Plan.objective}")
    parser.add_argument("--frames", type=int, default=Plan.frames,
                        help=f"per clip, 4n + 1 (default: {Plan.frames})")
    parser.add_argument("--size", default="832x480", help="width x height in pixels (default: 832x480)")
    parser.add_argument("--micro", type=int, default=Plan.micro,
                        help=f"clips per backward pass (default: {Plan.micro})")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=Plan.dtype,
                        help=f"of weights and activations (default: {Plan.dtype})")
    parser.add_argument("--moments", type=int, choices=(8, 32), default=Plan.moments,
                        help=f"bits of Adam's moments (default: {Plan.moments})")
    parser.add_argument("--sequence", type=int, default=Plan.sequence,
                        help=f"GPUs that share a clip's tokens (default: {Plan.sequence})")
    parser.add_argument("--offload", action="store_true", help="masters and moments on the CPU")
    parser.add_argument("--recompute", choices=RECOMPUTE, default=Plan.recompute,
                        help=f"as model.recompute (default: {Plan.recompute})")
    parser.add_argument("--tflops", type=float, help="a measured rate, to print the time per pass")
    parser.add_argument("--recipe", action="store_true", help="also hours of the recipe (bench/gpu.json)")


def from_arguments(args: argparse.Namespace) -> Plan:
    """Returns the plan of command-line arguments; ValueError for bad values."""
    given = {f.name: getattr(args, f.name) for f in fields(Plan)}
    width, _, height = args.size.partition("x")
    want(width.isdecimal() and height.isdecimal(), "--size", args.size, "as 832x480")
    want(args.tflops is None or 0 < args.tflops < math.inf, "--tflops", args.tflops, "a positive rate")
    return Plan(**given | {"size": (int(width), int(height))})


def report(plan: Plan, tflops: float | None = None) -> str:
    """Returns the plan as text."""
    w, h = plan.size
    lines = [f"{plan.objective} of {plan.preset} on {plan.gpus} GPUs of {plan.memory:g} GB: {plan.micro} "
             f"clips of {plan.frames} frames of {w}x{h} ({plan.tokens:,} tokens) a pass on {plan.sequence} "
             "GPUs"]
    on_gpu = plan.parts()
    lines += [f"{size / 1e9:10.2f} GB  {name}" + ("" if name in on_gpu else ", on the CPU")
              for name, size in plan.held().items()]
    usable = USABLE * plan.memory
    lines += [f"{plan.total / 1e9:10.2f} GB  in all, of {usable:.1f} usable: "
              + ("fits" if plan.fits else "does not fit")]
    if not plan.fits:
        found = make_fit(plan)
        lines += [f"the cheapest change that makes it fit: {found[0]} ({found[1].total / 1e9:.2f} GB)"
                  if found else "no single change makes it fit"]
    lines += [f"{bytes_ / 1e9:10.2f} GB  received a pass, {name}" for name, bytes_ in plan.traffic().items()]
    lines += [f"{plan.work() / 1e12:10.0f} TFLOP a pass" + (
        f": {plan.work() / 1e12 / tflops:.1f} s at {tflops:g} TFLOP/s" if tflops else
        "; --tflops, a rate that `python -m bench` gives on that GPU, makes it a time")]
    return "\n".join(lines)
