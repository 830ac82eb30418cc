"""Samplers over a ladder of times: Euler along the velocity, consistency (predict x0, add fresh noise), and
flow-map jumps.

Which sampler suits which student: Euler keeps its initial noise.  It suits a *partly* distilled network (the
paper's); an exactly converged consistency network over-shoots: on N(0, 1) data the standard deviation is 1.41
times too large at 2 steps and 1.66 at 4.  A converged consistency network needs fresh noise.  A flow map is
exact between any two times, with its initial noise.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from swiftvideo_fast import path
from swiftvideo_fast.config import Sample
from swiftvideo_fast.models.condition import Condition, guided

Velocity = Callable[[Tensor, Tensor], Tensor]       # (x_t, t (B,)) -> v
Map = Callable[[Tensor, Tensor, Tensor], Tensor]    # (x_t, t (B,), s (B,)) -> u
Rng = torch.Generator | Sequence[torch.Generator]   # one for the batch, or one per clip


def generate(call: Callable[..., Tensor], x1: Tensor, condition: Condition,
             steps: int, options: Sample, rng: Rng) -> Tensor:
    """Returns latents (B, C, T, H, W) sampled from noise x1 of that shape.

    call(x_t, t, condition): the velocity; s is appended for sampler flowmap.  rng: for the fresh noise.
    """
    def v(x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        return guided(call, x_t, t, condition, options.guidance, s)

    times = path.ladder(steps, options.shift)
    if options.sampler == "consistency":
        return consistency(v, x1, times, rng)
    return {"euler": euler, "flowmap": flowmap}[options.sampler](v, x1, times)


@torch.no_grad()
def euler(velocity: Velocity, x1: Tensor, times: list[float]) -> Tensor:
    """x_s = x_t - (t - s) v(x_t, t), down the ladder."""
    x = x1
    for t, s in zip(times, times[1:], strict=False):
        x = x - (t - s) * velocity(x, x.new_full((len(x),), t))
    return x


@torch.no_grad()
def flowmap(u: Map, x1: Tensor, times: list[float]) -> Tensor:
    """x_s = x_t - (t - s) u(x_t, t, s), down the ladder."""
    x = x1
    for t, s in zip(times, times[1:], strict=False):
        x = x - (t - s) * u(x, x.new_full((len(x),), t), x.new_full((len(x),), s))
    return x


@torch.no_grad()
def consistency(velocity: Velocity, x1: Tensor, times: list[float], rng: Rng) -> Tensor:
    """x0 = x_t - t v(x_t, t), then x_s = (1 - s) x0 + s e with fresh e ~ N(0, I), down the ladder."""
    x = x1
    for t, s in zip(times, times[1:], strict=False):
        x0 = x - t * velocity(x, x.new_full((len(x),), t))
        x = (1 - s) * x0 + s * noise(x.shape, rng).to(x) if s > 0 else x0
    return x


def noise(shape: Sequence[int], rng: Rng) -> Tensor:
    """Draws N(0, I) of shape (B, ...).  With one generator per clip, noise is independent of the batch."""
    if isinstance(rng, torch.Generator):
        return torch.randn(*shape, generator=rng)
    return torch.stack([torch.randn(*shape[1:], generator=one) for one in rng])
