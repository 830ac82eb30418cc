"""clips -> latents -> point -> objective -> step -> average -> checkpoint."""

import math
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from torch import nn

from swiftvideo_fast import path
from swiftvideo_fast.config import Ccd, Config, Dcd, Flow, to_dict
from swiftvideo_fast.data.clips import demo_clips
from swiftvideo_fast.data.crops import CropSource
from swiftvideo_fast.data.latents import Latents, encode_crops
from swiftvideo_fast.models import weights
from swiftvideo_fast.models.codec import PcaCodec
from swiftvideo_fast.models.encoders import WordVectors
from swiftvideo_fast.models.wan import PRESETS, Wan, initialise
from swiftvideo_fast.objectives.ccd import ConsistencyDistillation
from swiftvideo_fast.objectives.dcd import DiscreteDistillation
from swiftvideo_fast.objectives.flow import FlowMatching
from swiftvideo_fast.seeds import generator
from swiftvideo_fast.train import checkpoint
from swiftvideo_fast.train.ema import Ema
from swiftvideo_fast.train.report import Report

OBJECTIVES = {Flow: FlowMatching, Ccd: ConsistencyDistillation, Dcd: DiscreteDistillation}
CONFIG, STUDENT, AVERAGE = "config.yaml", "student.safetensors", "average.safetensors"


def train(cfg: Config) -> Path:
    """Run to cfg.run.steps, going on from the newest checkpoint of cfg.run.dir; returns that folder.

    It then holds config.yaml, log.jsonl, tensorboard/, checkpoints, and the weights student.safetensors and
    average.safetensors.  A run interrupted anywhere ends with the same bits as one that was not.
    """
    run = Path(cfg.run.dir)
    student = starting_network(cfg)
    ema = Ema(student, cfg.ema)
    objective = build_objective(cfg, student, ema.net)
    optimizer = torch.optim.AdamW(student.parameters(), cfg.optim.lr, cfg.optim.betas,
                                  weight_decay=cfg.optim.weight_decay, fused=True)
    nets = {"student": student, "average": ema.net}
    settle(run, cfg)
    last = checkpoint.newest(run)
    start = checkpoint.restore(last, nets=nets, optimizer=optimizer)["step"] if last else 0
    if start >= cfg.run.steps and (run / AVERAGE).exists():
        return run

    data = load_latents(cfg, "train", student.config.text_dim, cfg.data.pool, cfg.run.seed)
    report = Report(run, start=start, steps=cfg.run.steps)
    for step in range(start, cfg.run.steps):
        # Drawn from where we are, so a resumed run draws what the first would have drawn.
        clips_seen = step * cfg.data.batch
        batch = data.draw(cfg.data.batch, cfg.run.seed, clips_seen)
        rng = generator(cfg.run.seed, "path", clips_seen)
        point = path.draw(batch.x0, rng, **asdict(cfg.times))

        loss, log = objective(point, batch.condition, step, rng)
        if not loss.isfinite():
            raise FloatingPointError(f"{run}: the loss is {loss.item()} at step {step}; the last good checkpoint is "
                                     f"{checkpoint.newest(run) or 'none'}; lower optim.lr")
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(student.parameters(), cfg.optim.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(cfg, step)
        optimizer.step()
        ema.update()

        done = step + 1
        if done % cfg.run.log_every == 0 or done == cfg.run.steps:
            report(done, {"loss": loss.item(), "grad_norm": norm.item(), "lr": learning_rate(cfg, step)} | log)
        report.tick()
        if done % cfg.run.save_every == 0 or done == cfg.run.steps:
            checkpoint.save(run, done, nets=nets, optimizer=optimizer, state={"config": to_dict(cfg)},
                            keep=cfg.run.keep)
    report.close()
    for name, net in ((STUDENT, student), (AVERAGE, ema.net)):
        weights.save(net, run / name, sample=asdict(cfg.sample), trained=to_dict(cfg))
    return run


def starting_network(cfg: Config) -> Wan:
    if cfg.model.weights:
        return weights.load(cfg.model.weights)
    if cfg.model.preset not in PRESETS:
        raise ValueError(f"model.preset is {cfg.model.preset!r}; want one of {list(PRESETS)}")
    net = Wan(PRESETS[cfg.model.preset])
    initialise(net, generator(cfg.run.seed, "weights"))
    return net


def build_objective(cfg: Config, student: Wan, average: Wan):
    """The objective of the config, with the teacher it needs: the frozen weights the student starts from."""
    if isinstance(cfg.objective, Flow):
        return FlowMatching(cfg.objective, student)
    if not cfg.model.weights:
        raise ValueError("model.weights is missing; a distillation starts from its teacher")
    teacher = weights.load(cfg.model.weights).requires_grad_(False).eval()
    return OBJECTIVES[type(cfg.objective)](cfg.objective, student, average, teacher)


def crop_source(cfg: Config, part: str) -> CropSource:
    d = cfg.data
    return CropSource(demo_clips(d.height), part, frames=d.frames, size=d.size, speed=d.speed)


def load_latents(cfg: Config, part: str, text_dim: int, count: int, seed: int) -> Latents:
    """`count` encoded crops of one split."""
    return encode_crops(crop_source(cfg, part), count, seed, PcaCodec.load(cfg.model.codec), WordVectors(text_dim))


def learning_rate(cfg: Config, step: int) -> float:
    """Linear warm-up, then constant or cosine to zero at the last step."""
    o = cfg.optim
    rise = min(1.0, (step + 1) / o.warmup) if o.warmup else 1.0
    fall = 0.5 * (1 + math.cos(math.pi * step / cfg.run.steps)) if o.schedule == "cosine" else 1.0
    return o.lr * rise * fall


def settle(run: Path, cfg: Config) -> None:
    """Make the run folder this config's; ValueError if it holds a run of another."""
    mine = to_dict(cfg)
    if (run / CONFIG).exists():
        theirs = yaml.safe_load((run / CONFIG).read_text())
        changed = [f"{k}: {theirs.get(k)} -> {mine.get(k)}" for k in mine.keys() | theirs.keys()
                   if theirs.get(k) != mine.get(k)]
        if changed:
            raise ValueError(f"{run} holds a run of another config ({'; '.join(changed)}); take another run.dir "
                             "or delete that folder")
    run.mkdir(parents=True, exist_ok=True)
    aside = run / f".{CONFIG}.part"
    aside.write_text(yaml.safe_dump(mine, sort_keys=False))
    aside.rename(run / CONFIG)
