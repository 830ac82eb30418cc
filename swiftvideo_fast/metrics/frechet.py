"""The Frechet distance between Gaussian fits of features: how far two sets of clips are as distributions.

    d = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)                                              (1)
    tr (C1 C2)^(1/2) = sum of the singular values of R1' R2,   C = R R'                               (2)

(2) takes roots by symmetric eigenvalues, so a singular covariance (fewer clips than features) costs no
accuracy.  float64; population covariance (ddof 0), as cd-fvd's.  With n clips of D features the distance
between two draws of the same distribution is about D / n of tr C above zero: compare at equal n.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """mean (D,), covariance (D, D) float64; fitted to `count` clips."""

    mean: Tensor
    covariance: Tensor
    count: int


def fit(features_BD: Tensor) -> Gaussian:
    """ValueError for fewer than two clips and for values that are not finite."""
    if features_BD.ndim != 2 or len(features_BD) < 2:
        raise ValueError(f"fit: features are {tuple(features_BD.shape)}; want (clips, features), "
                         "at least 2 clips")
    x = features_BD.double()
    bad = (~x.isfinite().all(1)).sum().item()
    if bad:
        raise ValueError(f"fit: {bad} of {len(x)} clips have features that are NaN or infinite")
    mean = x.mean(0)
    return Gaussian(mean, (x - mean).T @ (x - mean) / len(x), len(x))


def distance(a: Gaussian, b: Gaussian) -> float:
    """(1), in the features' unit squared."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"distance: one side has {len(a.mean)} features, the other {len(b.mean)}")
    trace_root = torch.linalg.svdvals(_root(a.covariance).T @ _root(b.covariance)).sum()           # (2)
    d = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * trace_root
    return max(d.item(), 0.0)


def _root(covariance: Tensor) -> Tensor:
    """R with R R' = C; eigenvalues below zero are rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()
