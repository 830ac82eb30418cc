"""What the three loops share: a 2-D density, a small network of (z, times), and the picture."""

import math

import torch
from torch import Tensor, nn


def spiral(n: int, rng: torch.Generator) -> Tensor:
    """n points (n, 2) of a two-armed spiral, of standard deviation about 1."""
    turn = 3 * math.pi * torch.rand(n, generator=rng).sqrt()
    arm = torch.randint(2, (n,), generator=rng) * math.pi
    point = torch.stack([turn * torch.cos(turn + arm), turn * torch.sin(turn + arm)], 1) / 5
    return point + 0.04 * torch.randn(n, 2, generator=rng)


def apart(a: Tensor, b: Tensor, directions: int = 32) -> float:
    """Sliced Wasserstein-1 distance of two sets of as many points: what a loss with a moving target hides."""
    angle = torch.arange(directions) * math.pi / directions
    along = torch.stack([angle.cos(), angle.sin()])
    return ((a @ along).sort(0).values - (b @ along).sort(0).values).abs().mean().item()


class Net(nn.Module):
    """z (B, 2) and some times (B,) -> (B, 2).  Times enter through slow waves: the tangent stays tame."""

    def __init__(self, times: int, width: int = 128):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(2 + 4 * times, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, z: Tensor, *times: Tensor) -> Tensor:
        waves = [f(k * t)[:, None] for t in times for k in (1, 2) for f in (torch.sin, torch.cos)]
        return self.body(torch.cat([z, *waves], 1))


def picture(path: str, samples: dict[str, Tensor], losses: list[float]) -> None:
    """A PNG: one panel a set of points, and the curve."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    n = len(samples) + 1
    figure, panels = pyplot.subplots(1, n, figsize=(3 * n, 3), layout="constrained")
    for panel, (title, points) in zip(panels, samples.items(), strict=False):
        panel.scatter(*points.T, s=1, linewidths=0)
        panel.set(title=title, xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), xticks=[], yticks=[], aspect="equal")
    panels[-1].plot(losses)
    panels[-1].set(title="progress", yscale="log", xlabel="step")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
