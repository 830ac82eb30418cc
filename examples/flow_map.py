"""A flow map on a 2-D density: distil a flow-matching teacher into jumps from any t to any s (AYF, EMD form).

    python examples/flow_map.py --png flow_map.png             about a minute on a laptop

Path: z_t = (1 - t) x + t e.  The map f(z_t, s, t) = z_t + (s - t) F(z_t, s, t) jumps along the teacher's flow
from t to s; at s = t its F is the velocity.  Along the teacher's velocity v the jump must not depend on where
it starts (Sabour et al. 2025, arXiv 2506.14603): df/dt = 0, that is  F = v + (s - t) dF/dt,  the derivative
along (v, 0, 1):

    F, dF = jvp(net, (z, s, t), (v, None, one))
"""

import argparse
from copy import deepcopy

import torch
from toy import Net, apart, fit, flow_matching, noised, picture, spiral

from swiftvideo_fast import jvp


def map_loss(net: Net, teacher: Net, n: int, rng: torch.Generator, warm: float) -> torch.Tensor:
    """warm in [0, 1]: how much of the derivative is let in."""
    z, t, _ = noised(n, rng)
    s = t * torch.rand(n, generator=rng)
    with torch.no_grad():
        v = teacher(z, t, t)
    out, tangent = jvp(net, (z, s, t), (v, None, torch.ones_like(t)))
    g = v - out.detach() + warm * (s - t)[:, None] * tangent
    g = g / (g.norm(dim=1, keepdim=True) + 0.1)                    # sCM's normalised tangent
    return (out - out.detach() - g).square().sum(1).mean()


@torch.no_grad()
def sample(net: Net, n: int, steps: int, rng: torch.Generator) -> torch.Tensor:
    """From noise in `steps` jumps."""
    z, ladder = torch.randn(n, 2, generator=rng), torch.linspace(1, 0, steps + 1)
    for t, s in zip(ladder[:-1], ladder[1:], strict=True):
        z = z + (s - t) * net(z, s.expand(n), t.expand(n))
    return z


@torch.no_grad()
def follow(teacher: Net, n: int, steps: int, rng: torch.Generator) -> torch.Tensor:
    """From noise in Euler steps of the teacher's velocity."""
    z = torch.randn(n, 2, generator=rng)
    for t in torch.linspace(1, 0, steps + 1)[:-1]:
        z = z - teacher(z, t.expand(n), t.expand(n)) / steps
    return z


def train(steps: int, batch: int = 512, seed: int = 0) -> tuple[Net, Net, list[float]]:
    """The teacher, the student and, along its training, how far its one-jump samples are from the data."""
    torch.manual_seed(seed)
    rng, eye = (torch.Generator().manual_seed(seed + i) for i in range(2))
    teacher = flow_matching(steps, batch, rng)
    net = deepcopy(teacher)
    curve = fit("student", net, lambda done: map_loss(net, teacher, batch, rng, min(1.0, 5 * done)), steps,
                watch=lambda: apart(sample(net, 1024, 1, eye), spiral(1024, eye)))
    return teacher, net, curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000, help="of the teacher, and as many of the student")
    parser.add_argument("--png", default="flow_map.png")
    arguments = parser.parse_args()
    teacher, net, curve = train(arguments.steps)
    rng = torch.Generator().manual_seed(1)
    picture(arguments.png, {"data": spiral(4000, rng), "teacher, 50 steps": follow(teacher, 4000, 50, rng),
                            "student, 4 jumps": sample(net, 4000, 4, rng),
                            "student, 1 jump": sample(net, 4000, 1, rng)}, curve)


if __name__ == "__main__":
    main()
