"""The protocol of an objective: its networks by role, who moves in a step, and each mover's loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from swiftvideo_fast import path
from swiftvideo_fast.config import Config, Optim
from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.data.source import Drawn, Source
from swiftvideo_fast.models.condition import Condition, guided
from swiftvideo_fast.models.family import Codec, Family

STUDENT, AVERAGE, TEACHER = "student", "average", "teacher"
LogValues = dict[str, float | Tensor]       # a tensor is shown as a histogram
Nets = Mapping[str, Any]                    # role -> what is called; in training mode only in its own turn


@dataclass(frozen=True)
class Trains:
    """A network that an optimizer moves.  It is in the checkpoint under its role."""

    build: Callable[[], nn.Module]
    optim: Optim


@dataclass(frozen=True)
class Frozen:
    """A network that stays."""

    build: Callable[[], nn.Module]


@dataclass(frozen=True)
class Average:
    """The exponential moving average of the network of another role.  In the checkpoint as well."""

    of: str
    decay: float


@dataclass(frozen=True)
class WithoutAdapters:
    """The network of another role with its LoRA adapters off: no second copy."""

    of: str


Network = Trains | Frozen | Average | WithoutAdapters


@dataclass(frozen=True)
class Setup:
    """The parts that an objective is built from, besides the config.

    device: of every batch and network.  sizes: of the network.  start: the network that training starts from,
    adapters attached.  teacher: that of model.weights.  reference: that of model.start, without adapters.
    """

    family: Family
    device: torch.device
    sizes: Callable[[], Any]
    start: Callable[[], nn.Module]
    teacher: Callable[[], nn.Module]
    reference: Callable[[], nn.Module]
    codec: Callable[[], Codec]
    clips: Callable[[], Source]


@dataclass(frozen=True)
class Loss:
    """value: a scalar to minimise.  handed: what later turns of the step receive for the same clips."""

    value: Tensor
    log: LogValues
    handed: Any = None


class Objective:
    """The base of all.  Options: its section of the config, whose `name` objective.name chooses it by."""

    Options: ClassVar[type]
    from_scratch: ClassVar[bool] = False        # whether it can do without model.weights
    second_time: ClassVar[bool] = False         # whether it trains a flow map u(x_t, t, s)

    def __init__(self, cfg: Config, setup: Setup):
        self.cfg, self.options, self.setup = cfg, cfg.objective, setup

    def networks(self) -> dict[str, Network]:
        """By role.  `student` trains; what is exported is `student` and its average."""
        return {STUDENT: Trains(self.setup.start, self.cfg.optim), AVERAGE: Average(STUDENT, self.cfg.ema)}

    def turns(self, step: int) -> tuple[str, ...]:
        """The roles that move in this step, in order; a role may move several times."""
        return (STUDENT,)

    def loss(self, turn: str, nets: Nets, batch: Batch, rng: torch.Generator, step: int,
             handed: Any = None) -> Loss:
        """The loss of the role `turn` on one micro-batch.  Every draw comes from rng, a CPU generator of this
        turn and these clips.  handed: what an earlier turn of this step left for the same clips."""
        raise NotImplementedError

    def source(self, clips: Source) -> Drawn:
        """What training draws from; clips: the source of the config's data section."""
        return clips

    def velocity(self, net: Any, x_t: Tensor, t: Tensor, condition: Condition,
                 guidance: float | Tensor = 1.0, s: Tensor | None = None) -> Tensor:
        """The guided velocity of a network, by the family's call; of a flow map, from t to s."""
        return guided(lambda *inputs: self.setup.family.call(net, *inputs), x_t, t, condition, guidance, s)


@dataclass(frozen=True)
class Jump:
    """The student's v = F_theta(x_t, t) with its graph, and the loss of it.  handed: as in Loss.  real: what
    an adversary holds x0-hat against, in place of the clips."""

    x_t: Tensor
    t: Tensor
    v: Tensor
    loss: Tensor
    log: LogValues
    handed: Any = None
    real: Tensor | None = None

    @property
    def x0(self) -> Tensor:
        """x0-hat = x_t - t v."""
        return self.x_t - path.over(self.t, self.v) * self.v


class Consistency(Objective):
    """An objective whose student jumps to x0; an adversary may be put on top of it (objectives/da.py)."""

    def networks(self) -> dict[str, Network]:
        return super().networks() | {TEACHER: Frozen(self.setup.teacher)}

    def jump(self, nets: Nets, batch: Batch, rng: torch.Generator, step: int) -> Jump:
        """The student's jump from a drawn point."""
        raise NotImplementedError

    def x0(self, net: Any, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The x0 that a network predicts from x_t."""
        return x_t - path.over(t, x_t) * self.velocity(net, x_t, t, condition)

    def loss(self, turn, nets, batch, rng, step, handed=None) -> Loss:
        jump = self.jump(nets, batch, rng, step)
        return Loss(jump.loss, jump.log, jump.handed)


def huber(d: Tensor, c: float) -> Tensor:
    """sqrt(d^2 + c^2) - c, elementwise."""
    return (d.square() + c * c).sqrt() - c
