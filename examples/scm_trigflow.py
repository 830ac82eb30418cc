"""sCM in TrigFlow on a 2-D density: distil a teacher by continuous-time consistency; sample in a step or two.

    python examples/scm_trigflow.py --png scm.png              about a minute on a laptop

Path (Lu and Song 2024, arXiv 2410.11081): z_t = cos t x + sin t e, t in [0, pi/2].  F(z_t, t) starts as the
teacher, whose value is the velocity v.  The consistency function is f(z_t, t) = cos t z_t - sin t F(z_t, t);
its derivative along the teacher's path is what the tangent of F gives, and training drives it to zero:

    F, dF = jvp(net, (z, t), (v, one))
    g = -cos^2 t (F - v) - warm sin t cos t (z_t + dF),    g <- g / (|g| + c),    loss = |F - sg(F) - g|^2
"""

import argparse
import math
from copy import deepcopy

import torch
from toy import Net, apart, fit, picture, spiral

from swiftvideo_fast import jvp

C = 0.1                                                            # of the tangent's normalisation


def draw(n: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z_t, t, and cos t e - sin t x, whose mean given z_t is the velocity."""
    x, t = spiral(n, rng), math.pi / 2 * torch.rand(n, generator=rng)
    e, sin, cos = torch.randn(x.shape, generator=rng), t.sin()[:, None], t.cos()[:, None]
    return cos * x + sin * e, t, cos * e - sin * x


def flow_loss(net: Net, n: int, rng: torch.Generator) -> torch.Tensor:
    z, t, v = draw(n, rng)
    return (net(z, t) - v).square().sum(1).mean()


def consistency_loss(net: Net, teacher: Net, n: int, rng: torch.Generator, warm: float) -> torch.Tensor:
    """warm in [0, 1]: how much of the unstable term is let in."""
    z, t, _ = draw(n, rng)
    sin, cos = t.sin()[:, None], t.cos()[:, None]
    with torch.no_grad():
        v = teacher(z, t)
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


@torch.no_grad()
def follow(teacher: Net, n: int, steps: int, rng: torch.Generator) -> torch.Tensor:
    """From noise along the teacher's flow, on arcs of the path."""
    z, arc = torch.randn(n, 2, generator=rng), math.pi / 2 / steps
    for i in range(steps, 0, -1):
        z = math.cos(arc) * z - math.sin(arc) * teacher(z, torch.full((n,), i * arc))
    return z


def train(steps: int, batch: int = 512, seed: int = 0) -> tuple[Net, Net, list[float]]:
    """The teacher, the student and, along its training, how far its one-step samples are from the data."""
    torch.manual_seed(seed)
    rng, eye = (torch.Generator().manual_seed(seed + i) for i in range(2))
    teacher = Net(times=1)
    fit("teacher", teacher, lambda done: flow_loss(teacher, batch, rng), steps)
    net = deepcopy(teacher)
    curve = fit("student", net, lambda done: consistency_loss(net, teacher, batch, rng, min(1.0, 5 * done)),
                steps, watch=lambda: apart(sample(net, 1024, [math.pi / 2], eye), spiral(1024, eye)))
    return teacher, net, curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000, help="of the teacher, and as many of the student")
    parser.add_argument("--png", default="scm.png")
    arguments = parser.parse_args()
    teacher, net, curve = train(arguments.steps)
    rng = torch.Generator().manual_seed(1)
    picture(arguments.png, {"data": spiral(4000, rng), "teacher, 50 steps": follow(teacher, 4000, 50, rng),
                            "student, 2 steps": sample(net, 4000, [math.pi / 2, 1.0], rng),
                            "student, 1 step": sample(net, 4000, [math.pi / 2], rng)}, curve)


if __name__ == "__main__":
    main()
