"""Mean and covariance of features in float64, accumulated over batches, merged over ranks, cached in files.

    n = na + nb,   m = ma + (nb / n) e,   S = Sa + Sb + (na nb / n) e e',   e = mb - ma                  (1)

S is the sum of outer products of deviations from the mean.  (1) (Chan, Golub, LeVeque 1979) merges two sets
without cancellation of large numbers.  The clip at position p of its set belongs to group p % GROUPS, and
each group has separate moments: frechet.estimate leaves out one group at a time.  Memory is independent of
the number of clips: GROUPS D^2 numbers, 254 MB at D = 1408.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from swiftvideo_fast.atomic import atomic_write

GROUPS = 16


@dataclass(frozen=True)
class Gaussian:
    """mean (D,), covariance (D, D) float64 with ddof 0; fitted to `count` clips."""

    mean: Tensor
    covariance: Tensor
    count: int


class Moments:
    """counts (G,) int64, means (G, D), scatters (G, D, D) float64 on the CPU, of all clips so far."""

    def __init__(self, features: int):
        if features < 1:
            raise ValueError(f"Moments: features is {features}; want at least 1")
        self.counts = torch.zeros(GROUPS, dtype=torch.int64)
        self.means = torch.zeros(GROUPS, features, dtype=torch.float64)
        self.scatters = torch.zeros(GROUPS, features, features, dtype=torch.float64)

    @property
    def features(self) -> int:
        return self.means.shape[1]

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    def update(self, features_BD: Tensor, positions_B: Iterable[int] | Tensor | None = None) -> None:
        """Adds a batch.  positions_B: positions in the full set, if split over ranks; default: consecutive.
        ValueError, and nothing is added, for a wrong shape or non-finite values.
        """
        if features_BD.ndim != 2 or features_BD.shape[1] != self.features:
            raise ValueError(f"update: features are {tuple(features_BD.shape)}; "
                             f"want (clips, {self.features})")
        x = features_BD.detach().to("cpu", torch.float64)
        bad = (~x.isfinite().all(1)).sum().item()
        if bad:
            raise ValueError(f"update: {bad} of {len(x)} clips have features that are NaN or infinite")
        if positions_B is None:
            positions_B = range(self.count, self.count + len(x))
        positions = torch.as_tensor(positions_B if isinstance(positions_B, Tensor) else list(positions_B),
                                    dtype=torch.int64, device="cpu")
        if positions.shape != (len(x),) or (positions < 0).any():
            raise ValueError(f"update: positions are {tuple(positions.shape)} {positions.tolist()[:3]}; want "
                             f"one per clip, ({len(x)},), none negative")
        group = positions % GROUPS
        for g in group.unique().tolist():
            part = x[group == g]
            mean = part.mean(0)
            self._add(g, len(part), mean, (part - mean).T @ (part - mean))

    def merge(self, other: "Moments") -> None:
        """Adds the clips of `other`.  ValueError for another number of features."""
        if other.features != self.features:
            raise ValueError(f"merge: one side has {self.features} features, the other {other.features}")
        for g in range(GROUPS):
            self._add(g, int(other.counts[g]), other.means[g], other.scatters[g])

    def gather(self) -> "Moments":
        """Returns the moments over all ranks, on every rank; a copy without torch.distributed.

        Every rank must call it, also one without clips.
        """
        whole = Moments(self.features)
        if not _distributed():
            whole.merge(self)
            return whole
        widths = [None] * dist.get_world_size()
        dist.all_gather_object(widths, self.features)
        if len(set(widths)) > 1:
            raise ValueError(f"gather: the ranks have {widths} features; want the same on each")
        whole.counts = _sum(self.counts)
        weight = self.counts / whole.counts.clamp(min=1)
        whole.means = _sum(weight[:, None] * self.means)
        e = self.means - whole.means
        for g in range(GROUPS):                             # one at a time, to save memory
            whole.scatters[g] = _sum(self.scatters[g] + self.counts[g] * torch.outer(e[g], e[g]))
        return whole

    def gaussian(self, without: int | None = None) -> Gaussian:
        """Returns the fit of all clips, or all but group `without`.  ValueError for fewer than two clips."""
        counts = self.counts.double()
        if without is not None:
            counts[without] = 0
        count, kept = int(counts.sum()), (counts > 0).double()
        if count < 2:
            raise ValueError(f"gaussian: {count} clips were seen; want at least 2 clips")
        mean = counts @ self.means / count
        e = self.means - mean
        scatter = torch.tensordot(kept, self.scatters, 1) + (counts[:, None] * e).T @ e             # (1)
        return Gaussian(mean, scatter / count, count)

    def _add(self, g: int, count: int, mean: Tensor, scatter: Tensor) -> None:
        """(1)"""
        if count == 0:
            return
        before = int(self.counts[g])
        e, share = mean - self.means[g], count / (before + count)
        self.counts[g] += count
        self.means[g] += share * e
        self.scatters[g] += scatter
        self.scatters[g].addr_(e, e, alpha=before * share)


def moments(extract: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Moments:
    """Returns the moments of features extract(batch), (B, D), over batches of clips, which are not kept."""
    seen = None
    for batch in batches:
        features = extract(batch)
        seen = seen or Moments(features.shape[-1])
        seen.update(features)
    if seen is None:
        raise ValueError("moments: no batch of clips; want at least one")
    return seen


def cached(folder: Path | str, what: dict[str, str | float], compute: Callable[[], Moments]) -> Moments:
    """Returns the moments cached in `folder` for `what`; on a miss, computes and caches them.

    what: everything they depend on (net, digest of its weights, clips, frames, fps, size); its digest names
    the file.  ValueError for a damaged file, which is not recomputed silently.  Call on all ranks: compute()
    returns a rank's share; rank 0 reads and writes.
    """
    named = json.dumps(what, sort_keys=True)
    file = Path(folder) / f"moments-{hashlib.sha256(named.encode()).hexdigest()[:16]}.safetensors"
    found = error = None
    if _rank() == 0 and file.exists():
        try:
            found = load(file)
        except ValueError as why:
            error = str(why)
    features, error = _from_first((found and found.features, error))
    if error:
        raise ValueError(error)
    if features:
        return (found or Moments(features)).gather()
    whole = compute().gather()
    if _rank() == 0:
        save(whole, file, named)
    return whole


def save(seen: Moments, file: Path | str, what: str = "") -> None:
    """Writes moments, atomically.  what: a description, stored in the file."""
    tensors = {"counts": seen.counts, "means": seen.means, "scatters": seen.scatters}
    with atomic_write(file) as tmp:
        save_file(tensors, str(tmp), {"what": what, "sha256": _digest(tensors)})


def load(file: Path | str) -> Moments:
    """Loads moments.  ValueError for a file that is missing, damaged or not moments."""
    try:
        with safe_open(str(file), "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in ("counts", "means", "scatters")}
            good = (opened.metadata() or {}).get("sha256") == _digest(tensors)
    except (OSError, SafetensorError) as why:
        raise ValueError(f"{file}: not moments of features ({why}); remove it to recompute them") from why
    shapes = [tuple(x.shape) for x in tensors.values()]
    D = shapes[1][-1]
    if not good or shapes != [(GROUPS,), (GROUPS, D), (GROUPS, D, D)]:
        raise ValueError(f"{file}: damaged moments of features; remove it to recompute them")
    seen = Moments(D)
    seen.counts, seen.means, seen.scatters = tensors.values()
    return seen


def _digest(tensors: dict[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for x in tensors.values():
        sha.update(x.contiguous().numpy())
    return sha.hexdigest()


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _rank() -> int:
    return dist.get_rank() if _distributed() else 0


def _sum(x: Tensor) -> Tensor:
    """Returns the sum over ranks, on the CPU; with NCCL, via this rank's GPU."""
    x = x.to("cuda" if dist.get_backend() == "nccl" else "cpu", copy=True)
    dist.all_reduce(x)
    return x.cpu()


def _from_first(value: tuple) -> tuple:
    """Returns rank 0's value on every rank."""
    held = [value]
    if _distributed():
        dist.broadcast_object_list(held, src=0)
    return held[0]
