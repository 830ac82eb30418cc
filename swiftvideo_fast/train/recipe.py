"""Builds a Run from a config.  Holds the tables of objectives, sources and families; no other module does."""

import warnings
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from swiftvideo_fast import config
from swiftvideo_fast.config import Config, Plugs, to_dict
from swiftvideo_fast.config.strict import known_name, want
from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.data.crops import EncodedCrops
from swiftvideo_fast.data.pairs import folder_of
from swiftvideo_fast.data.prefetch import Prefetched
from swiftvideo_fast.data.shards import ShardSource
from swiftvideo_fast.data.source import Drawn, Source
from swiftvideo_fast.data.videos import VideoSource
from swiftvideo_fast.models import lora
from swiftvideo_fast.models.family import Codec, Family, sizes_of
from swiftvideo_fast.models.toy.family import ToyFamily
from swiftvideo_fast.models.wan.family import WanFamily
from swiftvideo_fast.objectives.base import (
    AVERAGE,
    STUDENT,
    Average,
    Consistency,
    Frozen,
    Network,
    Objective,
    Setup,
    Trains,
    WithoutAdapters,
)
from swiftvideo_fast.objectives.ccd import ConsistencyDistillation
from swiftvideo_fast.objectives.da import Da, DistributionAlignment
from swiftvideo_fast.objectives.dcd import DiscreteDistillation
from swiftvideo_fast.objectives.dmd2 import DistributionMatching
from swiftvideo_fast.objectives.flow import FlowMatching
from swiftvideo_fast.objectives.flowmap import FlowMapDistillation
from swiftvideo_fast.objectives.lcm import LatentConsistency
from swiftvideo_fast.objectives.osv import OneStep
from swiftvideo_fast.objectives.pcm import PhasedConsistency
from swiftvideo_fast.objectives.ta import TrajectoryAlignment
from swiftvideo_fast.seeds import generator
from swiftvideo_fast.train import checkpoint, loop, preflight, run_folder
from swiftvideo_fast.train.engine import Engine
from swiftvideo_fast.train.health import FEW_STEPS, MANY_STEPS, Guard, Watch
from swiftvideo_fast.train.loop import Mover, Run
from swiftvideo_fast.train.single import Single

HELD_OUT = 4            # held-out clips sampled during a run
SAMPLINGS = 4           # samplings per run when run.watch_every is unset
FILES = {STUDENT: "student.safetensors", AVERAGE: "average.safetensors"}      # final weights


def by_name(*classes: type) -> dict[str, type]:
    return {cls.Options.name: cls for cls in classes}


@dataclass(frozen=True, eq=False)
class Tables:
    """Objectives, sources and families by their names in configs."""

    objectives: Mapping[str, type[Objective]]
    sources: Mapping[str, type[Source]]
    families: Mapping[str, Family]

    def plugs(self) -> Plugs:
        """Returns the option dataclasses by config section, for parsing configs."""
        return {"objective": {name: cls.Options for name, cls in self.objectives.items()},
                "data": {name: cls.Options for name, cls in self.sources.items()}, "da": Da}

    def load(self, path: Path | str, overrides: list[str] = ()) -> Config:
        """Returns the checked config of a YAML file; ValueError names file, key, found and wanted."""
        tree = config.read(path, overrides)
        try:
            return self.from_dict(tree)
        except ValueError as why:
            raise ValueError(f"{path}: {why}") from why

    def from_dict(self, tree: dict) -> Config:
        """Returns the checked config of a nested dict; the inverse of to_dict."""
        cfg = config.from_dict(tree, self.plugs())
        self.check(cfg)
        return cfg

    def fill_defaults(self, tree: dict) -> dict:
        """Returns the nested dict of an older config with current defaults for missing keys."""
        try:
            return to_dict(config.from_dict(tree, self.plugs()))
        except ValueError:
            return tree

    def check(self, cfg: Config) -> None:
        """Raises ValueError for sections that are valid alone but not together."""
        objective, da = self.objectives[cfg.objective.name], cfg.da
        known_name("model.family", cfg.model.family, self.families)
        family = self.families[cfg.model.family]
        if cfg.model.preset:
            known_name("model.preset", cfg.model.preset, family.presets)
        want(bool(cfg.model.weights) or objective.from_scratch, "model.weights", cfg.model.weights,
             f"a file: {cfg.objective.name} distils the teacher in it")
        want(not objective.second_time or hasattr(family, "add_second_time"), "model.family",
             cfg.model.family, f"one whose networks can take a second time, as {cfg.objective.name} has")
        frames, height, width = cfg.data.shape(family.latent)
        want(not da or issubclass(objective, Consistency), "da", "a section",
             f"none with {cfg.objective.name}: DA needs a consistency objective")
        want(not da or da.lead <= da.start, "da.lead", da and da.lead,
             f"at most da.start, {da and da.start}: the last steps before it")
        want(not da or da.window <= frames, "da.window", da and da.window,
             f"at most the {frames} latent frames of a clip")
        side = family.latent.stride * min(height, width)
        want(not da or da.project or da.crop <= side, "da.crop", da and da.crop,
             f"at most {side}, the shorter side of a frame of the data, in pixels")


TABLES = Tables(
    objectives=by_name(FlowMatching, ConsistencyDistillation, DiscreteDistillation, FlowMapDistillation,
                       LatentConsistency, PhasedConsistency, DistributionMatching, OneStep,
                       TrajectoryAlignment),
    sources=by_name(EncodedCrops, ShardSource, VideoSource),
    families={family.name: family for family in (WanFamily(), ToyFamily())},
)


class Parts:
    """The components a config names (sizes, codec, clips, networks), each built on first use."""

    def __init__(self, cfg: Config, tables: Tables = TABLES):
        self.cfg, self.tables, self.family = cfg, tables, tables.families[cfg.model.family]

    @cached_property
    def sizes(self) -> Any:
        return sizes_of(self.family, self.cfg.model)

    @cached_property
    def codec(self) -> Codec:
        return self.family.codec(self.cfg.model, self.sizes)

    @cached_property
    def clips(self) -> Source:
        """The source that the data section names."""
        cfg = self.cfg
        opened = self.tables.sources[cfg.data.name]
        return opened(cfg.data, self.codec, cfg.run.seed, pixels=bool(cfg.da and cfg.da.raw))

    def network(self, file: str, mapped: bool = False) -> nn.Module:
        """Returns the network of a weight file, in the engine's storage dtype."""
        return self.family.load(file, mapped=mapped, dtype=torch.bfloat16 if self.halved else torch.float32)

    def start(self, mapped: bool = False) -> nn.Module:
        """Returns the network to train, with LoRA adapters and a second time input where configured.
        mapped: as in Family.load."""
        cfg = self.cfg
        if cfg.model.weights:
            net = self.network(cfg.model.start, mapped)
        else:
            net = self.family.network(self.family.presets[cfg.model.preset])
            self.family.initialise(net, generator(cfg.run.seed, "weights"))
            net = self.family.cast(net, torch.bfloat16) if self.halved else net
        if self.tables.objectives[cfg.objective.name].second_time:
            self.family.add_second_time(net)
        if self.adapter_rank:
            lora.attach(net, self.adapter_rank, generator(cfg.run.seed, "adapters"), torch.float32)
            if self.halved:
                lora.cast(net, torch.bfloat16)
        net.recompute = cfg.model.recompute
        return net

    def check_sizes(self) -> None:
        """Raises ValueError for options that the network's sizes rule out."""
        cfg, two = self.cfg, self.tables.objectives[self.cfg.objective.name].second_time
        two = two or getattr(self.sizes, "second_time", False)
        want(two or cfg.sample.sampler != "flowmap", "sample.sampler", "flowmap", "euler or consistency: the "
             f"network that {cfg.objective.name} trains is not a flow map (it takes one time)")
        heads, n = getattr(self.sizes, "heads", 1), cfg.engine.sequence
        want(heads % n == self.tokens % n == 0, "engine.sequence", n,
             f"a divisor of the {heads} heads and {self.tokens} tokens of a clip")

    @property
    def tokens(self) -> int:
        """Tokens per clip."""
        T, H, W = self.cfg.data.shape(self.family.latent)
        return T * H * W // self.family.latent.patch**2

    @property
    def halved(self) -> bool:
        """Whether networks are cast to bfloat16 here; the ZeRO-3 engine casts module by module itself."""
        return self.cfg.engine.name == "plain" and self.cfg.engine.dtype == "bfloat16"

    @property
    def adapter_rank(self) -> int:
        """LoRA rank; 0 when all weights train."""
        return getattr(self.cfg.objective, "rank", 0)


def setup(parts: Parts, device: torch.device, mapped: bool = False) -> Setup:
    model = parts.cfg.model
    return Setup(family=parts.family, device=device, sizes=lambda: parts.sizes,
                 start=partial(parts.start, mapped), teacher=partial(parts.network, model.weights, mapped),
                 reference=partial(parts.network, model.start, mapped),
                 codec=lambda: parts.codec, clips=lambda: parts.clips)


def build_objective(parts: Parts, made: Setup) -> Objective:
    cfg = parts.cfg
    objective = parts.tables.objectives[cfg.objective.name](cfg, made)
    return DistributionAlignment(cfg, made, objective) if cfg.da else objective


def build(cfg: Config, tables: Tables = TABLES) -> Run:
    """Returns a Run with its networks built and placed; writes nothing.  ValueError for bad input."""
    tables.check(cfg)
    run_folder.check(cfg, tables.fill_defaults)
    parts = Parts(cfg, tables)
    parts.check_sizes()
    preflight.check(cfg, parts.family)
    engine = start_engine(cfg)
    objective = build_objective(parts, setup(parts, engine.device, engine.mapped))
    nets, movers, averages = place(objective.networks(), engine)

    def open_data() -> tuple[Drawn, Watch | None]:
        drawn, watch = objective.source(parts.clips), None
        if held_out := held_out_clips(parts):
            few = not tables.objectives[cfg.objective.name].from_scratch
            watch = Watch(cfg, watch_every(cfg), nets, parts.family.call, held_out, parts.codec,
                          engine.device, engine.ranks, FEW_STEPS if few else MANY_STEPS)
        drawn.draw(1, cfg.run.seed, 0)          # fails on bad input before anything is written
        return Prefetched(drawn, engine.device) if drawn.prefetch else drawn, watch

    exported = {role: Path(cfg.run.dir) / file for role, file in FILES.items()}
    return Run(cfg, engine, objective, nets, movers, averages, open_data, parts.tokens, exported,
               partial(export, tables=tables), tables.fill_defaults)


def watch_every(cfg: Config) -> int:
    """Returns run.watch_every; if unset, a quarter of the run."""
    every = cfg.run.watch_every
    return -(-cfg.run.steps // SAMPLINGS) if every is None else every


def held_out_clips(parts: Parts) -> Batch | None:
    """Returns the clips sampled during training; None when run.watch_every is 0.

    Without held-out clips in the data: a warning and None; ValueError if run.watch_every is set.
    """
    run = parts.cfg.run
    if not watch_every(parts.cfg):
        return None
    try:
        return parts.clips.clips("valid", HELD_OUT, run.seed)
    except ValueError as why:
        if run.watch_every is not None:
            raise
        warnings.warn(f"{run.dir}: no samples while training ({why}); run.watch_every=0 turns them off",
                      stacklevel=2)
        return None


@dataclass(frozen=True)
class DryRun:
    """Summary of a run.  parameters, trained: counts of the student.  data: one line.  tokens: per clip."""

    parameters: int
    trained: int
    data: str
    tokens: int


def dry_run(cfg: Config, tables: Tables = TABLES) -> DryRun:
    """Raises ValueError, OSError or ImportError wherever `build` or the data would; returns a summary.

    Networks are built one at a time with memory-mapped weights; nothing is written.
    """
    tables.check(cfg)
    run_folder.check(cfg, tables.fill_defaults)
    with closing(run_folder.Lock(cfg)) as lock:
        lock.acquire()
    parts = Parts(cfg, tables)
    parts.check_sizes()
    preflight.check(cfg, parts.family)
    objective = build_objective(parts, setup(parts, torch.device("cpu"), mapped=True))
    for role, spec in objective.networks().items():
        net = spec.build() if isinstance(spec, Trains | Frozen) else None
        if role == STUDENT:
            sizes = [(p.numel(), p.requires_grad) for p in net.parameters()]
    drawn = objective.source(parts.clips)
    data = drawn.summary()
    if not drawn.prefetch:
        held_out_clips(parts)
    return DryRun(sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains), data, parts.tokens)


def dry_run_pairs(parts: Parts) -> None:
    """As dry_run, for make_pairs.  No lock is taken: several processes may write pairs."""
    preflight.check_writable("objective.pairs", folder_of(parts.cfg))
    parts.start(mapped=True)
    parts.clips.summary()


def place(networks: Mapping[str, Network], engine: Engine) -> tuple[dict, dict[str, Mover], dict]:
    """Builds the networks and places them on the engine; returns (nets, movers, averages) by role."""
    nets, movers, averages = {}, {}, {}
    average_of = {spec.of: (role, spec) for role, spec in networks.items() if isinstance(spec, Average)}
    for role, spec in networks.items():
        if isinstance(spec, Trains) and role in average_of:
            average_role, average = average_of[role]
            trained, averages[average_role] = engine.averaged(spec.build(), spec.optim, average.decay)
            nets[average_role] = averages[average_role].net
        elif isinstance(spec, Trains):
            trained = engine.trained(spec.build(), spec.optim)
        elif isinstance(spec, Frozen):
            nets[role] = engine.frozen(spec.build())
        elif isinstance(spec, WithoutAdapters):
            nets[role] = lora.Base(nets[spec.of])
        if isinstance(spec, Trains):
            nets[role] = trained.net
            trained.net.eval()
            movers[role] = Mover(trained, spec.optim, Guard(role, spec.optim.max_skips, 0),
                                 averages.get(average_of[role][0]) if role in average_of else None)
    return nets, movers, averages


def start_engine(cfg: Config) -> Engine:
    if cfg.engine.name == "zero3":
        from swiftvideo_fast.train.zero3 import Zero3
        return Zero3(cfg)
    return Single(cfg)


def train(cfg: Config, tables: Tables = TABLES) -> Path:
    """Builds and trains; returns run.dir.  Errors as loop.train."""
    return loop.train(build(cfg, tables))


def export(folder: Path, role: str, file: Path, tables: Tables = TABLES) -> None:
    """Writes a checkpoint's student or average as a weight file, and its LoRA as lora-*; with one process, no
    GPU and no DeepSpeed."""
    saved = checkpoint.Saved(folder)
    cfg = tables.from_dict(saved.state["config"])
    parts = Parts(cfg, tables)
    net, about = parts.start(), {"sample": asdict(cfg.sample), "trained": to_dict(cfg)}
    net.load_state_dict(saved.tensors(f"{role}/weight/"), strict=False)
    if parts.adapter_rank:
        lora.save(net, file.with_name(f"lora-{file.name}"), **about)
        net = lora.merged(net)
    parts.family.save(net, file, **about)
