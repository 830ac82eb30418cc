"""Prefetching: draws batches ahead of the step, on a separate thread and CUDA stream.

A source draws by position, and a run's positions increase by a constant stride, so the next ones are
predicted.  A wrong prediction costs an extra draw; the batch is always right.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.data.source import Drawn


class Prefetched:
    """A source with `ahead` batches prefetched to the device."""

    prefetch = False                    # already prefetched

    def __init__(self, source: Drawn, device: torch.device | str = "cpu", ahead: int = 2):
        self.source, self.device, self.ahead = source, torch.device(device), ahead
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.pool = ThreadPoolExecutor(1, "prefetch")
        self.coming: dict[tuple[int, int, int], Future] = {}
        self.last: tuple[int, int, int] | None = None

    def summary(self) -> str:
        return self.source.summary()

    def draw(self, count: int, seed: int, position: int) -> Batch:
        """As source.draw, on the device."""
        key = count, seed, position
        drawn = self.coming.pop(key, None) or self.pool.submit(self._draw, key)
        going_on = self.last is not None and self.last[:2] == key[:2] and position > self.last[2]
        stride = position - self.last[2] if going_on else count
        self.last = key
        after = [(count, seed, position + stride * i) for i in range(1, self.ahead + 1)]
        for stale in [other for other in self.coming if other not in after]:
            self.coming.pop(stale).cancel()
        for other in after:
            if other not in self.coming:
                self.coming[other] = self.pool.submit(self._draw, other)
        batch, ready = drawn.result()
        if ready is not None:
            ready.wait(torch.cuda.current_stream(self.device))
            here = torch.cuda.current_stream(self.device)
            for tensor in (batch.x0, batch.pixels, *vars(batch.condition).values()):
                if tensor is not None:
                    tensor.record_stream(here)          # no reuse of its memory before then
        return batch

    def _draw(self, key: tuple[int, int, int]) -> tuple[Batch, "torch.cuda.Event | None"]:
        with torch.no_grad():
            if self.stream is None:
                return self.source.draw(*key).to(self.device), None
            with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
                batch = self.source.draw(*key).to(self.device)
                return batch, self.stream.record_event()

    def close(self) -> None:
        """Cancels pending draws and closes the source."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.source.close()
