"""clips -> latents -> point -> objective -> step -> average -> checkpoint."""

import math
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from swiftvideo_fast import path
from swiftvideo_fast.atomic import whole
from swiftvideo_fast.config import Ccd, Config, Dcd, Flow, Ta, differences, to_dict
from swiftvideo_fast.config.strict import one_of
from swiftvideo_fast.data.clips import demo_clips
from swiftvideo_fast.data.crops import CropSource
from swiftvideo_fast.data.latents import Latents, encode_crops
from swiftvideo_fast.data.pairs import PairShards
from swiftvideo_fast.models import lora, weights
from swiftvideo_fast.models.codec import PcaCodec
from swiftvideo_fast.models.encoders import WordVectors
from swiftvideo_fast.models.wan import PRESETS, Wan, initialise
from swiftvideo_fast.objectives import Log
from swiftvideo_fast.objectives.ccd import ConsistencyDistillation
from swiftvideo_fast.objectives.dcd import DiscreteDistillation
from swiftvideo_fast.objectives.flow import FlowMatching
from swiftvideo_fast.objectives.ta import TrajectoryAlignment
from swiftvideo_fast.seeds import generator
from swiftvideo_fast.train import checkpoint
from swiftvideo_fast.train.plain import Plain
from swiftvideo_fast.train.report import Report

OBJECTIVES = {Flow: FlowMatching, Ccd: ConsistencyDistillation, Dcd: DiscreteDistillation}
CONFIG, STUDENT, AVERAGE = "config.yaml", "student.safetensors", "average.safetensors"


def train(cfg: Config) -> Path:
    """Run to cfg.run.steps, going on from the newest checkpoint of cfg.run.dir; returns that folder.

    It then holds config.yaml, log.jsonl, tensorboard/, checkpoints, and the weights student.safetensors and
    average.safetensors.  A run interrupted anywhere ends with the same bits as one that was not.
    ValueError when an input is bad or the folder holds another run; it is found before anything is written.
    """
    run = Path(cfg.run.dir)
    agree(cfg, run)
    passes = Passes(cfg)
    engine = Plain(len(passes))
    student = engine.trained(starting_network(cfg), cfg.optim)
    ema = engine.average(student, cfg.ema)
    objective = build_objective(cfg, engine, student.net, ema.net)
    parts = {"student": student, "average": ema, **objective.trained}
    start = resume(cfg, run, parts)
    if start == cfg.run.steps and all((run / name).exists() for name in (STUDENT, AVERAGE)):
        return run

    data = training_data(cfg, student.net)
    with whole(run / CONFIG) as aside:
        aside.write_text(yaml.safe_dump(to_dict(cfg), sort_keys=False))
    with closing(Report(run, start=start, steps=cfg.run.steps)) as report:
        for step in range(start, cfg.run.steps):
            logs = []
            for batch, point, rng in passes.draw(data, step):
                loss, log = objective(point, batch, step, rng)
                student.backward(loss)
                logs.append({"loss": loss.item()} | log)
            lr = learning_rate(cfg, step)
            norm = student.step(lr)
            if not math.isfinite(norm):
                raise FloatingPointError(
                    f"{run}: at step {step} the loss is {logs[-1]['loss']}, its gradient norm {norm}; the "
                    f"last good checkpoint is {checkpoint.newest(run)}; lower optim.lr, in another run.dir")
            ema.update()
            after = objective.after_step()

            done = step + 1
            if done % cfg.run.log_every == 0 or done == cfg.run.steps:
                report(done, pooled(logs) | {"grad_norm": norm, "lr": lr} | after)
            report.tick()
            if done % cfg.run.save_every == 0 or done == cfg.run.steps:
                report.sync()
                checkpoint.save(run, done, parts=parts, state={"config": to_dict(cfg)}, keep=cfg.run.keep)
    about = {"sample": asdict(cfg.sample), "trained": to_dict(cfg)}
    for name, net in ((STUDENT, student.net), (AVERAGE, ema.net)):
        if adapted(cfg):
            lora.save(net, run / f"lora-{name}", **about)
        weights.save(lora.merged(net) if adapted(cfg) else net, run / name, **about)
    return run


class Passes:
    """The backward passes of a step, each with what it draws."""

    def __init__(self, cfg: Config):
        self.cfg = cfg
        self.micro = cfg.engine.micro or cfg.data.batch

    def __len__(self) -> int:
        return self.cfg.data.batch // self.micro

    def draw(self, data: Latents | PairShards,
             step: int) -> Iterator[tuple[Latents, path.Point, torch.Generator]]:
        """(batch, point, rng) of each.  Drawn from where we are: a resumed run draws what the first would."""
        seed, first = self.cfg.run.seed, step * self.cfg.data.batch
        for clips_seen in range(first, first + self.cfg.data.batch, self.micro):
            batch = data.draw(self.micro, seed, clips_seen)
            rng = generator(seed, "path", clips_seen)
            yield batch, path.draw(batch.x0, rng, **asdict(self.cfg.times)), rng


def pooled(logs: list[Log]) -> Log:
    """One log of several passes: means, and all that a histogram is to show."""
    return {name: torch.cat([log[name].flatten() for log in logs]) if isinstance(first, Tensor)
            else sum(log[name] for log in logs) / len(logs) for name, first in logs[0].items()}


def agree(cfg: Config, run: Path) -> None:
    """ValueError with the keys that differ when the folder holds a run of another config."""
    try:
        _same(cfg, yaml.safe_load((run / CONFIG).read_text()), run)
    except FileNotFoundError:
        pass
    except (OSError, yaml.YAMLError, UnicodeDecodeError, AttributeError) as why:
        raise ValueError(f"{run / CONFIG}: not the config of a run ({why}); take another run.dir or delete "
                         "that file") from why


def resume(cfg: Config, run: Path, parts: dict[str, checkpoint.Part]) -> int:
    """The steps done by the newest checkpoint, now in the parts; 0 without one."""
    last = checkpoint.newest(run)
    if last is None:
        return 0
    _same(cfg, checkpoint.Saved(last).state.get("config", {}), last)
    state = checkpoint.restore(last, parts)
    checkpoint.tidy(run, cfg.run.keep)
    return state["step"]


def _same(cfg: Config, other: dict, where: Path) -> None:
    if changed := differences(other, to_dict(cfg)):
        raise ValueError(f"{where} holds a run of another config ({'; '.join(changed)}); take another "
                         "run.dir or delete that folder")


def starting_network(cfg: Config) -> Wan:
    """What is trained: all of it, or the adapters put on it."""
    if cfg.model.weights:
        net = weights.load(cfg.model.start)
    else:
        one_of("model.preset", cfg.model.preset, PRESETS)
        net = Wan(PRESETS[cfg.model.preset])
        initialise(net, generator(cfg.run.seed, "weights"))
    if adapted(cfg):
        lora.attach(net, cfg.objective.rank, generator(cfg.run.seed, "adapters"))
    net.recompute = cfg.model.recompute
    return net


def build_objective(cfg: Config, engine: Plain, student: nn.Module, average: nn.Module):
    """The objective of the config, with the teacher it needs: the frozen weights the student starts from."""
    if isinstance(cfg.objective, Flow):
        return FlowMatching(cfg.objective, student)
    if isinstance(cfg.objective, Ta):
        reference = lora.Base(student) if adapted(cfg) else engine.frozen(weights.load(cfg.model.start))
        return TrajectoryAlignment(cfg.objective, student, reference)
    teacher = engine.frozen(weights.load(cfg.model.weights))
    return OBJECTIVES[type(cfg.objective)](cfg.objective, student, average, teacher)


def adapted(cfg: Config) -> bool:
    """Whether LoRA is trained, and not the weights themselves."""
    return isinstance(cfg.objective, Ta) and cfg.objective.rank > 0


def training_data(cfg: Config, net: Wan) -> Latents | PairShards:
    if isinstance(cfg.objective, Ta):
        return PairShards(cfg)
    return load_latents(cfg, "train", net.config.text_dim, cfg.data.pool, cfg.run.seed)


def crop_source(cfg: Config, part: str) -> CropSource:
    d = cfg.data
    return CropSource(demo_clips(d.height), part, frames=d.frames, size=d.size, speed=d.speed)


def load_latents(cfg: Config, part: str, text_dim: int, count: int, seed: int) -> Latents:
    """`count` encoded crops of one split; warns of clips that are left out."""
    source, codec = crop_source(cfg, part), PcaCodec.load(cfg.model.codec)
    for clip in source.skipped:
        warnings.warn(f"left out: {clip}", stacklevel=2)
    return encode_crops(source, count, seed, codec, WordVectors(text_dim))


def learning_rate(cfg: Config, step: int) -> float:
    """Linear warm-up, then constant or cosine to zero at the last step."""
    o = cfg.optim
    rise = min(1.0, (step + 1) / o.warmup) if o.warmup else 1.0
    fall = 0.5 * (1 + math.cos(math.pi * step / cfg.run.steps)) if o.schedule == "cosine" else 1.0
    return o.lr * rise * fall
