"""Objectives, sources and families for tests, each a class here and an entry of TABLES."""

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from swiftvideo_fast import path
from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.config import Optim
from swiftvideo_fast.config.strict import POSITIVE, option
from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.data.source import SourceOptions, draw_rows
from swiftvideo_fast.models import weights
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.models.family import Latent
from swiftvideo_fast.models.toy.family import ToyFamily
from swiftvideo_fast.objectives.base import STUDENT, Loss, Network, Objective, Trains
from swiftvideo_fast.seeds import generator
from swiftvideo_fast.train import recipe

CHASER = "chaser"


@dataclass(frozen=True)
class Chase:
    """moves: updates of the second network per student update.  explode: step from which its loss is inf."""

    name: ClassVar[str] = "chase"
    moves: int = option(POSITIVE, 4)
    explode: int = 10**6
    steps: int = 3              # a field that another objective has with another type


class Chasing(Objective):
    """The student learns velocities; a second network, updated four times per step, imitates the student."""

    Options = Chase

    def networks(self) -> dict[str, Network]:
        return super().networks() | {CHASER: Trains(self.build, Optim(1e-2, "constant", max_skips=1))}

    def build(self) -> nn.Module:
        net = nn.Sequential(nn.Linear(16, 8), nn.SiLU(), nn.Linear(8, 16))
        for p in net.parameters():
            nn.init.normal_(p, std=0.1, generator=generator(self.cfg.run.seed, "chaser", p.dim()))
        return net

    def turns(self, step: int) -> tuple[str, ...]:
        return STUDENT, *[CHASER] * self.options.moves

    def loss(self, turn, nets, batch, rng, step, carry=None):
        if turn == STUDENT:
            point = path.draw(batch.x0, rng, self.cfg.times)
            v = self.velocity(nets[STUDENT], point.x_t, point.t, batch.condition)
            return Loss((v - point.velocity).square().mean(), {}, (point.x_t, v.detach()))
        x_t, v = carry
        noise = 0.1 * path.draw_noise(x_t, rng)         # another in each of its four turns
        found = nets[CHASER]((x_t + noise).mT.flatten(2).mT[..., :16])
        value = (found - v.mT.flatten(2).mT[..., :16]).square().mean()
        value = value * (float("inf") if step >= self.options.explode else 1)
        return Loss(value, {"drawn": noise.mean().item()})


@dataclass(frozen=True, kw_only=True)
class WaveOptions(SourceOptions):
    name: ClassVar[str] = "waves"
    length: int = option(POSITIVE, 5)

    def shape(self, latent: Latent) -> tuple[int, int, int]:
        return latent.shape(self.length, 16, 16, "data")


class Waves:
    """A source without storage: each clip is a plane wave determined by its number."""

    Options = WaveOptions
    prefetch = False

    def __init__(self, options: WaveOptions, codec: Any, seed: int, pixels: bool = False):
        self.options, self.codec = options, codec

    def draw(self, count: int, seed: int, position: int) -> Batch:
        return self.of(draw_rows(100, count, seed, position).tolist())

    def clips(self, split: str, count: int, seed: int) -> Batch:
        return self.of(range(100, 100 + count))

    def summary(self) -> str:
        return "waves without end"

    def close(self) -> None: ...

    def of(self, numbers) -> Batch:
        x = torch.linspace(-1, 1, 16)
        clips = torch.stack([torch.sin(n * x).expand(3, self.options.length, 16, 16) for n in numbers])
        x0, condition = self.codec.encode(clips, [f"wave {n}" for n in numbers])
        return Batch(x0, condition, [f"wave {n}" for n in numbers])


@dataclass(frozen=True)
class BarSizes:
    width: int
    text_dim: int = 8


class Bar(nn.Module):
    """A network with another signature: keywords only, time first, one vector of text."""

    def __init__(self, config: BarSizes):
        super().__init__()
        self.config = config
        self.mix = nn.Linear(16 + 16 + 1 + config.text_dim, config.width)
        self.out = nn.Linear(config.width, 16)

    def forward(self, *, time_B: Tensor, words_BE: Tensor, latent_BNC: Tensor, given_BNC: Tensor) -> Tensor:
        N = latent_BNC.shape[1]
        given = torch.cat([time_B[:, None], words_BE], 1)[:, None].expand(-1, N, -1)
        return self.out(torch.tanh(self.mix(torch.cat([latent_BNC, given_BNC, given], 2))))


class BarFamily:
    """A models/family.py Family with the demo's codec."""

    name = "bar"
    latent = ToyFamily.latent
    presets = {"short": BarSizes(12)}

    def network(self, sizes: BarSizes) -> Bar:
        return Bar(sizes)

    def initialise(self, net: Bar, rng: torch.Generator) -> None:
        for p in net.parameters():
            nn.init.normal_(p, std=0.2, generator=rng)

    def call(self, net: Any, x_t: Tensor, t: Tensor, condition: Condition, s: Tensor | None = None) -> Tensor:
        B, C, *sides = x_t.shape
        rows = partial(torch.flatten, start_dim=2)
        out = net(time_B=t, words_BE=condition.text.mean(1), latent_BNC=rows(x_t).mT,
                  given_BNC=rows(condition.frames[:, 4:]).mT)
        return out.mT.reshape(B, C, *sides)

    def sizes(self, file) -> BarSizes:
        return BarSizes(**json.loads(weights.read(file)[1]["config"]))

    def load(self, file, *, mapped: bool = False, dtype: torch.dtype = torch.float32) -> Bar:
        net = Bar(self.sizes(file))
        net.load_state_dict(load_file(file))
        return net

    def save(self, net: nn.Module, file, **about: Any) -> None:
        with atomic_write(file) as tmp:
            save_file(net.state_dict(), tmp, {"config": json.dumps(asdict(net.config))})

    def codec(self, model, sizes):
        return ToyFamily().codec(model, sizes)


TABLES = replace(tiny.TABLES, objectives=recipe.TABLES.objectives | recipe.by_name(Chasing),
                 sources=tiny.TABLES.sources | recipe.by_name(Waves),
                 families=tiny.TABLES.families | {"bar": BarFamily()})
train = partial(tiny.train, tables=TABLES)
