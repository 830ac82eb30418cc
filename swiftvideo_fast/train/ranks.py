"""Ranks of a run: who they are, their text collectives, their device and their micro-batches."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import torch
from torch import distributed as dist

from swiftvideo_fast.config import Config
from swiftvideo_fast.config.strict import want

GLOO_TIMEOUT = timedelta(days=2)        # a rank done with its TA pairs waits for the slowest


@dataclass(frozen=True)
class Ranks:
    """This process's rank among `world`.  sequence: size of a sequence-parallel group (models/ulysses.py),
    consecutive ranks that share one clip's tokens; each group is one replica."""

    rank: int = 0
    world: int = 1
    sequence: int = 1

    @property
    def replicas(self) -> int:
        return self.world // self.sequence

    @property
    def replica(self) -> int:
        return self.rank // self.sequence

    def gather(self, text: str) -> list[str]:
        """Returns every rank's text, in rank order."""
        if self.world == 1:
            return [text]
        texts = [""] * self.world
        dist.all_gather_object(texts, text, group=_text_group())
        return texts

    def mean(self, values: list[float]) -> list[float]:
        """Returns the element-wise mean over all ranks."""
        if self.world == 1:
            return values
        device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
        summed = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(summed)
        return (summed / self.world).tolist()

    def run_all(self, work: Callable[[], str]) -> list[str]:
        """Runs `work` on every rank; returns all results.  An error on one rank is raised on all."""
        result, error = "", None
        try:
            result = work()
        except Exception as why:
            error = why
        failures = [f"rank {rank}: {f}" for rank, f in enumerate(self.gather(repr(error))) if f != "None"]
        if failures:
            raise error or OSError(failures[0])
        return self.gather(result)


SINGLE_RANK = Ranks()


def rank_and_world() -> tuple[int, int]:
    """Returns (rank, world) as set by torchrun or deepspeed; (0, 1) under plain python."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def init_gloo() -> Ranks:
    """Initialises gloo among torchrun's processes, for work without tensor traffic; returns the ranks."""
    ranks = Ranks(*rank_and_world())
    if ranks.world > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=GLOO_TIMEOUT)
    return ranks


@cache
def _text_group() -> dist.ProcessGroup:
    """Returns a gloo group for text with a two-day timeout; the default group's is minutes."""
    return dist.new_group(backend="gloo", timeout=GLOO_TIMEOUT)


def use_deterministic_kernels() -> None:
    """Selects bit-reproducible kernels in torch, cuBLAS and ops.attention for this process.  Ops without one
    warn."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")          # read at cuBLAS's first call
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False           # every torch.empty would be written


def local_device() -> torch.device:
    """Returns the GPU of LOCAL_RANK and makes it current; the CPU on machines without a GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cuda")


def micro_batches(cfg: Config, ranks: Ranks) -> tuple[int, int]:
    """Returns (micro-batches per step and rank, clips per micro-batch)."""
    want(ranks.world % ranks.sequence == 0, "engine.sequence", ranks.sequence,
         f"a divisor of the {ranks.world} processes")
    batch, replicas = cfg.data.batch, ranks.replicas
    micro = cfg.engine.micro or max(1, batch // replicas)
    want(batch % (micro * replicas) == 0, "data.batch", batch,
         f"a multiple of {micro * replicas}: {micro} clips a pass (engine.micro) on {replicas} replicas")
    return batch // (micro * replicas), micro
