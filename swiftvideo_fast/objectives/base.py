"""The objective protocol: networks by role, which of them a step updates, and the loss of each update."""

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
LogValues = dict[str, float | Tensor]       # tensors are logged as histograms
Nets = Mapping[str, Any]                    # role -> callable network; in training mode only in its own turn


@dataclass(frozen=True)
class Trains:
    """A network with an optimizer, saved in checkpoints under its role."""

    build: Callable[[], nn.Module]
    optim: Optim


@dataclass(frozen=True)
class Frozen:
    """A network without training."""

    build: Callable[[], nn.Module]


@dataclass(frozen=True)
class Average:
    """The exponential moving average of the network with role `of`, saved in checkpoints."""

    of: str
    decay: float


@dataclass(frozen=True)
class WithoutAdapters:
    """The network with role `of`, called with its LoRA adapters off; takes no extra memory."""

    of: str


Network = Trains | Frozen | Average | WithoutAdapters


@dataclass(frozen=True)
class Setup:
    """The inputs of an objective, besides the config.

    device: of batches and networks.  sizes: the network's size config.  start: the network to train, with
    adapters attached.  teacher: the network of model.weights.  reference: that of model.start, without
    adapters.
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
    """value: scalar to minimise.  carry: passed to the step's later turns on the same clips."""

    value: Tensor
    log: LogValues
    carry: Any = None


class Objective:
    """Base class.  Options: dataclass of the config's objective section; objective.name is Options.name."""

    Options: ClassVar[type]
    from_scratch: ClassVar[bool] = False        # whether it can train without model.weights
    second_time: ClassVar[bool] = False         # whether it trains a flow map u(x_t, t, s)

    def __init__(self, cfg: Config, setup: Setup):
        self.cfg, self.options, self.setup = cfg, cfg.objective, setup

    def networks(self) -> dict[str, Network]:
        """Returns role -> network.  `student` must train; it and its average are exported."""
        return {STUDENT: Trains(self.setup.start, self.cfg.optim), AVERAGE: Average(STUDENT, self.cfg.ema)}

    def turns(self, step: int) -> tuple[str, ...]:
        """Returns the roles that this step updates, in order; a role may occur several times."""
        return (STUDENT,)

    def loss(self, turn: str, nets: Nets, batch: Batch, rng: torch.Generator, step: int,
             carry: Any = None) -> Loss:
        """Returns the loss of role `turn` on one micro-batch.  All random draws use rng, a CPU generator
        specific to turn and clips.  carry: Loss.carry of an earlier turn of this step, same clips."""
        raise NotImplementedError

    def source(self, clips: Source) -> Drawn:
        """Returns the source that training draws from.  clips: the source of the config's data section."""
        return clips

    def velocity(self, net: Any, x_t: Tensor, t: Tensor, condition: Condition,
                 guidance: float | Tensor = 1.0, s: Tensor | None = None) -> Tensor:
        """Returns the guided velocity v(x_t, t) of a network, or u(x_t, t, s) of a flow map."""
        return guided(lambda *inputs: self.setup.family.call(net, *inputs), x_t, t, condition, guidance, s)


@dataclass(frozen=True)
class Jump:
    """The student's v = F_theta(x_t, t) with its graph, and its loss.  carry: as in Loss.  real: latents that
    replace the clips as real samples of an adversary."""

    x_t: Tensor
    t: Tensor
    v: Tensor
    loss: Tensor
    log: LogValues
    carry: Any = None
    real: Tensor | None = None

    @property
    def x0(self) -> Tensor:
        """x0-hat = x_t - t v."""
        return self.x_t - path.over(self.t, self.v) * self.v


class Consistency(Objective):
    """Base of objectives whose student predicts x0; objectives/da.py can add an adversary to them."""

    def networks(self) -> dict[str, Network]:
        return super().networks() | {TEACHER: Frozen(self.setup.teacher)}

    def jump(self, nets: Nets, batch: Batch, rng: torch.Generator, step: int) -> Jump:
        """Returns the student's prediction at a drawn (x_t, t), with its loss."""
        raise NotImplementedError

    def x0(self, net: Any, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Returns x0-hat = x_t - t v(x_t, t) of a network."""
        return x_t - path.over(t, x_t) * self.velocity(net, x_t, t, condition)

    def loss(self, turn, nets, batch, rng, step, carry=None) -> Loss:
        jump = self.jump(nets, batch, rng, step)
        return Loss(jump.loss, jump.log, jump.carry)


def huber(d: Tensor, c: float) -> Tensor:
    """sqrt(d^2 + c^2) - c, elementwise."""
    return (d.square() + c * c).sqrt() - c
