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
from swiftvideo_fast.config import Ccd, Config, Dcd, Flow, Optim, Ta, differences, from_dict, to_dict
from swiftvideo_fast.config.strict import one_of
from swiftvideo_fast.data.clips import demo_clips
from swiftvideo_fast.data.crops import CropSource
from swiftvideo_fast.data.latents import Latents, encode_crops
from swiftvideo_fast.data.pairs import PairShards
from swiftvideo_fast.models import discriminator, lora, weights
from swiftvideo_fast.models.backbones import load_backbone
from swiftvideo_fast.models.codec import PcaCodec
from swiftvideo_fast.models.encoders import WordVectors
from swiftvideo_fast.models.wan.network import PRESETS, RECOMPUTE, Wan, initialise
from swiftvideo_fast.objectives import Consistency, Log
from swiftvideo_fast.objectives.ccd import ConsistencyDistillation
from swiftvideo_fast.objectives.da import BETAS, DistributionAlignment, Judge
from swiftvideo_fast.objectives.dcd import DiscreteDistillation
from swiftvideo_fast.objectives.flow import FlowMatching
from swiftvideo_fast.objectives.ta import TrajectoryAlignment
from swiftvideo_fast.seeds import generator
from swiftvideo_fast.train import checkpoint
from swiftvideo_fast.train.callbacks import Guard, Watch
from swiftvideo_fast.train.plain import Engine, Plain
from swiftvideo_fast.train.ranks import Ranks, launched, passes_of
from swiftvideo_fast.train.report import Report, Silence, wanted_wandb

OBJECTIVES = {Flow: FlowMatching, Ccd: ConsistencyDistillation, Dcd: DiscreteDistillation}
WATCHED = 32        # held-out clips that an adversary is watched by
SHOWN = 4           # clips in the samples of a run
CONFIG, STUDENT, AVERAGE = "config.yaml", "student.safetensors", "average.safetensors"


def train(cfg: Config) -> Path:
    """Run to cfg.run.steps, going on from the newest good checkpoint of cfg.run.dir; returns that folder.

    It then holds config.yaml, log.jsonl, tensorboard/, checkpoints, and the weights student.safetensors and
    average.safetensors.  A run interrupted anywhere ends with the same bits as one that was not.
    ValueError when an input is bad or the folder holds another run; it is found before anything is written.
    """
    run = Path(cfg.run.dir)
    agree(cfg, run)
    if cfg.run.wandb:
        wanted_wandb()
    engine = start_engine(cfg)
    ranks, passes = engine.ranks, Passes(cfg, engine.ranks)
    student, ema = engine.student(starting_network(cfg, engine.mapped), cfg.optim, cfg.ema)
    objective = build_objective(cfg, engine, student.net, ema.net)
    parts = {"student": student, "average": ema, **objective.trained}
    state = resume(cfg, run, parts, ranks)
    start, guard = state["step"], Guard(cfg.optim.skips, state["skipped"])
    if start == cfg.run.steps and all((run / name).exists() for name in (STUDENT, AVERAGE)):
        return run

    data = training_data(cfg, student.net)
    watch = watching(cfg, engine, {"student": student.net, "average": ema.net, "teacher": objective.teacher})
    ranks.together(lambda: _write(cfg, run / CONFIG) if ranks.rank == 0 else "")
    with closing(reporting(cfg, start) if ranks.rank == 0 else Silence()) as report:
        for step in range(start, cfg.run.steps):
            logs = []
            for batch, point, rng in passes.draw(data, step, engine.device):
                loss, log = objective(point, batch, step, rng)
                student.backward(loss)
                logs.append({"loss": loss.item()} | log)
            lr = learning_rate(cfg, step)
            norm = student.step(lr)
            done, log = step + 1, pooled(logs, ranks) | {"grad_norm": norm, "lr": lr}
            if math.isfinite(norm):
                ema.update()
            if skipped := guard(run, done, log):
                log |= {"skipped": skipped}
            log |= pooled(objective.after_step(), ranks)

            watched = watch and done % cfg.run.watch_every == 0
            if watched:
                figures, image = watch(done)
                report.image(done, image)
                log |= figures
            if done % cfg.run.log_every == 0 or done == cfg.run.steps or skipped or watched:
                report(done, log)
            report.tick()
            if done % cfg.run.save_every == 0 or done == cfg.run.steps:
                report.sync()
                state = {"config": to_dict(cfg), "skipped": skipped}
                checkpoint.save(run, done, parts=parts, state=state, keep=cfg.run.keep, ranks=ranks)
    for part, file in (("student", STUDENT), ("average", AVERAGE)) if ranks.rank == 0 else ():
        export(checkpoint.newest(run), part, run / file)
    ranks.gather("exported")
    return run


def _write(cfg: Config, file: Path) -> str:
    with whole(file) as aside:
        aside.write_text(yaml.safe_dump(to_dict(cfg), sort_keys=False))
    return ""


def export(folder: Path, part: str, file: Path) -> None:
    """A checkpoint's student or average as a weight file; wants no GPU, no DeepSpeed, and one process."""
    saved = checkpoint.Saved(folder)
    cfg = from_dict(saved.state["config"])
    net, about = starting_network(cfg), {"sample": asdict(cfg.sample), "trained": to_dict(cfg)}
    net.load_state_dict(saved.tensors(f"{part}/weight/"), strict=False)
    if adapted(cfg):
        lora.save(net, file.with_name(f"lora-{file.name}"), **about)
    weights.save(lora.merged(net) if adapted(cfg) else net, file, **about)


def start_engine(cfg: Config) -> Engine:
    if cfg.engine.name == "zero3":
        from swiftvideo_fast.train.engine import Sharded
        return Sharded(cfg)
    if launched()[1] > 1:
        raise ValueError(f"engine.name is plain in {launched()[1]} processes; want one, or engine.name=zero3")
    return Plain(cfg)


class Passes:
    """The backward passes of a step that are this rank's, each with what it draws.

    Drawn from where we are: a resumed run draws what the first would have drawn, and however many replicas
    share out the passes of a step, together they draw the same.
    """

    def __init__(self, cfg: Config, ranks: Ranks):
        self.cfg, self.replica, self.replicas = cfg, ranks.replica, ranks.replicas
        self.micro = passes_of(cfg, ranks)[1]

    def draw(self, data: Latents | PairShards, step: int,
             device: torch.device) -> Iterator[tuple[Latents, path.Point, torch.Generator]]:
        """(batch, point, rng) of each."""
        batch, seed = self.cfg.data.batch, self.cfg.run.seed
        first = step * batch + self.replica * self.micro
        for clips_seen in range(first, (step + 1) * batch, self.replicas * self.micro):
            clips = data.draw(self.micro, seed, clips_seen).to(device)
            rng = generator(seed, "path", clips_seen)
            yield clips, path.draw(clips.x0, rng, **asdict(self.cfg.times)), rng


def pooled(logs: list[Log], ranks: Ranks) -> Log:
    """One log of a step's passes on all ranks: means; of a histogram, all that this rank has seen."""
    if not logs:
        return {}
    tensors = {name: torch.cat([log[name].flatten() for log in logs])
               for name, value in logs[0].items() if isinstance(value, Tensor)}
    scalars = [name for name in logs[0] if name not in tensors]
    means = ranks.mean([sum(log[name] for log in logs) / len(logs) for name in scalars])
    return dict(zip(scalars, means)) | tensors


def agree(cfg: Config, run: Path) -> None:
    """ValueError with the keys that differ when the folder holds a run of another config."""
    try:
        _same(cfg, yaml.safe_load((run / CONFIG).read_text()), run)
    except FileNotFoundError:
        pass
    except (OSError, yaml.YAMLError, UnicodeDecodeError, AttributeError) as why:
        raise ValueError(f"{run / CONFIG}: not the config of a run ({why}); take another run.dir or delete "
                         "that file") from why


def resume(cfg: Config, run: Path, parts: dict[str, checkpoint.Part], ranks: Ranks) -> dict:
    """The state of the newest good checkpoint, now in the parts: "step", those done, and "skipped"."""
    saved = checkpoint.last_good(run, ranks)
    if saved is None:
        return {"step": 0, "skipped": 0}
    _same(cfg, saved.state.get("config", {}), saved.folder)
    state = checkpoint.restore(saved, parts)
    if ranks.rank == 0:
        checkpoint.tidy(run, cfg.run.keep)
    return state


def _same(cfg: Config, other: dict, where: Path) -> None:
    if changed := differences(other, to_dict(cfg)):
        raise ValueError(f"{where} holds a run of another config ({'; '.join(changed)}); take another "
                         "run.dir or delete that folder")


def starting_network(cfg: Config, mapped: bool = False) -> Wan:
    """What is trained: all of it, or the adapters put on it.  mapped: as weights.load."""
    if cfg.model.weights:
        net = weights.load(cfg.model.start, mapped=mapped)
    else:
        one_of("model.preset", cfg.model.preset, PRESETS)
        net = Wan(PRESETS[cfg.model.preset])
        initialise(net, generator(cfg.run.seed, "weights"))
    if adapted(cfg):
        lora.attach(net, cfg.objective.rank, generator(cfg.run.seed, "adapters"), torch.float32)
    one_of("model.recompute", cfg.model.recompute, RECOMPUTE)
    net.recompute = cfg.model.recompute
    return net


def build_objective(cfg: Config, engine: Engine, student: nn.Module, average: nn.Module):
    """The objective of the config, with the teacher it needs: the frozen weights the student starts from."""
    def frozen(file: str) -> nn.Module:
        return engine.frozen(weights.load(file, mapped=engine.mapped))

    if isinstance(cfg.objective, Flow):
        return FlowMatching(cfg.objective, student)
    if isinstance(cfg.objective, Ta):
        reference = lora.Base(student) if adapted(cfg) else frozen(cfg.model.start)
        return TrajectoryAlignment(cfg.objective, student, reference)
    teacher = frozen(cfg.model.weights)
    objective = OBJECTIVES[type(cfg.objective)](cfg.objective, student, average, teacher)
    return align(cfg, engine, objective, student.config.text_dim) if cfg.da else objective


def align(cfg: Config, engine: Engine, distillation: Consistency, text_dim: int) -> DistributionAlignment:
    """The objective with an adversary beside it, whose heads are drawn from the seed, equal on all ranks."""
    backbone = engine.frozen(load_backbone(cfg.da.backbone))
    judge = Judge(backbone.widths, text_dim, cfg.da.project)
    discriminator.initialise(judge, generator(cfg.run.seed, "judge"))
    codec = None if cfg.da.project else PcaCodec.load(cfg.model.codec)
    held_out = None
    if cfg.da.watch:
        clips = load_latents(cfg, "valid", text_dim, WATCHED, cfg.run.seed)
        clips = clips.to(engine.device)
        held_out = path.draw(clips.x0, generator(cfg.run.seed, "watch"), **asdict(cfg.times)), clips
    trained = engine.trained(judge, Optim(cfg.da.lr, betas=BETAS, weight_decay=0.0, clip=math.inf))
    return DistributionAlignment(cfg.da, distillation, trained, backbone, codec, held_out)


def adapted(cfg: Config) -> bool:
    """Whether LoRA is trained, and not the weights themselves."""
    return isinstance(cfg.objective, Ta) and cfg.objective.rank > 0


def training_data(cfg: Config, net: Wan) -> Latents | PairShards:
    if isinstance(cfg.objective, Ta):
        return PairShards(cfg)
    return load_latents(cfg, "train", net.config.text_dim, cfg.data.pool, cfg.run.seed)


def crop_source(cfg: Config, part: str) -> CropSource:
    d = cfg.data
    return CropSource(demo_clips(d.height), part, frames=d.frames, size=d.size, speed=d.speed,
                      pace=d.pace)


def load_latents(cfg: Config, part: str, text_dim: int, count: int, seed: int) -> Latents:
    """`count` encoded crops of one split; warns of clips that are left out."""
    source, codec = crop_source(cfg, part), PcaCodec.load(cfg.model.codec)
    for clip in source.skipped:
        warnings.warn(f"left out: {clip}", stacklevel=2)
    return encode_crops(source, count, seed, codec, WordVectors(text_dim),
                        keep_pixels=bool(cfg.da and cfg.da.raw))


def reporting(cfg: Config, start: int) -> Report:
    run = cfg.run
    return Report(Path(run.dir), start=start, steps=run.steps, wandb=run.wandb, about=to_dict(cfg))


def watching(cfg: Config, engine: Engine, nets: dict[str, nn.Module | None]) -> Watch | None:
    """What looks at samples of these networks, where the config asks for it."""
    if not cfg.run.watch_every:
        return None
    clips = load_latents(cfg, "valid", nets["student"].config.text_dim, SHOWN, cfg.run.seed)
    nets = {name: net for name, net in nets.items() if net is not None}
    return Watch(cfg, nets, clips, PcaCodec.load(cfg.model.codec), engine)


def learning_rate(cfg: Config, step: int) -> float:
    """Linear warm-up, then constant or cosine to zero at the last step."""
    o = cfg.optim
    rise = min(1.0, (step + 1) / o.warmup) if o.warmup else 1.0
    fall = 0.5 * (1 + math.cos(math.pi * step / cfg.run.steps)) if o.schedule == "cosine" else 1.0
    return o.lr * rise * fall
