"""sCM with TrigFlow on a 2-D density: distils a teacher by continuous-time consistency; one or two steps.

    python examples/scm_trigflow.py --png scm.png              about a minute on a laptop

Path (Lu and Song 2024, arXiv 2410.11081): z_t = cos t x + sin t e, t in [0, pi/2].  F(z_t, t) is initialised
with the teacher, the velocity v.  The consistency function is f(z_t, t) = cos t z_t - sin t F(z_t, t).
Training drives its derivative along the teacher's path, computed from the tangent of F, to zero:

    F, dF = jvp(net, (z, t), (v, one))
    g = -cos^2 t (F - v) - r sin t cos t (z_t + dF),    g <- g / (|g| + c),    loss = |F - sg(F) - g|^2
"""

import argparse
import math
from copy import deepcopy

import torch
from toy import Net, fit, plot, sliced_wasserstein, spiral

from swiftvideo_fast import jvp

C = 0.1                                                            # tangent normalisation constant


def draw(n: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns z_t, t, and cos t e - sin t x, whose mean given z_t is the velocity."""
    x, t = spiral(n, rng), math.pi / 2 * torch.rand(n, generator=rng)
    e, sin, cos = torch.randn(x.shape, generator=rng), t.sin()[:, None], t.cos()[:, None]
    return cos * x + sin * e, t, cos * e - sin * x


def flow_loss(net: Net, n: int, rng: torch.Generator) -> torch.Tensor:
    """Returns the flow-matching loss on n points."""
    z, t, v = draw(n, rng)
    return (net(z, t) - v).square().sum(1).mean()


def consistency_loss(net: Net, teacher: Net, n: int, rng: torch.Generator, warmup: float) -> torch.Tensor:
    """Returns the sCM loss.  warmup, r above, in [0, 1] scales the unstable term."""
    z, t, _ = draw(n, rng)
    sin, cos = t.sin()[:, None], t.cos()[:, None]
    with torch.no_grad():
        v = teacher(z, t)
    out, tangent = jvp(net, (z, t), (v, torch.ones_like(t)))
    g = -cos.square() * (out.detach() - v) - warmup * sin * cos * (z + tangent)
    g = g / (g.norm(dim=1, keepdim=True) + C)
    return (out - out.detach() - g).square().sum(1).mean()


@torch.no_grad()
def sample(net: Net, n: int, times: list[float], rng: torch.Generator) -> torch.Tensor:
    """Returns n samples from noise: denoises at each t, renoises to the next."""
    x = torch.zeros(n, 2)
    for t in times:
        z = math.cos(t) * x + math.sin(t) * torch.randn(n, 2, generator=rng)
        x = math.cos(t) * z - math.sin(t) * net(z, torch.full((n,), t))
    return x


@torch.no_grad()
def sample_teacher(teacher: Net, n: int, steps: int, rng: torch.Generator) -> torch.Tensor:
    """Returns n samples from noise along the teacher's flow, in steps of equal arc."""
    z, arc = torch.randn(n, 2, generator=rng), math.pi / 2 / steps
    for i in range(steps, 0, -1):
        z = math.cos(arc) * z - math.sin(arc) * teacher(z, torch.full((n,), i * arc))
    return z


def train(steps: int, batch: int = 512, seed: int = 0) -> tuple[Net, Net, list[float]]:
    """Returns teacher, student, and the distances of one-step samples to the data over training."""
    torch.manual_seed(seed)
    rng, eval_rng = (torch.Generator().manual_seed(seed + i) for i in range(2))
    teacher = Net(times=1)
    fit("teacher", teacher, lambda progress: flow_loss(teacher, batch, rng), steps)
    net = deepcopy(teacher)

    def loss_fn(progress: float) -> torch.Tensor:
        return consistency_loss(net, teacher, batch, rng, min(1.0, 5 * progress))

    def evaluate() -> float:
        return sliced_wasserstein(sample(net, 1024, [math.pi / 2], eval_rng), spiral(1024, eval_rng))
    curve = fit("student", net, loss_fn, steps, evaluate)
    return teacher, net, curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000, help="training steps of teacher and student each")
    parser.add_argument("--png", default="scm.png")
    arguments = parser.parse_args()
    teacher, net, curve = train(arguments.steps)
    rng = torch.Generator().manual_seed(1)
    plot(arguments.png, {"data": spiral(4000, rng),
                         "teacher, 50 steps": sample_teacher(teacher, 4000, 50, rng),
                         "student, 2 steps": sample(net, 4000, [math.pi / 2, 1.0], rng),
                         "student, 1 step": sample(net, 4000, [math.pi / 2], rng)}, curve)


if __name__ == "__main__":
    main()
