"""Batches drawn ahead of the step that wants them, on a thread and a CUDA stream of their own.

A source draws by position, so what comes next is known: the positions of a run go up by one stride.  A wrong
guess costs a draw, never a wrong batch.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.data.source import Drawn


class Prefetched:
    """source, with `ahead` batches on the device before they are asked for."""

    prefetch = False                    # it is done

    def __init__(self, source: Drawn, device: torch.device | str = "cpu", ahead: int = 2):
        self.source, self.device, self.ahead = source, torch.device(device), ahead
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.pool = ThreadPoolExecutor(1, "prefetch")
        self.coming: dict[tuple[int, int, int], Future] = {}
        self.last: tuple[int, int, int] | None = None

    def summary(self) -> str:
        return self.source.summary()

    def draw(self, count: int, seed: int, position: int) -> Batch:
        """As the source's, on the device."""
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
                    tensor.record_stream(here)          # else its memory could be drawn into again too early
        return batch

    def _draw(self, key: tuple[int, int, int]) -> tuple[Batch, "torch.cuda.Event | None"]:
        with torch.no_grad():
            if self.stream is None:
                return self.source.draw(*key).to(self.device), None
            with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
                batch = self.source.draw(*key).to(self.device)
                return batch, self.stream.record_event()

    def close(self) -> None:
        """Let go of what is being drawn, and close the source."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.source.close()
