"""MeanFlow on a 2-D density: turn a flow-matching network into one that samples in a step or two.

    python examples/meanflow.py --png meanflow.png             about a minute on a laptop

Path (Geng et al. 2025, arXiv 2505.13447): z_t = (1 - t) x + t e.  The average velocity
u(z_t, r, t) = (1 / (t - r)) integral of v over [r, t] satisfies  u = v - (t - r) du/dt,  with the derivative
taken along (v, 0, 1).  At r = t it is the velocity: training starts there (flow matching), and a frozen copy
of that network is the teacher that gives v afterwards.  One pass of jvp, with the tape on, gives u to train
and du/dt to build its target from:

    u, du = jvp(net, (z, r, t), (v, None, one))
"""

import argparse
from copy import deepcopy

import torch
from toy import Net, apart, fit, flow_matching, noised, picture, spiral

from swiftvideo_fast import jvp


def mean_loss(net: Net, teacher: Net, n: int, rng: torch.Generator) -> torch.Tensor:
    z, t, _ = noised(n, rng)
    r = t * torch.rand(n, generator=rng)
    with torch.no_grad():
        v = teacher(z, t, t)
    u, du = jvp(net, (z, r, t), (v, None, torch.ones_like(t)))
    error = (u - (v - (t - r)[:, None] * du)).square().sum(1)   # du carries no gradient: nothing to detach
    return (error / (error.detach() + 1e-2)).mean()             # the paper's adaptive weight, p = 1


@torch.no_grad()
def sample(net: Net, n: int, steps: int, rng: torch.Generator, average: bool = True) -> torch.Tensor:
    """From noise in `steps` jumps of the average velocity, or Euler steps of the velocity."""
    z, ladder = torch.randn(n, 2, generator=rng), torch.linspace(1, 0, steps + 1)
    for t, r in zip(ladder[:-1], ladder[1:], strict=True):
        z = z - (t - r) * net(z, (r if average else t).expand(n), t.expand(n))
    return z


def train(steps: int, batch: int = 512, seed: int = 0) -> tuple[Net, Net, list[float]]:
    """The teacher, the student and, along its training, how far its one-step samples are from the data."""
    torch.manual_seed(seed)
    rng, eye = (torch.Generator().manual_seed(seed + i) for i in range(2))
    teacher = flow_matching(steps, batch, rng)
    net = deepcopy(teacher)
    curve = fit("student", net, lambda done: mean_loss(net, teacher, batch, rng), steps,
                watch=lambda: apart(sample(net, 1024, 1, eye), spiral(1024, eye)))
    return teacher, net, curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000, help="of the teacher, and as many of the student")
    parser.add_argument("--png", default="meanflow.png")
    arguments = parser.parse_args()
    teacher, net, curve = train(arguments.steps)
    rng = torch.Generator().manual_seed(1)
    picture(arguments.png, {"data": spiral(4000, rng),
                            "teacher, 50 steps": sample(teacher, 4000, 50, rng, average=False),
                            "student, 4 steps": sample(net, 4000, 4, rng),
                            "student, 1 step": sample(net, 4000, 1, rng)}, curve)


if __name__ == "__main__":
    main()
