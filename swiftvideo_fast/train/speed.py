"""Speed of a run: seconds per step, clips and tokens per second, fraction spent waiting for data, peak
memory."""

import resource
import time
from collections.abc import Generator
from contextlib import contextmanager

import torch

from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.data.source import Drawn


class Timed:
    """A source that counts the seconds spent in its `draw`."""

    def __init__(self, source: Drawn):
        self.source, self.prefetch, self.seconds = source, source.prefetch, 0.0

    def draw(self, count: int, seed: int, position: int) -> Batch:
        begin = time.perf_counter()
        batch = self.source.draw(count, seed, position)
        self.seconds += time.perf_counter() - begin
        return batch

    def summary(self) -> str:
        return self.source.summary()

    def close(self) -> None:
        self.source.close()


class Speed:
    """Averages over the steps since the last `read`, without checkpoints and samples.

    clips: per step, over all ranks.  tokens: per clip.
    """

    def __init__(self, source: Timed, clips: int, tokens: int, device: torch.device):
        self.source, self.clips, self.tokens, self.device = source, clips, tokens, device
        self.steps, self.seconds, self.waited = 0, 0.0, source.seconds

    @contextmanager
    def step(self) -> Generator[None]:
        """Times a step.  The step moves its loss to the CPU, hence the GPU has finished."""
        begin = time.perf_counter()
        yield
        self.steps, self.seconds = self.steps + 1, self.seconds + time.perf_counter() - begin

    def read(self) -> dict[str, float]:
        """Returns the averages and starts a new window.  waiting: fraction of time; memory_gb: peak."""
        rate = self.steps * self.clips / self.seconds
        found = {"seconds": self.seconds / self.steps, "clips_per_second": rate,
                 "tokens_per_second": rate * self.tokens,
                 "waiting": (self.source.seconds - self.waited) / self.seconds,
                 "memory_gb": peak_memory(self.device) / 1e9}
        self.steps, self.seconds, self.waited = 0, 0.0, self.source.seconds
        return found


def peak_memory(device: torch.device) -> int:
    """Returns the peak bytes of this process: allocated on a GPU, resident (RSS) on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss        # Linux counts in KiB
