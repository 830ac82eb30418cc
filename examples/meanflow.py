"""MeanFlow on a 2-D density: learn the average velocity over [r, t], then sample in one step.

    python examples/meanflow.py --steps 4000 --png meanflow.png

Path (Geng et al. 2025, arXiv 2505.13447): z_t = (1 - t) x + t e, velocity v = e - x.  The average velocity
u(z_t, r, t) = (1 / (t - r)) integral of v over [r, t] satisfies  u = v - (t - r) du/dt,  with the derivative
taken along (v, 0, 1).  One pass of jvp, with the tape on, gives u to train and du/dt to build its target
from:

    u, du = jvp(net, (z, r, t), (v, None, one))
"""

import argparse

import torch
from toy import Net, picture, spiral

from swiftvideo_fast import jvp


def times(n: int, rng: torch.Generator, equal: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """r <= t, uniform; for a share `equal` r = t, where the target is the velocity itself."""
    pair = torch.rand(n, 2, generator=rng).sort(1).values
    r, t = pair.unbind(1)
    return torch.where(torch.rand(n, generator=rng) < equal, t, r), t


def loss_of(net: Net, x: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted loss, and the squared error it weighs."""
    e = torch.randn(x.shape, generator=rng)
    r, t = times(len(x), rng)
    z, v = torch.lerp(x, e, t[:, None]), e - x
    u, du = jvp(net, (z, r, t), (v, None, torch.ones_like(t)))
    error = (u - (v - (t - r)[:, None] * du)).square().sum(1)   # du carries no gradient: nothing to detach
    return (error / (error.detach() + 1e-2)).mean(), error.mean()   # the paper's adaptive weight, p = 1


@torch.no_grad()
def sample(net: Net, n: int, steps: int, rng: torch.Generator) -> torch.Tensor:
    z, ladder = torch.randn(n, 2, generator=rng), torch.linspace(1, 0, steps + 1)
    for t, r in zip(ladder[:-1], ladder[1:], strict=True):
        z = z - (t - r) * net(z, r.expand(n), t.expand(n))
    return z


def train(steps: int, batch: int = 512, seed: int = 0) -> tuple[Net, list[float]]:
    torch.manual_seed(seed)
    rng, net = torch.Generator().manual_seed(seed), Net(times=2)
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=1e-3), []
    for _ in range(steps):
        loss, error = loss_of(net, spiral(batch, rng), rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(error.item())
    return net, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--png", default="meanflow.png")
    arguments = parser.parse_args()
    net, losses = train(arguments.steps)
    rng = torch.Generator().manual_seed(1)
    picture(arguments.png, {"data": spiral(4000, rng), "1 step": sample(net, 4000, 1, rng),
                            "4 steps": sample(net, 4000, 4, rng)}, losses)


if __name__ == "__main__":
    main()
