"""What a run says while it goes: a progress bar, log.jsonl, TensorBoard scalars."""

import json
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

LOG = "log.jsonl"


class Report:
    """Scalars by step.  A resumed run drops what the log holds beyond the step it resumes from."""

    def __init__(self, run: Path, *, start: int, steps: int):
        kept = [line for line in read_log(run) if line["step"] <= start]
        self.log = open(run / LOG, "w", buffering=1)  # noqa: SIM115  (closed in close)
        for line in kept:
            self._write(line)
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)
        self.bar = tqdm(total=steps, initial=start, unit="step", desc=run.name, mininterval=1.0)

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        self._write({"step": step} | scalars)
        for name, value in scalars.items():
            self.board.add_scalar(name, value, step)
        self.bar.set_postfix({k: f"{v:.3g}" for k, v in scalars.items()}, refresh=False)

    def tick(self) -> None:
        self.bar.update()

    def close(self) -> None:
        for stream in (self.bar, self.board, self.log):
            stream.close()

    def _write(self, line: dict) -> None:
        self.log.write(json.dumps(line) + "\n")


def read_log(run: Path) -> list[dict]:
    """The whole lines of a run's log; a line cut by a kill ends it."""
    log, lines = run / LOG, []
    for text in log.read_text().splitlines() if log.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
