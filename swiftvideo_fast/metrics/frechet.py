"""The Frechet distance between Gaussian fits of features, and its unbiased estimate.

    d = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)                                              (1)
    tr (C1 C2)^(1/2) = sum of the singular values of R1' R2,   C = R R'                               (2)
    u = G d - sum_g (1 - s_g) d_g                                                                     (3)
    h = t sqrt(1/G sum_g s_g / (1 - s_g) (p_g - u)^2),   p_g = (d - (1 - s_g) d_g) / s_g               (4)

(2) takes roots by symmetric eigenvalues, so a singular covariance (fewer clips than features) does not lose
accuracy.  float64; population covariance (ddof 0), as cd-fvd.

d is biased: between two draws of n clips of one distribution it is about D / n of tr C, so it is comparable
at equal n only.  The bias is nearly linear in 1/n, so the delete-a-group jackknife removes it: d_g leaves out
group g, a fraction s_g of the clips, on both sides (3).  The groups' spread gives the interval (4) (Busing,
Meijer, van der Leeden 1999, for unequal groups), with t Student's 99 % quantile for G - 1 degrees of freedom:
`python tests/intervals.py` counts its coverage.  Both sides leave out the same positions, so clips at equal
positions may be dependent (samples of one first frame); clips of one set are assumed independent.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from swiftvideo_fast.metrics.moments import GROUPS, Gaussian, Moments

T_QUANTILE = 2.6024802950111    # Student's 99 % quantile with GROUPS - 1 degrees of freedom
CLIPS_PER_FEATURE = 2           # below this the bias is not linear in 1/n
CLIPS_PER_GROUP = 4


@dataclass(frozen=True)
class Estimate:
    """distance: (1), biased upwards.  value: (3), unbiased, possibly negative.  low, high: value -+ h."""

    distance: float
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def fit(features_BD: Tensor) -> Gaussian:
    """Fits a Gaussian to features (B, D).  ValueError for fewer than two clips or non-finite values."""
    if features_BD.ndim != 2 or len(features_BD) < 2:
        raise ValueError(f"fit: features are {tuple(features_BD.shape)}; want (clips, features), "
                         "at least 2 clips")
    seen = Moments(features_BD.shape[1])
    seen.update(features_BD)
    return seen.gaussian()


def distance(a: Gaussian, b: Gaussian) -> float:
    """Returns (1), in squared units of the features.  ValueError for different numbers of features."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"distance: one side has {len(a.mean)} features, the other {len(b.mean)}")
    return max(_distance(a, b), 0.0)


def estimate(a: Moments, b: Moments) -> Estimate:
    """Returns (3) with the interval (4).  ValueError for fewer than fewest(D) clips on a side."""
    if a.features != b.features:
        raise ValueError(f"estimate: one side has {a.features} features, the other {b.features}")
    few, want = min(a.count, b.count), fewest(a.features)
    if few < want:
        raise ValueError(f"estimate: {few} clips for {a.features} features; want at least {want} a side, or "
                         "use `distance`, which is biased upwards")
    if min(a.counts.min(), b.counts.min()) == 0:
        raise ValueError(f"estimate: clips fill {(a.counts > 0).sum()} and {(b.counts > 0).sum()} of "
                         f"{GROUPS} groups; give `update` their positions in the whole set")
    d = _distance(a.gaussian(), b.gaussian())
    d_G = torch.tensor([_distance(a.gaussian(g), b.gaussian(g)) for g in range(GROUPS)], dtype=torch.float64)
    s_G = (a.counts / a.count + b.counts / b.count).double() / 2
    value = GROUPS * d - ((1 - s_G) * d_G).sum()                                                  # (3)
    p_G = (d - (1 - s_G) * d_G) / s_G
    half = T_QUANTILE * (s_G / (1 - s_G) * (p_G - value).square()).mean().sqrt()                 # (4)
    return Estimate(max(d, 0.0), value.item(), (value - half).item(), (value + half).item())


def fewest(features: int) -> int:
    """Returns the minimum number of clips per side for an estimate."""
    return max(CLIPS_PER_FEATURE * features, CLIPS_PER_GROUP * GROUPS)


def _distance(a: Gaussian, b: Gaussian) -> float:
    trace_root = torch.linalg.svdvals(_root(a.covariance).T @ _root(b.covariance)).sum()           # (2)
    d = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * trace_root
    return d.item()


def _root(covariance: Tensor) -> Tensor:
    """Returns R with R R' = C; negative eigenvalues, from rounding, are set to zero."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()
