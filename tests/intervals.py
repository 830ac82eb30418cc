"""Coverage of frechet.estimate's interval on draws of known distributions.  Run by hand:

    python tests/intervals.py               100 draws per case, one line per case; exit code 1 below 93
    python tests/intervals.py --draws 500
"""

import argparse
import sys

import torch

from swiftvideo_fast.metrics.frechet import Estimate, distance, estimate, fewest
from swiftvideo_fast.metrics.moments import Gaussian, Moments

NEEDED = 0.93
CASES = [(D, n, alike, spectrum, law) for D, n in ((1, 64), (8, 64), (32, 100), (64, 128), (64, 250))
         for alike in (True, False) for spectrum in ("flat", "steep") for law in ("gaussian", "skewed")]


def pair(features: int, alike: bool, spectrum: str, rng: torch.Generator) -> tuple[Gaussian, Gaussian]:
    """Returns two distributions, equal if `alike`; steep: variances fall as 1 / k^1.5."""
    power = {"flat": 0.0, "steep": -1.5}[spectrum]
    C = torch.arange(1, features + 1, dtype=torch.float64).pow(power).diag()
    a = Gaussian(torch.zeros(features, dtype=torch.float64), C, 0)
    if alike:
        return a, a
    A, shift = torch.randn(2, features, features, generator=rng, dtype=torch.float64)
    return a, Gaussian(shift[0] * C.diagonal().sqrt() / 2, A @ C @ A.T / features, 0)


def draw(of: Gaussian, clips: int, law: str, rng: torch.Generator) -> torch.Tensor:
    """Draws features (clips, D) with this mean and covariance; skewed: mixtures of exponential variables."""
    shape = (clips, len(of.mean))
    z = torch.randn(shape, generator=rng, dtype=torch.float64) if law == "gaussian" else \
        -torch.rand(shape, generator=rng, dtype=torch.float64).log() - 1
    values, vectors = torch.linalg.eigh(of.covariance)
    return of.mean + z @ (vectors * values.clamp(min=0).sqrt()).T


def of_draws(case: tuple, draws: int, seed: int) -> tuple[float, list[Estimate]]:
    """Returns (the true distance, one estimate per draw)."""
    features, clips, alike, spectrum, law = case
    rng = torch.Generator().manual_seed(seed)
    pair_of, found = pair(features, alike, spectrum, rng), []
    for _ in range(draws):
        sides = [Moments(features), Moments(features)]
        for seen, of in zip(sides, pair_of, strict=True):
            seen.update(draw(of, clips, law, rng))
        found.append(estimate(*sides))
    return distance(*pair_of), found


def covered(truth: float, found: list[Estimate]) -> float:
    return sum(e.low <= truth <= e.high for e in found) / len(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    worst = {"gaussian": 1.0, "skewed": 1.0}
    for case in CASES:
        truth, found = of_draws(case, args.draws, args.seed)
        D, n, alike, spectrum, law = case
        share = covered(truth, found)
        worst[law] = min(worst[law], share)
        plain, value = (sum(getattr(e, name) for e in found) / len(found) for name in ("distance", "value"))
        print(f"D {D:3} n {n:4} (want {fewest(D)}) {'same' if alike else 'two'} {spectrum} {law:8}: truth "
              f"{truth:.3f}, distance {plain:.3f}, estimate {value:.3f}, covered {share:.1%}", flush=True)
    print(f"fewest covered: {worst}")
    return int(worst["gaussian"] < NEEDED)


if __name__ == "__main__":
    sys.exit(main())
