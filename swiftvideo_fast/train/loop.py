"""The training loop.  A step is a sequence of turns; a turn updates one network and its average.

A turn accumulates the gradients of its micro-batches, takes one optimizer step and updates the average.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swiftvideo_fast.config import Config, Optim, to_dict
from swiftvideo_fast.seeds import generator
from swiftvideo_fast.train import checkpoint, run_folder
from swiftvideo_fast.train.engine import Averaged, Engine, Trained
from swiftvideo_fast.train.health import Guard
from swiftvideo_fast.train.log import Log, NoLog
from swiftvideo_fast.train.ranks import Ranks, micro_batches
from swiftvideo_fast.train.speed import Speed, Timed

STUDENT = "student"
PER_NETWORK = {"loss", "grad_norm", "lr", "skipped"}    # logged as "lr" of the student, "critic/lr" of others


@dataclass
class Mover:
    """A trained network with its optimizer options, guard and average."""

    trained: Trained
    optim: Optim
    guard: Guard
    average: Averaged | None = None


@dataclass
class Run:
    """Everything a training run needs; built from a config by train/recipe.py.

    nets: role -> callable network.  movers: role -> trained network.  averages: role -> average of a mover.
    open: opens the data and returns (source, watch); not called when no step is left.  tokens: per clip.
    exported: role -> final weight file; export(checkpoint, role, file) writes it.
    """

    cfg: Config
    engine: Engine
    objective: Any
    nets: dict[str, Any]
    movers: dict[str, Mover]
    averages: dict[str, Averaged]
    open: Callable[[], tuple[Any, Any]]
    tokens: int
    exported: dict[str, Path]
    export: Callable[[Path, str, Path], None]
    fill_defaults: run_folder.FillDefaults
    source: Any = None
    watch: Any = None

    @property
    def parts(self) -> dict[str, checkpoint.Part]:
        """role -> network saved in a checkpoint."""
        return {role: mover.trained for role, mover in self.movers.items()} | self.averages


def train(run: Run) -> Path:
    """Trains to cfg.run.steps, resuming from the newest good checkpoint in cfg.run.dir; returns that folder.

    The folder then holds config.yaml, log.jsonl, speed.jsonl, tensorboard/, checkpoints, student.safetensors
    and average.safetensors.  An interrupted and resumed run is bit-identical to an uninterrupted one.
    ValueError, before anything is written, for bad input or a folder that holds another run.
    """
    ranks, lock = run.engine.ranks, run_folder.Lock(run.cfg)
    with closing(lock):
        ranks.run_all(lambda: lock.acquire() if ranks.rank == 0 else "")
        return _train(run, lock)


def _train(run: Run, lock: run_folder.Lock) -> Path:
    cfg, ranks = run.cfg, run.engine.ranks
    folder = Path(cfg.run.dir)
    state = run_folder.resume(cfg, run.parts, ranks, run.fill_defaults)
    start, skipped = state["step"], state["skipped"]
    if start == cfg.run.steps and all(file.exists() for file in run.exported.values()):
        if ranks.rank == 0:
            print(f"{folder}: finished at step {start}; raise run.steps to extend it", file=sys.stderr)
        return folder

    run.source, run.watch = run.open()
    for role, mover in run.movers.items():
        mover.guard.skipped = skipped.get(role, 0)
    with ExitStack() as opened:
        opened.enter_context(closing(run.source))               # stops its prefetching
        ranks.run_all(lambda: _begin(run, lock, start) if ranks.rank == 0 else "")
        log = opened.enter_context(closing(Log(cfg, start, to_dict(cfg)) if ranks.rank == 0 else NoLog()))
        if ranks.rank == 0 and state["config"]["run"]["steps"] < cfg.run.steps:
            _print_extension(run, start, state["config"]["run"]["steps"])
        _take_steps(run, start, log)
    for role, file in run.exported.items() if ranks.rank == 0 else ():
        run.export(checkpoint.newest(folder), role, file)
    ranks.gather("exported")
    return folder


def _begin(run: Run, lock: run_folder.Lock, start: int) -> str:
    lock.acquire(create=True)
    for file in run.exported.values() if start < run.cfg.run.steps else ():
        run_folder.set_aside(file, start)
    return run_folder.write_start(run.cfg, start, run.engine.device)


def _print_extension(run: Run, start: int, before: int) -> None:
    cfg = run.cfg
    was, now = (learning_rate(cfg.optim, start, steps) for steps in (before, cfg.run.steps))
    rate = f"; the {cfg.optim.schedule} schedule now spans the longer run: lr {was:.3g} -> {now:.3g}"
    print(f"{cfg.run.dir}: extended from {before} to {cfg.run.steps} steps" + (rate if was != now else ""),
          file=sys.stderr, flush=True)


def _take_steps(run: Run, start: int, log: Log | NoLog) -> None:
    cfg, ranks = run.cfg, run.engine.ranks
    run.source = Timed(run.source)
    speed = Speed(run.source, cfg.data.batch, run.tokens, run.engine.device)
    for step in range(start, cfg.run.steps):
        with speed.step():
            values, done = take_step(run, step), step + 1
        skips = {role: mover.guard.skipped for role, mover in run.movers.items() if mover.guard.skipped}
        watched = run.watch and done % run.watch.every == 0
        if watched:
            figures, samples = run.watch(done)
            log.samples(done, samples)
            values |= figures
        if done % cfg.run.log_every == 0 or done == cfg.run.steps or skips or watched:
            log(done, values, speed.read())
        log.tick()
        if done % cfg.run.save_every == 0 or done == cfg.run.steps:
            log.sync()
            checkpoint.save(Path(cfg.run.dir), done, parts=run.parts, keep=cfg.run.keep, ranks=ranks,
                            state={"config": to_dict(cfg), "skipped": skips})


def take_step(run: Run, step: int) -> dict[str, float | Tensor]:
    """Takes all turns of one step; returns the values to log."""
    turns, values = run.objective.turns(step), {}
    batches = MicroBatches(run, step, keep=len(turns) > 1)
    carry: dict[int, Any] = {}              # by micro-batch: what a turn's loss passes to the next turn's
    for number, turn in enumerate(turns):
        mover, logs = run.movers[turn], []
        mover.trained.net.train()
        for i, (batch, rng) in enumerate(batches.of_turn(number)):
            out = run.objective.loss(turn, run.nets, batch, rng, step, carry.get(i))
            mover.trained.backward(out.value)
            carry[i] = carry.get(i) if out.carry is None else out.carry
            logs.append({"loss": out.value.item()} | out.log)
        lr = learning_rate(mover.optim, step, run.cfg.run.steps)
        norm = mover.trained.step(lr)
        mover.trained.net.eval()
        if mover.average and math.isfinite(norm):
            mover.average.update()
        found = reduce_logs(logs, run.engine.ranks)
        skipped = mover.guard(Path(run.cfg.run.dir), step, found["loss"], norm)
        found |= {"grad_norm": norm, "lr": lr} | ({"skipped": skipped} if skipped else {})
        prefix = "" if turn == STUDENT else f"{turn}/"
        values |= {f"{prefix}{name}" if name in PER_NETWORK else name: value for name, value in found.items()}
    return values


class MicroBatches:
    """This rank's micro-batches of a step, each with its random generator.

    Draws depend on position alone: a resumed run repeats them, and any number of replicas draws the same
    micro-batches in all.  The turns of a step share clips and differ in random draws.  keep: caches the
    clips for later turns.
    """

    def __init__(self, run: Run, step: int, keep: bool):
        cfg, ranks = run.cfg, run.engine.ranks
        _, self.size = micro_batches(cfg, ranks)
        self.run, self.seed, self.keep, self.kept = run, cfg.run.seed, keep, {}
        first = step * cfg.data.batch + ranks.replica * self.size
        self.positions = range(first, (step + 1) * cfg.data.batch, ranks.replicas * self.size)

    def of_turn(self, number: int) -> Iterator[tuple[Any, torch.Generator]]:
        """Yields (batch, rng) per micro-batch; number: index of the turn in its step."""
        for position in self.positions:
            batch = self.kept.get(position)
            if batch is None:
                batch = self.run.source.draw(self.size, self.seed, position).to(self.run.engine.device)
            if self.keep:
                self.kept[position] = batch
            place = ("path", position) if number == 0 else ("turn", position, number)
            yield batch, generator(self.seed, *place)


def reduce_logs(logs: list[dict], ranks: Ranks) -> dict[str, float | Tensor]:
    """Returns one log per turn: scalars averaged over micro-batches and ranks, tensors (histograms)
    concatenated over this rank's micro-batches."""
    tensors = {name: torch.cat([log[name].flatten() for log in logs])
               for name, value in logs[0].items() if isinstance(value, Tensor)}
    scalars = [name for name in logs[0] if name not in tensors]
    means = ranks.mean([sum(log[name] for log in logs) / len(logs) for name in scalars])
    return dict(zip(scalars, means)) | tensors


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """Returns the rate at `step`: linear warm-up, then constant, or cosine decay to zero at `steps`."""
    rise = min(1.0, (step + 1) / optim.warmup) if optim.warmup else 1.0
    fall = 0.5 * (1 + math.cos(math.pi * step / steps)) if optim.schedule == "cosine" else 1.0
    return optim.lr * rise * fall
