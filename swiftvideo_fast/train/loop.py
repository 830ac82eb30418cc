"""clips -> latents -> point -> objective -> step -> average -> checkpoint."""

import math
import warnings
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from torch import nn

from swiftvideo_fast import path
from swiftvideo_fast.atomic import whole
from swiftvideo_fast.config import Ccd, Config, Dcd, Flow, differences, to_dict
from swiftvideo_fast.config.strict import one_of
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
    ValueError when an input is bad or the folder holds another run; it is found before anything is written.
    """
    run = Path(cfg.run.dir)
    agree(cfg, run)
    student = starting_network(cfg)
    ema = Ema(student, cfg.ema)
    objective = build_objective(cfg, student, ema.net)
    optimizer = torch.optim.AdamW(student.parameters(), cfg.optim.lr, cfg.optim.betas,
                                  weight_decay=cfg.optim.weight_decay, fused=True)
    nets = {"student": student, "average": ema.net} | objective.nets
    optimizers = {"optimizer": optimizer} | objective.optimizers
    start = resume(cfg, run, nets, optimizers)
    if start == cfg.run.steps and all((run / name).exists() for name in (STUDENT, AVERAGE)):
        return run

    data = load_latents(cfg, "train", student.config.text_dim, cfg.data.pool, cfg.run.seed)
    with whole(run / CONFIG) as aside:
        aside.write_text(yaml.safe_dump(to_dict(cfg), sort_keys=False))
    with closing(Report(run, start=start, steps=cfg.run.steps)) as report:
        for step in range(start, cfg.run.steps):
            # Drawn from where we are, so a resumed run draws what the first would have drawn.
            clips_seen = step * cfg.data.batch
            batch = data.draw(cfg.data.batch, cfg.run.seed, clips_seen)
            rng = generator(cfg.run.seed, "path", clips_seen)
            point = path.draw(batch.x0, rng, **asdict(cfg.times))

            loss, log = objective(point, batch, step, rng)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(student.parameters(), cfg.optim.clip)
            if not (loss.isfinite() and norm.isfinite()):
                raise FloatingPointError(
                    f"{run}: at step {step} the loss is {loss.item()}, its gradient norm {norm.item()}; the "
                    f"last good checkpoint is {checkpoint.newest(run)}; lower optim.lr, in another run.dir")
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(cfg, step)
            optimizer.step()
            ema.update()
            log |= objective.after_step()

            done = step + 1
            if done % cfg.run.log_every == 0 or done == cfg.run.steps:
                lr = learning_rate(cfg, step)
                report(done, {"loss": loss.item(), "grad_norm": norm.item(), "lr": lr} | log)
            report.tick()
            if done % cfg.run.save_every == 0 or done == cfg.run.steps:
                report.sync()
                checkpoint.save(run, done, nets=nets, optimizers=optimizers,
                                state={"config": to_dict(cfg)}, keep=cfg.run.keep)
    for name, net in ((STUDENT, student), (AVERAGE, ema.net)):
        weights.save(net, run / name, sample=asdict(cfg.sample), trained=to_dict(cfg))
    return run


def agree(cfg: Config, run: Path) -> None:
    """ValueError with the keys that differ when the folder holds a run of another config."""
    try:
        _same(cfg, yaml.safe_load((run / CONFIG).read_text()), run)
    except FileNotFoundError:
        pass
    except (OSError, yaml.YAMLError, UnicodeDecodeError, AttributeError) as why:
        raise ValueError(f"{run / CONFIG}: not the config of a run ({why}); take another run.dir or delete "
                         "that file") from why


def resume(cfg: Config, run: Path, nets: dict[str, nn.Module],
           optimizers: dict[str, torch.optim.Optimizer]) -> int:
    """The steps done by the newest checkpoint, now in nets and optimizers; 0 without one."""
    last = checkpoint.newest(run)
    if last is None:
        return 0
    state = checkpoint.restore(last, nets=nets, optimizers=optimizers)
    _same(cfg, state.get("config", {}), last)
    checkpoint.tidy(run, cfg.run.keep)
    return state["step"]


def _same(cfg: Config, other: dict, where: Path) -> None:
    if changed := differences(other, to_dict(cfg)):
        raise ValueError(f"{where} holds a run of another config ({'; '.join(changed)}); take another "
                         "run.dir or delete that folder")


def starting_network(cfg: Config) -> Wan:
    if cfg.model.weights:
        net = weights.load(cfg.model.student or cfg.model.weights)
    else:
        one_of("model.preset", cfg.model.preset, PRESETS)
        net = Wan(PRESETS[cfg.model.preset])
        initialise(net, generator(cfg.run.seed, "weights"))
    net.recompute = cfg.model.recompute
    return net


def build_objective(cfg: Config, student: Wan, average: Wan):
    """The objective of the config, with the teacher it needs: the frozen weights the student starts from."""
    if isinstance(cfg.objective, Flow):
        return FlowMatching(cfg.objective, student)
    teacher = weights.load(cfg.model.weights).requires_grad_(False).eval()
    return OBJECTIVES[type(cfg.objective)](cfg.objective, student, average, teacher)


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
