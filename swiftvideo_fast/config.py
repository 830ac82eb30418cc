"""A run as data: YAML plus dotted overrides into frozen dataclasses, checked before anything is allocated."""

import difflib
import types
import typing
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Run:
    """Where and how long.  steps: optimizer steps.  keep: newest checkpoints kept."""

    dir: str
    steps: int
    seed: int = 0
    save_every: int = 500
    log_every: int = 10
    keep: int = 2


@dataclass(frozen=True)
class Data:
    """Crops of the demo's clips.  frames: 4n + 1.  size, height: pixels; speed: pixels a frame.  pool: crops encoded ahead."""

    frames: int = 17
    size: int = 64
    height: int = 96
    speed: float = 0.5
    pool: int = 2048
    batch: int = 16


@dataclass(frozen=True)
class Model:
    """preset: a name in models.wan.PRESETS, for a network from scratch; weights: the file to start from (and the
    teacher, where the objective has one).  Exactly one of the two.  codec: a file by PcaCodec.save."""

    codec: str
    preset: str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Times:
    """The time sampler of training, Table 2d: t = sigmoid(N(mean, std^2)), or uniform."""

    mean: float = -0.6
    std: float = 1.4
    uniform: bool = False


@dataclass(frozen=True)
class Flow:
    """Flow matching (eq. 2).  drop_text: the share of clips whose text is dropped, for guidance."""

    drop_text: float = 0.1


@dataclass(frozen=True)
class Ccd:
    """Continuous-time consistency distillation (Algorithm 1).

    guidance: of the teacher.  warmup: H, steps until r reaches r_max.  norm: l2 (the paper), rms or clip;
    c: its constant.  r_max: below 1 the distillation stays partial, as Euler sampling wants.
    """

    guidance: float = 3.0
    warmup: int = 1000
    norm: str = "l2"
    c: float = 0.1
    r_max: float = 1.0


@dataclass(frozen=True)
class Dcd:
    """Discrete-time consistency distillation (eq. 3): one Euler step of the teacher on a grid of `grid` times."""

    guidance: float = 3.0
    grid: int = 50


OBJECTIVES = {"flow": Flow, "ccd": Ccd, "dcd": Dcd}


@dataclass(frozen=True)
class Optim:
    """AdamW.  schedule: constant, or cosine to zero at run.steps; warmup: steps; clip: gradient norm."""

    lr: float
    schedule: str = "cosine"
    warmup: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip: float = 1.0


@dataclass(frozen=True)
class Sample:
    """How the student is to be sampled; saved with its weights.  sampler: euler or consistency."""

    sampler: str = "euler"
    shift: float = 1.0
    guidance: float = 1.0


@dataclass(frozen=True)
class Config:
    run: Run
    model: Model
    objective: Flow | Ccd | Dcd
    optim: Optim
    ema: float = 0.95
    data: Data = field(default_factory=Data)
    times: Times = field(default_factory=Times)
    sample: Sample = field(default_factory=Sample)

    def __post_init__(self):
        objective_name(self.objective)
        _want(bool(self.model.preset) != bool(self.model.weights), "model",
              f"preset {self.model.preset!r} and weights {self.model.weights!r}", "exactly one of the two")
        _want(self.data.frames % 4 == 1 and self.data.frames > 1, "data.frames", self.data.frames, "4n + 1, n > 0")
        _want(self.data.size % 16 == 0 and self.data.size > 0, "data.size", self.data.size,
              "a multiple of 16 (codec stride 8, patch 2)")
        for name in ("run.steps", "run.save_every", "run.log_every", "run.keep", "data.batch", "data.pool"):
            section, key = name.split(".")
            value = getattr(getattr(self, section), key)
            _want(value > 0, name, value, "a positive number")
        _want(self.optim.lr > 0, "optim.lr", self.optim.lr, "a positive number")
        _want(0 <= self.ema < 1, "ema", self.ema, "a number in [0, 1)")
        _one_of("optim.schedule", self.optim.schedule, ("constant", "cosine"))
        _one_of("sample.sampler", self.sample.sampler, ("euler", "consistency"))
        if isinstance(self.objective, Ccd):
            _one_of("objective.norm", self.objective.norm, ("l2", "rms", "clip"))


def objective_name(objective: object) -> str:
    return next(name for name, cls in OBJECTIVES.items() if type(objective) is cls)


def load(path: Path | str, overrides: list[str] = ()) -> Config:
    """The config in a YAML file, with `a.b=value` overrides (values are YAML).

    ValueError names the file, the key, what was found and what was wanted.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError as why:
        raise ValueError(f"{path}: no such config") from why
    except yaml.YAMLError as why:
        raise ValueError(f"{path}: not YAML: {' '.join(str(why).split())}") from why
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: want sections {[f.name for f in fields(Config)]}, found {type(tree).__name__}")
    for override in overrides:
        _override(tree, override)
    try:
        return from_dict(tree)
    except ValueError as why:
        raise ValueError(f"{path}: {why}") from why


def from_dict(tree: dict) -> Config:
    """The inverse of `to_dict`."""
    return _build(Config, tree, "")


def to_dict(config: Config) -> dict:
    """Plain values; the objective carries its name."""
    tree = asdict(config)
    tree["objective"] = {"name": objective_name(config.objective)} | tree["objective"]
    tree["optim"]["betas"] = list(tree["optim"]["betas"])
    return tree


def _override(tree: dict, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise ValueError(f"override {override!r}; want key.subkey=value")
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ValueError(f"override {override!r}: {section} is no section")
    tree[last] = yaml.safe_load(value)


def _build(cls: type, tree: object, where: str):
    if not isinstance(tree, dict):
        raise ValueError(f"{where or 'config'} is {tree!r}; want keys {[f.name for f in fields(cls)]}")
    known = {f.name: f for f in fields(cls)}
    for key in tree:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise ValueError(f"unknown key {_join(where, key)}; the nearest known one is {_join(where, near[0])}")
    missing = [n for n, f in known.items()
               if n not in tree and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise ValueError(f"missing key {_join(where, missing[0])}")
    types_ = typing.get_type_hints(cls)
    return cls(**{key: _value(types_[key], value, _join(where, key)) for key, value in tree.items()})


def _value(want: object, value: object, where: str):
    if where == "objective":
        return _objective(value)
    if is_dataclass(want):
        return _build(want, value, where)
    if isinstance(want, types.UnionType):
        return None if value is None else _value(typing.get_args(want)[0], value, where)
    if typing.get_origin(want) is tuple:
        parts = typing.get_args(want)
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            raise ValueError(f"{where} is {value!r}; want {len(parts)} values")
        return tuple(_value(p, v, where) for p, v in zip(parts, value, strict=True))
    if want is float and isinstance(value, str):      # YAML reads 1e-4 as a string
        try:
            value = float(value)
        except ValueError:
            pass
    if want is float and type(value) is int:
        return float(value)
    if type(value) is not want:
        raise ValueError(f"{where} is {value!r} ({type(value).__name__}); want {want.__name__}")
    return value


def _objective(tree: object):
    if not isinstance(tree, dict) or tree.get("name") not in OBJECTIVES:
        name = tree.get("name") if isinstance(tree, dict) else tree
        near = difflib.get_close_matches(str(name), OBJECTIVES, n=1, cutoff=0.0)[0]
        raise ValueError(f"objective.name is {name!r}; want one of {list(OBJECTIVES)}, perhaps {near!r}")
    return _build(OBJECTIVES[tree["name"]], {k: v for k, v in tree.items() if k != "name"}, "objective")


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _want(holds: bool, where: str, found: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{where} is {found}; want {wanted}")


def _one_of(where: str, found: str, known: tuple[str, ...]) -> None:
    if found not in known:
        near = difflib.get_close_matches(found, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"{where} is {found!r}; want one of {list(known)}, perhaps {near!r}")
