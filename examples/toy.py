"""Shared by the three examples: a 2-D spiral, a small network of (z, times), the training loop, the plot."""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn


def spiral(n: int, rng: torch.Generator) -> Tensor:
    """Returns n points (n, 2) of a thin spiral of 1.5 turns, with standard deviation about 1."""
    turn = math.pi * (0.5 + 3 * torch.rand(n, generator=rng).sqrt())
    point = 0.18 * torch.stack([turn * torch.cos(turn), turn * torch.sin(turn)], 1)
    return point + 0.03 * torch.randn(n, 2, generator=rng)


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 32) -> float:
    """Returns the sliced Wasserstein-1 distance of two point sets (n, 2)."""
    angle = torch.arange(directions) * math.pi / directions
    along = torch.stack([angle.cos(), angle.sin()])
    return ((a @ along).sort(0).values - (b @ along).sort(0).values).abs().mean().item()


class Net(nn.Module):
    """MLP of z (B, 2) and `times` times (B,) -> (B, 2), on random Fourier features of z.

    The features of z let a small network resolve the turns of the spiral.  Those of the times have low
    frequencies: the target contains the time derivative, which high frequencies would make large.
    """

    def __init__(self, times: int, width: int = 128, frequencies: int = 24):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, frequencies))
        self.body = nn.Sequential(
            nn.Linear(2 + 2 * frequencies + 4 * times, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, z: Tensor, *times: Tensor) -> Tensor:
        phase = z @ self.frequencies
        slow = [f(k * t)[:, None] for t in times for k in (1, 2) for f in (torch.sin, torch.cos)]
        return self.body(torch.cat([z, phase.sin(), phase.cos(), *slow], 1))


def fit(name: str, net: Net, loss_fn: Callable[[float], Tensor], steps: int,
        evaluate: Callable[[], float] | None = None, lr: float = 2e-3) -> list[float]:
    """Trains net on loss_fn(progress in [0, 1]); prints step, rate, loss and time left.

    Returns the values of `evaluate`, about fifty of them.
    """
    torch.set_num_threads(1)    # a second gains nothing on so small a network, and waits where a core is busy
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    begin, printed, measured = time.perf_counter(), 0.0, []
    for step in range(1, steps + 1):
        if evaluate and (step - 1) % max(1, steps // 50) == 0:
            measured.append(evaluate())
        loss = loss_fn(step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        spent = time.perf_counter() - begin
        if spent - printed > 2 or step == steps:
            printed = spent
            print(f"{name} {step}/{steps}  {step / spent:.0f} steps/s  loss {loss.item():.3f}"
                  + (f"  distance to data {measured[-1]:.3f}" if measured else "")
                  + f"  {(steps - step) * spent / step:.0f} s left", flush=True)
    return measured + ([evaluate()] if evaluate else [])


def noisy_point(n: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Returns z_t = (1 - t) x + t e, t, and e - x, whose mean given z_t is the velocity."""
    x, t = spiral(n, rng), torch.rand(n, generator=rng)
    e = torch.randn(x.shape, generator=rng)
    return torch.lerp(x, e, t[:, None]), t, e - x


def flow_matching(steps: int, batch: int, rng: torch.Generator) -> Net:
    """Trains and returns the teacher: a network of (z, s, t), the velocity at s = t."""
    net = Net(times=2)

    def loss_fn(progress: float) -> Tensor:
        z, t, v = noisy_point(batch, rng)
        return (net(z, t, t) - v).square().sum(1).mean()
    fit("teacher", net, loss_fn, steps)
    return net


def plot(path: str, samples: dict[str, Tensor], curve: list[float]) -> None:
    """Prints each sample's distance to the data; writes a PNG with one panel per sample and the curve.

    samples: {title: points (n, 2)}, the data first.  curve: one-step distances over training.
    """
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    n = len(samples) + 1
    figure, panels = pyplot.subplots(1, n, figsize=(3 * n, 3.4), layout="constrained")
    data = next(iter(samples.values()))
    other = spiral(len(data), torch.Generator().manual_seed(99))
    for panel, (title, points) in zip(panels, samples.items(), strict=False):
        distance = sliced_wasserstein(points, other)
        print(f"{title}: sliced Wasserstein distance to fresh data {distance:.3f}")
        panel.scatter(*points.T, s=2, linewidths=0, alpha=0.5)
        panel.set(title=f"{title}\ndistance {distance:.3f}", xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), xticks=[],
                  yticks=[], aspect="equal")
    panels[-1].plot(torch.linspace(0, 100, len(curve)), curve)
    panels[-1].set(title="1 step: distance to data", yscale="log", xlabel="% of training")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    print(f"wrote {path}")
