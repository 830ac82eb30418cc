"""Flow map on a 2-D density: distils a flow-matching teacher into jumps from any t to any s (AYF, EMD form).

    python examples/flow_map.py --png flow_map.png             about a minute on a laptop

Path: z_t = (1 - t) x + t e.  The map f(z_t, s, t) = z_t + (s - t) F(z_t, s, t) jumps along the teacher's flow
from t to s; at s = t, F is the velocity.  Along the teacher's velocity v, f must not depend on t (Sabour et
al. 2025, arXiv 2506.14603): df/dt = 0, so  F = v + (s - t) dF/dt,  with the derivative along (v, 0, 1):

    F, dF = jvp(net, (z, s, t), (v, None, one))
"""

import argparse
from copy import deepcopy

import torch
from toy import Net, fit, flow_matching, noisy_point, plot, sliced_wasserstein, spiral

from swiftvideo_fast import jvp


def map_loss(net: Net, teacher: Net, n: int, rng: torch.Generator, warmup: float) -> torch.Tensor:
    """Returns the EMD loss.  warmup in [0, 1] scales the derivative term."""
    z, t, _ = noisy_point(n, rng)
    s = t * torch.rand(n, generator=rng)
    with torch.no_grad():
        v = teacher(z, t, t)
    out, tangent = jvp(net, (z, s, t), (v, None, torch.ones_like(t)))
    g = v - out.detach() + warmup * (s - t)[:, None] * tangent
    g = g / (g.norm(dim=1, keepdim=True) + 0.1)                    # tangent normalisation, as in sCM
    return (out - out.detach() - g).square().sum(1).mean()


@torch.no_grad()
def sample(net: Net, n: int, steps: int, rng: torch.Generator) -> torch.Tensor:
    """Returns n samples from noise in `steps` jumps."""
    z, times = torch.randn(n, 2, generator=rng), torch.linspace(1, 0, steps + 1)
    for t, s in zip(times[:-1], times[1:], strict=True):
        z = z + (s - t) * net(z, s.expand(n), t.expand(n))
    return z


@torch.no_grad()
def sample_teacher(teacher: Net, n: int, steps: int, rng: torch.Generator) -> torch.Tensor:
    """Returns n samples from noise by Euler steps of the teacher's velocity."""
    z = torch.randn(n, 2, generator=rng)
    for t in torch.linspace(1, 0, steps + 1)[:-1]:
        z = z - teacher(z, t.expand(n), t.expand(n)) / steps
    return z


def train(steps: int, batch: int = 512, seed: int = 0) -> tuple[Net, Net, list[float]]:
    """Returns teacher, student, and the distances of one-jump samples to the data over training."""
    torch.manual_seed(seed)
    rng, eval_rng = (torch.Generator().manual_seed(seed + i) for i in range(2))
    teacher = flow_matching(steps, batch, rng)
    net = deepcopy(teacher)
    curve = fit("student", net, lambda progress: map_loss(net, teacher, batch, rng, min(1.0, 5 * progress)),
                steps, lambda: sliced_wasserstein(sample(net, 1024, 1, eval_rng), spiral(1024, eval_rng)))
    return teacher, net, curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000, help="training steps of teacher and student each")
    parser.add_argument("--png", default="flow_map.png")
    arguments = parser.parse_args()
    teacher, net, curve = train(arguments.steps)
    rng = torch.Generator().manual_seed(1)
    plot(arguments.png, {"data": spiral(4000, rng),
                         "teacher, 50 steps": sample_teacher(teacher, 4000, 50, rng),
                         "student, 4 jumps": sample(net, 4000, 4, rng),
                         "student, 1 jump": sample(net, 4000, 1, rng)}, curve)


if __name__ == "__main__":
    main()
