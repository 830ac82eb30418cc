"""The log of a run: a progress bar, log.jsonl, TensorBoard and, where asked for, wandb."""

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

LOG, WANDB_ID = "log.jsonl", "wandb-id"
LINE_EVERY = 20.0   # seconds between two lines where there is no terminal to draw a bar on
LINE = "{desc}: {n_fmt}/{total_fmt} steps, {rate_fmt}, {remaining} left{postfix}"


class Log:
    """Scalars by step, tensors as TensorBoard's histograms.  To be closed.

    On resume, entries after step `start` are truncated.  about: the config, for wandb, whose run of this
    folder goes on.
    """

    def __init__(self, cfg: Config, start: int, about: dict):
        run, steps, wandb = Path(cfg.run.dir), cfg.run.steps, cfg.run.wandb
        kept = [line for line in read_log(run) if line["step"] <= start]
        with atomic_write(run / LOG) as aside:
            aside.write_text("".join(map(_as_text, kept)))
        if start:
            print(f"{run.name}: resumed from step {start} of {steps}", file=sys.stderr, flush=True)
        self.log = open(run / LOG, "ab", buffering=0)  # noqa: SIM115  (closed in close)
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)
        self.bar = tqdm(total=steps, initial=start, unit="step", desc=run.name, mininterval=1.0, disable=None)
        self.run, self.name, self.start, self.steps = run, run.name, start, steps
        self.began = self.printed = time.monotonic()
        self.wandb = _resume_wandb(run, wandb, about) if wandb else None

    def __call__(self, step: int, values: dict[str, float | Tensor]) -> None:
        scalars = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
        with self._naming_the_run():
            self.log.write(_as_text({"step": step} | scalars).encode())
        for name, value in scalars.items():
            self.board.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(scalars, step=step)
        for name in values.keys() - scalars.keys():
            self.board.add_histogram(name, values[name], step)
        shown = {name: f"{value:.3g}" for name, value in scalars.items()}
        self.bar.set_postfix(shown, refresh=False)
        if self.bar.disable:
            self._print_line(step, shown)

    def image(self, step: int, image_3HW: Tensor) -> None:
        """In [0, 1]: samples/step-XXXXXXXX.png, and TensorBoard."""
        with atomic_write(self.run / f"samples/step-{step:08d}.png") as aside:
            pixels = (image_3HW * 255).round().byte().permute(1, 2, 0)
            Image.fromarray(pixels.numpy()).save(aside, "png")
        self.board.add_image("samples", image_3HW, step)
        if self.wandb:
            self.wandb.log({"samples": require_wandb().Image(pixels.numpy())}, step=step)

    def tick(self) -> None:
        self.bar.update()

    def sync(self) -> None:
        """Everything logged so far, to the disk, before the checkpoint that counts on it."""
        with self._naming_the_run():
            self.board.flush()
            os.fsync(self.log.fileno())

    def close(self) -> None:
        with self._naming_the_run():
            for stream in (self.bar, self.log, self.board):
                stream.close()
        if self.wandb:
            self.wandb.finish()

    @contextmanager
    def _naming_the_run(self) -> Generator[None]:
        """OSError names the run when the disk refuses."""
        try:
            yield
        except OSError as why:
            raise OSError(f"{self.run}: its log could not be written ({why}); make room, and the same "
                          "command goes on from the last checkpoint") from why

    def _print_line(self, step: int, shown: dict[str, str]) -> None:
        now = time.monotonic()
        if now - self.printed >= LINE_EVERY or step == self.steps:
            self.printed = now
            values = ", ".join(f"{name} {value}" for name, value in shown.items())
            print(tqdm.format_meter(step, self.steps, now - self.began, initial=self.start, unit="step",
                                    prefix=self.name, bar_format=LINE, postfix=values),
                  file=sys.stderr, flush=True)


class NoLog:
    """The log of all ranks but the first."""

    def __call__(self, step: int, values: dict) -> None: ...

    def image(self, step: int, image_3HW: Tensor) -> None: ...

    def tick(self) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


def require_wandb() -> ModuleType:
    """The module; ValueError says how to install it."""
    try:
        import wandb
    except ImportError as why:
        raise ValueError("run.wandb wants wandb: pip install wandb; or leave run.wandb out") from why
    return wandb


def _resume_wandb(run: Path, project: str, about: dict | None):
    """wandb's run of this folder: the one that it had, if it had one."""
    file = run / WANDB_ID
    if not file.exists():
        with atomic_write(file) as aside:
            aside.write_text(secrets.token_hex(8))
    return require_wandb().init(project=project, name=run.name, id=file.read_text(), resume="allow",
                               dir=str(run), config=about)


def read_log(run: Path) -> list[dict]:
    """The whole lines of a run's log; a line cut by a kill ends it."""
    log, lines = run / LOG, []
    for text in log.read_text().splitlines() if log.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _as_text(line: dict) -> str:
    return json.dumps(line) + "\n"
