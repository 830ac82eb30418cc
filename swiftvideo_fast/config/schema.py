"""The sections of every config.  Options of objective, data and da are defined next to their classes."""

from dataclasses import dataclass, field

from swiftvideo_fast.config import strict
from swiftvideo_fast.config.strict import FRACTION, NATURAL, POSITIVE, Limit, one_of, option, want

COUNT = Limit(lambda x: 0 < x <= 10**9, "a positive number, at most a billion")


@dataclass(frozen=True)
class Run:
    """The run: folder, length, logging.

    dir: the run's folder.  steps: optimizer steps.  seed: seed of every random draw.  save_every: steps
    between checkpoints.  log_every: steps between log entries.  keep: newest checkpoints kept.  watch_every:
    steps between samples of held-out clips, 0 for none; default: a quarter of the run.  wandb: project to log
    to.
    """

    dir: str = option(Limit(lambda x: x.strip() != "" and not x.startswith("~") and "$" not in x,
                            "a folder without ~ or $ (a shell expands ~ only at the start of a word, YAML "
                            "expands nothing)"))
    steps: int = option(COUNT)
    seed: int = option(NATURAL, 0)
    save_every: int = option(POSITIVE, 500)
    log_every: int = option(POSITIVE, 10)
    keep: int = option(POSITIVE, 2)
    watch_every: int | None = option(NATURAL, None)
    wandb: str | None = None


@dataclass(frozen=True)
class Model:
    """The networks.

    family: kind of network and codec.  preset: sizes of a network trained from scratch; weights: file or
    folder of the initial weights and of the teacher.  Exactly one of the two.  student: initial weights if
    not the teacher's.  codec: the codec's file or folder, if the family needs one.  recompute: activation
    checkpointing of the student: nothing, blocks (least memory, a third more time), or blocks but attention
    (self-attention's outputs are kept).  Results are bit-identical.
    """

    family: str = "wan"
    codec: str | None = None
    preset: str | None = None
    weights: str | None = None
    student: str | None = None
    recompute: str = option(one_of("nothing", "blocks", "blocks but attention"), "nothing")

    @property
    def start(self) -> str | None:
        """File or folder of the initial weights."""
        return self.student or self.weights


@dataclass(frozen=True)
class Times:
    """The distribution of training times (Table 2d): t = sigmoid(n), n ~ N(mean, std^2).

    mean, std: of n.  uniform: t ~ U(0, 1) instead.
    """

    mean: float = -0.6
    std: float = option(POSITIVE, 1.4)
    uniform: bool = False


@dataclass(frozen=True)
class Optim:
    """AdamW.

    lr: learning rate after warm-up.  schedule: constant, or cosine to zero at run.steps.  warmup: steps of
    linear warm-up.  betas, weight_decay: AdamW's.  clip: maximum gradient norm.  moments: bits per moment; 8
    needs bitsandbytes.  max_skips: consecutive steps of non-finite gradient tolerated before aborting.
    """

    lr: float = option(POSITIVE)
    schedule: str = option(one_of("constant", "cosine"), "cosine")
    warmup: int = option(NATURAL, 0)
    betas: tuple[float, float] = option(
        Limit(lambda pair: all(0 <= x < 1 for x in pair), "two numbers in [0, 1)"), (0.9, 0.999))
    weight_decay: float = option(NATURAL, 0.01)
    clip: float = option(POSITIVE, 1.0)
    moments: int = option(Limit(lambda x: x in (8, 32), "8 or 32 (bits)"), 32)
    max_skips: int = option(NATURAL, 3)


@dataclass(frozen=True)
class Engine:
    """Distribution and storage; results change by rounding only, and by random draws, which depend on micro.

    name: plain (one process, no sharding) or zero3 (DeepSpeed, any number of processes).  micro: clips per
    backward pass; null: a replica's clips of a step in one pass.  dtype: storage of weights, float32 or
    bfloat16 (masters stay float32).  offload: masters and moments on the CPU (zero3).  sequence:
    sequence-parallel processes per clip (zero3; must divide tokens and heads).  deterministic: on a GPU,
    bit-reproducible kernels only (cost: docs/distributed.md).
    """

    name: str = option(one_of("plain", "zero3"), "plain")
    micro: int | None = option(POSITIVE, None)
    dtype: str = option(one_of("float32", "bfloat16"), "float32")
    offload: bool = False
    sequence: int = option(POSITIVE, 1)
    deterministic: bool = False


@dataclass(frozen=True)
class Sample:
    """Sampling settings of the student, saved with its weights.

    sampler: euler; consistency, with fresh noise each step; flowmap, for networks of two times.  shift: time
    shift s, t -> s t / (1 + (s - 1) t).  guidance: guidance scale; 1 for a student, which has the teacher's
    distilled into it.
    """

    sampler: str = option(one_of("euler", "consistency", "flowmap"), "euler")
    shift: float = option(POSITIVE, 1.0)
    guidance: float = option(NATURAL, 1.0)


@dataclass(frozen=True)
class Config:
    """The config of a run.  ValueError names a key whose value is out of its limits.

    The sections objective, data and da are option dataclasses from the tables of train/recipe.py, selected by
    `name`.  ema: decay of the student's average per step.
    """

    run: Run
    model: Model
    objective: object
    optim: Optim
    data: object
    da: object | None = None
    ema: float = option(FRACTION, 0.95)
    times: Times = field(default_factory=Times)
    sample: Sample = field(default_factory=Sample)
    engine: Engine = field(default_factory=Engine)

    def __post_init__(self):
        strict.check(self)
        m, e = self.model, self.engine
        want(bool(m.preset) != bool(m.weights), "model", f"preset {m.preset!r} and weights {m.weights!r}",
             "exactly one of the two")
        want(bool(m.weights) or not m.student, "model.student", repr(m.student),
             "none without model.weights: training from scratch uses model.preset")
        want(e.name == "zero3" or (not e.offload and e.sequence == 1), "engine.name", e.name,
             "zero3 for engine.offload and engine.sequence")
