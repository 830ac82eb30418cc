"""The processes that test_moments.py starts."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from swiftvideo_fast.metrics import moments
from swiftvideo_fast.metrics.moments import Moments


def share(x: torch.Tensor, rank: int, world: int) -> Moments:
    """Returns the moments of every (world - 1)-th clip; the last rank has no clips."""
    positions = torch.arange(rank, len(x), world - 1) if rank < world - 1 else torch.arange(0)
    seen = Moments(x.shape[1])
    seen.update(x[positions], positions)
    return seen


def gather(x: torch.Tensor, folder: Path) -> None:
    """Gathered moments; then a cache: the first call computes, the second reads, and a damaged file is one
    error on every rank."""
    dist.init_process_group("gloo")
    rank, world, calls = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), []

    def computed():
        calls.append(rank)
        return share(x, rank, world)

    def error_of(call):
        with pytest.raises(ValueError) as caught:
            call()
        return str(caught.value)

    moments.save(share(x, rank, world).gather(), folder / f"{rank}-gathered.safetensors")
    errors = [error_of(Moments(2 + rank).gather)]
    for name in ("computed", "read"):
        found = moments.cached(folder / "cache", {"net": "none"}, computed)
        moments.save(found, folder / f"{rank}-{name}.safetensors")
    assert calls == [rank]
    dist.barrier()
    if rank == 0:
        file, = (folder / "cache").iterdir()
        file.write_bytes(file.read_bytes()[:-8])
    dist.barrier()
    errors.append(error_of(lambda: moments.cached(folder / "cache", {"net": "none"}, computed)))
    (folder / f"{rank}.txt").write_text("\n".join(errors))
    dist.destroy_process_group()
