"""The log of a run: progress bar, log.jsonl, speed.jsonl, TensorBoard and, optionally, wandb.

log.jsonl holds computed values, bit-identical however often the run was interrupted.  speed.jsonl holds
timings and memory (train/speed.py).
"""

import json
import os
import secrets
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.config import Config
from swiftvideo_fast.data.clips import write_frames
from swiftvideo_fast.train.samples import Samples

LOG, SPEED, WANDB_ID = "log.jsonl", "speed.jsonl", "wandb-id"
LINE_EVERY = 20.0   # seconds between progress lines without a terminal
LINE = "{desc}: {n_fmt}/{total_fmt} steps, {rate_fmt}, {remaining} left{postfix}"


class Log:
    """Logs scalars by step, and tensors as TensorBoard histograms.  Close after use.

    On resume, entries after step `start` are truncated.  about: the config, sent to wandb, whose run is
    resumed.
    """

    def __init__(self, cfg: Config, start: int, about: dict):
        run, steps, wandb = Path(cfg.run.dir), cfg.run.steps, cfg.run.wandb
        for name in (LOG, SPEED):
            kept = [line for line in read_log(run, name) if line["step"] <= start]
            with atomic_write(run / name) as tmp:
                tmp.write_text("".join(map(_as_text, kept)))
        if start:
            print(f"{run.name}: resumed from step {start} of {steps}", file=sys.stderr, flush=True)
        self.log, self.speed = (open(run / name, "ab", buffering=0)  # noqa: SIM115  (closed in close)
                                for name in (LOG, SPEED))
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)
        self.bar = tqdm(total=steps, initial=start, unit="step", desc=run.name, mininterval=1.0, disable=None)
        self.run, self.name, self.start, self.steps = run, run.name, start, steps
        self.began = self.printed = time.monotonic()
        self.wandb = _resume_wandb(run, wandb, about) if wandb else None

    def __call__(self, step: int, values: dict[str, float | Tensor], speed: dict[str, float]) -> None:
        scalars = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
        with self._naming_the_run():
            self.log.write(_as_text({"step": step} | scalars).encode())
            self.speed.write(_as_text({"step": step} | speed).encode())
        timed = scalars | {f"speed/{name}": value for name, value in speed.items()}
        for name, value in timed.items():
            self.board.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(timed, step=step)
        for name in values.keys() - scalars.keys():
            self.board.add_histogram(name, values[name], step)
        shown = {name: f"{value:.3g}" for name, value in scalars.items()}
        self.bar.set_postfix(shown, refresh=False)
        if self.bar.disable:
            self._print_line(step, shown)

    def samples(self, step: int, samples: Samples) -> None:
        """Writes samples/step-XXXXXXXX.png and .mp4; logs the picture to TensorBoard and wandb."""
        place = self.run / f"samples/step-{step:08d}"
        picture_HWC = samples.sheet(f"{self.name}, step {step} of {self.steps}")
        with atomic_write(place.with_suffix(".png")) as tmp:
            Image.fromarray(picture_HWC).save(tmp, "png")
        write_frames(place.with_suffix(".mp4"), samples.video(f"{self.name}, step {step}"), samples.fps)
        self.board.add_image("samples", picture_HWC, step, dataformats="HWC")
        if self.wandb:
            self.wandb.log({"samples": require_wandb().Image(picture_HWC)}, step=step)

    def tick(self) -> None:
        self.bar.update()

    def sync(self) -> None:
        """Flushes the logs to disk; called before a checkpoint, which must not be ahead of its log."""
        with self._naming_the_run():
            self.board.flush()
            for file in (self.log, self.speed):
                os.fsync(file.fileno())

    def close(self) -> None:
        with self._naming_the_run():
            for stream in (self.bar, self.log, self.speed, self.board):
                stream.close()
        if self.wandb:
            self.wandb.finish()

    @contextmanager
    def _naming_the_run(self) -> Generator[None]:
        """Re-raises OSError with the run's folder and what to do."""
        try:
            yield
        except OSError as why:
            raise OSError(f"{self.run}: its log could not be written ({why}); free disk space, then repeat "
                          "the command: it resumes from the last checkpoint") from why

    def _print_line(self, step: int, shown: dict[str, str]) -> None:
        now = time.monotonic()
        if now - self.printed >= LINE_EVERY or step == self.steps:
            self.printed = now
            values = ", ".join(f"{name} {value}" for name, value in shown.items())
            print(tqdm.format_meter(step, self.steps, now - self.began, initial=self.start, unit="step",
                                    prefix=self.name, bar_format=LINE, postfix=values),
                  file=sys.stderr, flush=True)


class NoLog:
    """Does nothing: the log of ranks other than 0."""

    def __call__(self, step: int, values: dict, speed: dict) -> None: ...

    def samples(self, step: int, samples: Samples) -> None: ...

    def tick(self) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


def require_wandb() -> ModuleType:
    """Returns the module; ValueError when it is not installed."""
    try:
        import wandb
    except ImportError as why:
        raise ValueError("run.wandb needs wandb: pip install wandb; or leave run.wandb out") from why
    return wandb


def _resume_wandb(run: Path, project: str, about: dict | None):
    """Returns the wandb run of this folder, resumed where one exists."""
    file = run / WANDB_ID
    if not file.exists():
        with atomic_write(file) as tmp:
            tmp.write_text(secrets.token_hex(8))
    return require_wandb().init(project=project, name=run.name, id=file.read_text(), resume="allow",
                               dir=str(run), config=about)


def read_log(run: Path, name: str = LOG) -> list[dict]:
    """Returns a run's log entries up to the first line truncated by a kill; [] without a log."""
    log, lines = run / name, []
    for text in log.read_text().splitlines() if log.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _as_text(line: dict) -> str:
    return json.dumps(line) + "\n"
