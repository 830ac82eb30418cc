"""The flow path x_t = (1 - t) x0 + t x1 (eq. 1): training draws, and time ladders for sampling."""

from dataclasses import dataclass

import torch
from torch import Tensor

from swiftvideo_fast.config import Times


@dataclass(frozen=True)
class Point:
    """A drawn point of the path.  x_t, x0, x1: (B, C, T, H, W).  t: (B,) in (0, 1)."""

    x0: Tensor
    x1: Tensor
    t: Tensor
    x_t: Tensor

    @property
    def velocity(self) -> Tensor:
        """v = x1 - x0, the target of flow matching (eq. 2)."""
        return self.x1 - self.x0


def draw(x0: Tensor, rng: torch.Generator, times: Times) -> Point:
    """Draws x1 ~ N(0, I), then t.  rng: a CPU generator, so draws are equal on every device."""
    x1 = draw_noise(x0, rng)
    t = draw_times(x0, rng, times)
    return Point(x0, x1, t, interpolate(x0, x1, t))


def draw_noise(x0: Tensor, rng: torch.Generator) -> Tensor:
    """Draws x1 ~ N(0, I) with the shape, dtype and device of x0."""
    return torch.randn(x0.shape, generator=rng).to(x0)


def draw_times(x0: Tensor, rng: torch.Generator, times: Times) -> Tensor:
    """Draws t = sigmoid(n), n ~ N(mean, std^2), or t ~ U(0, 1) (Table 2d): (B,) fp32 on the device of x0."""
    B = len(x0)
    if times.uniform:
        return torch.rand(B, generator=rng).to(x0.device)
    return (times.mean + times.std * torch.randn(B, generator=rng)).sigmoid().to(x0.device)


def interpolate(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t x1 (eq. 1).  t: (B,)."""
    t = over(t, x0)
    return (1 - t) * x0 + t * x1


def over(t_B: Tensor, x: Tensor) -> Tensor:
    """Returns t (B,) viewed as (B, 1, ...), to broadcast over x (B, ...)."""
    return t_B.view(-1, *[1] * (x.dim() - 1))


def ladder(steps: int, shift: float = 1.0) -> list[float]:
    """Returns times 1 = t_0 > ... > t_steps = 0: even, then shifted, t -> s t / (1 + (s - 1) t), as Wan.

    ValueError unless steps >= 1 and shift > 0.
    """
    if steps < 1 or shift <= 0:
        raise ValueError(f"ladder: steps = {steps}, shift = {shift}; want steps >= 1 and shift > 0")
    even = [1 - i / steps for i in range(steps + 1)]
    return [shift * t / (1 + (shift - 1) * t) for t in even]
