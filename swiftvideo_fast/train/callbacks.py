"""What watches a run: steps that are no steps."""

import math
from pathlib import Path

from swiftvideo_fast.train import checkpoint


class Guard:
    """Counts the steps in a row that were skipped, their gradient not being finite, and gives up."""

    def __init__(self, limit: int, skipped: int):
        self.limit, self.skipped = limit, skipped

    def __call__(self, run: Path, done: int, log: dict) -> int:
        """How many have been skipped; FloatingPointError when these are more than the limit."""
        self.skipped = 0 if math.isfinite(log["grad_norm"]) else self.skipped + 1
        if self.skipped > self.limit:
            raise FloatingPointError(
                f"{run}: at step {done - 1} the loss is {log['loss']}, its gradient norm {log['grad_norm']}, "
                f"and {self.skipped - 1} steps before it were skipped; the last good checkpoint is "
                f"{checkpoint.newest(run)}; lower optim.lr, in another run.dir")
        return self.skipped
