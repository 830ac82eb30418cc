"""The flow path x_t = (1 - t) x0 + t x1 (eq. 1): where on it we train, and the ladders down it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Point:
    """A draw on the path.  x_t, x0, x1: (B, 16, T, H, W).  t: (B,) in (0, 1)."""

    x0: Tensor
    x1: Tensor
    t: Tensor
    x_t: Tensor

    @property
    def velocity(self) -> Tensor:
        """v = x1 - x0, the target of flow matching (eq. 2)."""
        return self.x1 - self.x0


def draw(x0: Tensor, rng: torch.Generator, *, mean: float, std: float, uniform: bool = False) -> Point:
    """x1 ~ N(0, I), t = sigmoid(n) with n ~ N(mean, std^2), or t ~ U(0, 1) (Table 2d).

    rng is the CPU's, so that a draw is the same on every device; x1 and t are where x0 is.
    """
    x1 = torch.randn(x0.shape, generator=rng).to(x0)
    B = len(x0)
    t = torch.rand(B, generator=rng) if uniform else (mean + std * torch.randn(B, generator=rng)).sigmoid()
    t = t.to(x0.device)
    return Point(x0, x1, t, interpolate(x0, x1, t))


def interpolate(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """x_t of eq. 1; t is (B,)."""
    t = over(t, x0)
    return (1 - t) * x0 + t * x1


def over(t_B: Tensor, x: Tensor) -> Tensor:
    """t (B,) viewed so that it multiplies x (B, ...)."""
    return t_B.view(-1, *[1] * (x.dim() - 1))


def ladder(steps: int, shift: float = 1.0) -> list[float]:
    """Times 1 = t_0 > ... > t_steps = 0: even, then shifted, t -> s t / (1 + (s - 1) t) (Wan's ladder)."""
    if steps < 1 or shift <= 0:
        raise ValueError(f"ladder: steps = {steps}, shift = {shift}; want steps >= 1 and shift > 0")
    even = [1 - i / steps for i in range(steps + 1)]
    return [shift * t / (1 + (shift - 1) * t) for t in even]
