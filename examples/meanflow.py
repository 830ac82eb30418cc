"""MeanFlow on a 2-D density: turns a flow-matching network into a one- or two-step sampler.

    python examples/meanflow.py --png meanflow.png             about a minute on a laptop

Path (Geng et al. 2025, arXiv 2505.13447): z_t = (1 - t) x + t e.  The average velocity
u(z_t, r, t) = (1 / (t - r)) integral of v over [r, t] satisfies  u = v - (t - r) du/dt,  with the derivative
taken along (v, 0, 1).  At r = t it is the velocity.  Training starts there (flow matching); a frozen copy of
that network is the teacher, which then provides v.  One jvp with grad enabled gives u, which is trained, and
du/dt, for its target:

    u, du = jvp(net, (z, r, t), (v, None, one))
"""

import argparse
from copy import deepcopy

import torch
from toy import Net, fit, flow_matching, noisy_point, plot, sliced_wasserstein, spiral

from swiftvideo_fast import jvp


def mean_loss(net: Net, teacher: Net, n: int, rng: torch.Generator) -> torch.Tensor:
    """Returns the MeanFlow loss on n points."""
    z, t, _ = noisy_point(n, rng)
    r = t * torch.rand(n, generator=rng)
    with torch.no_grad():
        v = teacher(z, t, t)
    u, du = jvp(net, (z, r, t), (v, None, torch.ones_like(t)))
    error = (u - (v - (t - r)[:, None] * du)).square().sum(1)   # du has no gradient: no detach needed
    return (error / (error.detach() + 1e-2)).mean()             # the paper's adaptive weight, p = 1


@torch.no_grad()
def sample(net: Net, n: int, steps: int, rng: torch.Generator, average: bool = True) -> torch.Tensor:
    """Returns n samples from noise, by jumps of the average velocity or Euler steps of the velocity."""
    z, times = torch.randn(n, 2, generator=rng), torch.linspace(1, 0, steps + 1)
    for t, r in zip(times[:-1], times[1:], strict=True):
        z = z - (t - r) * net(z, (r if average else t).expand(n), t.expand(n))
    return z


def train(steps: int, batch: int = 512, seed: int = 0) -> tuple[Net, Net, list[float]]:
    """Returns teacher, student, and the distances of one-step samples to the data over training."""
    torch.manual_seed(seed)
    rng, eval_rng = (torch.Generator().manual_seed(seed + i) for i in range(2))
    teacher = flow_matching(steps, batch, rng)
    net = deepcopy(teacher)
    curve = fit("student", net, lambda progress: mean_loss(net, teacher, batch, rng), steps,
                lambda: sliced_wasserstein(sample(net, 1024, 1, eval_rng), spiral(1024, eval_rng)))
    return teacher, net, curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000, help="training steps of teacher and student each")
    parser.add_argument("--png", default="meanflow.png")
    arguments = parser.parse_args()
    teacher, net, curve = train(arguments.steps)
    rng = torch.Generator().manual_seed(1)
    plot(arguments.png, {"data": spiral(4000, rng),
                         "teacher, 50 steps": sample(teacher, 4000, 50, rng, average=False),
                         "student, 4 steps": sample(net, 4000, 4, rng),
                         "student, 1 step": sample(net, 4000, 1, rng)}, curve)


if __name__ == "__main__":
    main()
