"""The processes of a run, and what they exchange besides tensors."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import torch
from torch import distributed as dist

from swiftvideo_fast.config import Config
from swiftvideo_fast.config.strict import want

GLOO_TIMEOUT = timedelta(days=2)        # a rank that has made its pairs waits for the slowest


@dataclass(frozen=True)
class Ranks:
    """This process among `world`.  sequence: consecutive ranks that share the tokens of one clip
    (models/ulysses.py); each such group is one of the `replicas`."""

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
        """Each rank's, in the order of ranks."""
        if self.world == 1:
            return [text]
        texts = [""] * self.world
        dist.all_gather_object(texts, text, group=_text_group())
        return texts

    def mean(self, values: list[float]) -> list[float]:
        """Element by element, over all ranks."""
        if self.world == 1:
            return values
        device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
        summed = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(summed)
        return (summed / self.world).tolist()

    def together(self, work: Callable[[], str]) -> list[str]:
        """The results of every rank's work.  An error on one rank is raised on all, so none waits for it."""
        result, error = "", None
        try:
            result = work()
        except Exception as why:
            error = why
        failures = [f"rank {rank}: {f}" for rank, f in enumerate(self.gather(repr(error))) if f != "None"]
        if failures:
            raise error or OSError(failures[0])
        return self.gather(result)


ALONE = Ranks()


def launched() -> tuple[int, int]:
    """(rank, world) that torchrun or deepspeed has set; (0, 1) under plain python."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def meet() -> Ranks:
    """The processes that torchrun has started, met over gloo: for work that exchanges no tensors."""
    ranks = Ranks(*launched())
    if ranks.world > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=GLOO_TIMEOUT)
    return ranks


@cache
def _text_group() -> dist.ProcessGroup:
    """A gloo group for text, with a timeout of days; that of the default group, for tensors, is minutes."""
    return dist.new_group(backend="gloo", timeout=GLOO_TIMEOUT)


def use_deterministic_kernels() -> None:
    """Makes torch, cuBLAS and ops.attention (by torch's switch) choose kernels that repeat to the bit in this
    process.  An op that has none warns."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")          # read at cuBLAS's first call
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False           # every torch.empty would be written


def own_device() -> torch.device:
    """The GPU of LOCAL_RANK, made the current device; the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cuda")


def micro_batches(cfg: Config, ranks: Ranks) -> tuple[int, int]:
    """(micro-batches a step on each rank, clips a micro-batch)."""
    want(ranks.world % ranks.sequence == 0, "engine.sequence", ranks.sequence,
         f"a divisor of the {ranks.world} processes")
    batch, replicas = cfg.data.batch, ranks.replicas
    micro = cfg.engine.micro or max(1, batch // replicas)
    want(batch % (micro * replicas) == 0, "data.batch", batch,
         f"a multiple of {micro * replicas}: {micro} clips a pass (engine.micro) on {replicas} replicas")
    return batch // (micro * replicas), micro
