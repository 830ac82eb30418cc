"""sCM in TrigFlow on a 2-D density: consistency training without a teacher, then sampling in one or two
steps.

    python examples/scm_trigflow.py --steps 4000 --png scm.png

Path (Lu and Song 2024, arXiv 2410.11081): x_t = cos t x + sin t e, t in [0, pi/2], velocity v = cos t e - sin
t x. The consistency function is f(x_t, t) = cos t x_t - sin t F(x_t, t); its derivative along the path is
what the tangent of F gives, and training drives it to zero:

    g = -cos^2 t (F - v) - r sin t cos t (x_t + dF/dt),    g <- g / (|g| + c),    loss = |F - sg(F) - g|^2
"""

import argparse
import math

import torch
from toy import Net, apart, picture, spiral

from swiftvideo_fast import jvp

C = 0.1                                                            # of the tangent's normalisation


def loss_of(net: Net, x: torch.Tensor, rng: torch.Generator, warm: float) -> torch.Tensor:
    """warm in [0, 1]: r, how much of the unstable term is let in."""
    e = torch.randn(x.shape, generator=rng)
    t = torch.atan(torch.randn(len(x), generator=rng).mul(1.4).sub(0.4).exp())      # log-normal tan t
    sin, cos = t.sin()[:, None], t.cos()[:, None]
    z, v = cos * x + sin * e, cos * e - sin * x
    out, tangent = jvp(net, (z, t), (v, torch.ones_like(t)))
    g = -cos.square() * (out.detach() - v) - warm * sin * cos * (z + tangent)
    g = g / (g.norm(dim=1, keepdim=True) + C)
    return (out - out.detach() - g).square().sum(1).mean()


@torch.no_grad()
def sample(net: Net, n: int, ladder: list[float], rng: torch.Generator) -> torch.Tensor:
    """From noise: denoise at each t of the ladder, put noise back for the next."""
    x = torch.zeros(n, 2)
    for t in ladder:
        z = math.cos(t) * x + math.sin(t) * torch.randn(n, 2, generator=rng)
        x = math.cos(t) * z - math.sin(t) * net(z, torch.full((n,), t))
    return x


def train(steps: int, batch: int = 512, seed: int = 0) -> tuple[Net, list[float]]:
    """The network and, every step, how far its one-step samples are from the data."""
    torch.manual_seed(seed)
    rng, watch = (torch.Generator().manual_seed(seed + i) for i in range(2))
    net = Net(times=1)
    optimizer, curve = torch.optim.Adam(net.parameters(), lr=1e-3), []
    for step in range(steps):
        loss = loss_of(net, spiral(batch, rng), rng, warm=min(1.0, 2 * step / max(1, steps)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(apart(sample(net, 1024, [1.56], watch), spiral(1024, watch)))
    return net, curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--png", default="scm.png")
    arguments = parser.parse_args()
    net, curve = train(arguments.steps)
    rng = torch.Generator().manual_seed(1)
    picture(arguments.png, {"data": spiral(4000, rng), "1 step": sample(net, 4000, [1.56], rng),
                            "2 steps": sample(net, 4000, [1.56, 0.8], rng)}, curve)


if __name__ == "__main__":
    main()
