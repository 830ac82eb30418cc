"""A flow map on a 2-D density: distil a flow-matching teacher into jumps from any t to any s (AYF, EMD form).

    python examples/flow_map.py --steps 4000 --png flow_map.png

Path: x_t = (1 - t) x + t e.  The map f(x_t, t, s) = x_t + (s - t) F(x_t, t, s) jumps along the teacher's flow
from t to s; at s = t its F is the velocity.  Along the teacher's velocity v the jump must not depend on where
it starts (Sabour et al. 2025, arXiv 2506.14603): df/dt = 0, that is  F = v + (s - t) dF/dt,  the derivative
along (v, 1, 0):

    F, dF = jvp(net, (x_t, t, s), (v, one, None))
"""

import argparse

import torch
from toy import Net, picture, spiral

from swiftvideo_fast import jvp


def draw(n: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Data, its noised form x_t, t."""
    x, t = spiral(n, rng), torch.rand(n, generator=rng)
    return x, torch.lerp(x, torch.randn(x.shape, generator=rng), t[:, None]), t


def teacher_loss(net: Net, n: int, rng: torch.Generator) -> torch.Tensor:
    x, z, t = draw(n, rng)
    keep = t > 0.02                                                # v = (x_t - x) / t
    return (net(z, t) - (z - x) / t[:, None])[keep].square().sum(1).mean()


def map_loss(net: Net, teacher: Net, n: int, rng: torch.Generator) -> torch.Tensor:
    _, z, t = draw(n, rng)
    s = t * torch.rand(n, generator=rng)
    with torch.no_grad():
        v = teacher(z, t)
    out, tangent = jvp(net, (z, t, s), (v, torch.ones_like(t), None))
    g = v - out.detach() + (s - t)[:, None] * tangent
    g = g / (g.norm(dim=1, keepdim=True) + 0.1)                    # sCM's normalised tangent
    return (out - out.detach() - g).square().sum(1).mean()


@torch.no_grad()
def mismatch(net: Net, teacher: Net, rng: torch.Generator, n: int = 1024, steps: int = 16) -> float:
    """Mean squared distance of the jump from 1 to 0 to `steps` Euler steps of the teacher."""
    z = start = torch.randn(n, 2, generator=rng)
    one, zero = torch.ones(n), torch.zeros(n)
    for i in range(steps):
        z = z - teacher(z, torch.full((n,), 1 - i / steps)) / steps
    return (start - net(start, one, zero) - z).square().sum(1).mean().item()


@torch.no_grad()
def sample(net: Net, n: int, steps: int, rng: torch.Generator) -> torch.Tensor:
    z, ladder = torch.randn(n, 2, generator=rng), torch.linspace(1, 0, steps + 1)
    for t, s in zip(ladder[:-1], ladder[1:], strict=True):
        z = z + (s - t) * net(z, t.expand(n), s.expand(n))
    return z


def fit(net: Net, loss_of, steps: int, watch=lambda: None) -> list:
    optimizer, curve = torch.optim.Adam(net.parameters(), lr=1e-3), []
    for _ in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(watch())
    return curve


def train(steps: int, batch: int = 512, seed: int = 0) -> tuple[Net, list[float]]:
    """The student and, every step, its mismatch with the teacher."""
    torch.manual_seed(seed)
    rng, eye = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    teacher, net = Net(times=1), Net(times=2)
    fit(teacher, lambda: teacher_loss(teacher, batch, rng), steps)
    curve = fit(net, lambda: map_loss(net, teacher, batch, rng), steps, lambda: mismatch(net, teacher, eye))
    return net, curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--png", default="flow_map.png")
    arguments = parser.parse_args()
    net, curve = train(arguments.steps)
    rng = torch.Generator().manual_seed(1)
    picture(arguments.png, {"data": spiral(4000, rng), "1 jump": sample(net, 4000, 1, rng),
                            "4 jumps": sample(net, 4000, 4, rng)}, curve)


if __name__ == "__main__":
    main()
