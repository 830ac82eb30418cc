"""What a run can be told, section by section, and within which limits."""

import typing
from dataclasses import dataclass, field

from swiftvideo_fast.config.strict import one_of, want


@dataclass(frozen=True)
class Run:
    """Where and how long.  steps: optimizer steps.  keep: newest checkpoints kept.  watch_every: steps from
    one look at samples to the next; 0 for none.  wandb: the project there that is told what the log is."""

    dir: str
    steps: int
    seed: int = 0
    save_every: int = 500
    log_every: int = 10
    keep: int = 2
    watch_every: int = 0
    wandb: str | None = None


@dataclass(frozen=True)
class Data:
    """Crops of the demo's clips.  frames: 4n + 1.  size, height: pixels.  speed: pixels a frame.
    pace: frames of the clip a frame of the crop.  pool: crops encoded ahead."""

    frames: int = 17
    size: int = 64
    height: int = 72
    speed: float = 0.5
    pace: float = 1.0
    pool: int = 2048
    batch: int = 16


@dataclass(frozen=True)
class Model:
    """preset: a name in models.wan.network.PRESETS, for a network from scratch; weights: the file to start
    from (and the teacher, where the objective has one).  Exactly one of the two.  student: a file to start
    from in place of the teacher's.  codec: a file by PcaCodec.save.  recompute: what the
    student's backward runs again (models.wan.network.RECOMPUTE): nothing, blocks (least memory, a third more
    time), or blocks but attention (self-attention's outputs are kept).  The bits are the same."""

    codec: str
    preset: str | None = None
    weights: str | None = None
    student: str | None = None
    recompute: str = "nothing"

    @property
    def start(self) -> str | None:
        """The file that training starts from."""
        return self.student or self.weights


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
    """Discrete-time consistency distillation (eq. 3): one Euler step of the teacher on `grid` times."""

    guidance: float = 3.0
    grid: int = 50


@dataclass(frozen=True)
class Da:
    """Distribution alignment (eq. 10), on top of a consistency objective.

    weight: lambda_adv, or, adaptive, what the adversary's gradient is to be of the distillation's.  start:
    N_warmup, steps of distillation alone; in the last `lead` of them the heads learn already.  lr: of the
    heads.  backbone: a DINOv2, by folder or name on the hub, or filters.  window: latent frames judged at
    once; crop: pixels.  project: by learned pictures of the latents, never decoded.  raw: real clips as they
    were filmed, not through the codec.  watch: steps between looks at held-out clips, 0 for none.
    """

    weight: float = 0.01
    adaptive: bool = False
    start: int = 1000
    lead: int = 0
    lr: float = 1e-6
    backbone: str = "facebook/dinov2-small"
    window: int = 2
    crop: int = 224
    project: bool = False
    raw: bool = False
    watch: int = 0


@dataclass(frozen=True)
class Ta:
    """Trajectory alignment: DPO on the student's own samples (eq. 11), and reflow on the winners.

    steps: the winner's and the loser's.  count: pairs.  winner: sampled, or real (Figure 6).  pairs: their
    folder by `swiftvideo pairs`, run.dir/pairs where none is named.  beta: of errors averaged over a clip's
    elements; 0 leaves reflow alone.  reflow: lambda_RF.  noise: fresh (eq. 11 as printed), or paired: what
    the pair was sampled from.  rank: of LoRA on every linear layer; 0 trains all weights.
    """

    steps: tuple[int, int] = (8, 4)
    count: int = 5000
    winner: str = "sampled"
    pairs: str | None = None
    beta: float = 2500.0
    reflow: float = 2.0
    noise: str = "fresh"
    rank: int = 64


Objective = Flow | Ccd | Dcd | Ta
OBJECTIVES = {cls.__name__.lower(): cls for cls in typing.get_args(Objective)}


@dataclass(frozen=True)
class Optim:
    """AdamW; moments: of 32 bits, or of 8 (bitsandbytes).  schedule: constant, or cosine to zero at
    run.steps; warmup: steps; clip: gradient norm.  skips: so many steps in a row are skipped, their
    gradient not being finite, before the run gives up."""

    lr: float
    schedule: str = "cosine"
    warmup: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip: float = 1.0
    moments: int = 32
    skips: int = 3


@dataclass(frozen=True)
class Engine:
    """How the work is spread; but for rounding, and for the draws, which depend on micro, it changes nothing.

    name: plain (one process, everything whole) or zero3 (DeepSpeed, any number of processes).  micro: clips a
    backward pass; None: a step's share of each replica in one.  dtype: of the stored weights, float32 or
    bfloat16 (zero3; masters stay float32).  offload: masters and moments on the CPU (zero3).  sequence:
    processes that share the tokens of a clip (zero3; it must divide tokens and heads).
    """

    name: str = "plain"
    micro: int | None = None
    dtype: str = "float32"
    offload: bool = False
    sequence: int = 1


@dataclass(frozen=True)
class Sample:
    """How the student is to be sampled; saved with its weights.  sampler: euler or consistency."""

    sampler: str = "euler"
    shift: float = 1.0
    guidance: float = 1.0


@dataclass(frozen=True)
class Config:
    """The whole run.  ValueError names the key whose value is out of its limits."""

    run: Run
    model: Model
    objective: Objective
    optim: Optim
    da: Da | None = None
    ema: float = 0.95
    data: Data = field(default_factory=Data)
    times: Times = field(default_factory=Times)
    sample: Sample = field(default_factory=Sample)
    engine: Engine = field(default_factory=Engine)

    def __post_init__(self):
        for keys, holds, wanted in LIMITS:
            for key in keys.split():
                section, _, name = key.partition(".")
                value = getattr(self, section) if not name else getattr(getattr(self, section), name, None)
                if value is not None:               # None: a key of another objective
                    want(holds(value), key, value, wanted)
        m, d = self.model, self.data
        want(self.run.dir.strip() != "", "run.dir", repr(self.run.dir), "a folder")
        want(bool(m.preset) != bool(m.weights), "model", f"preset {m.preset!r} and weights {m.weights!r}",
             "exactly one of the two")
        want(bool(m.weights) or isinstance(self.objective, Flow), "model.weights", m.weights,
             f"a file: {objective_name(self.objective)} distils the teacher in it")
        want(bool(m.weights) or not m.student, "model.student", repr(m.student),
             "none without model.weights: from scratch a network starts at model.preset")
        want(d.height >= d.size, "data.height", d.height, f"at least data.size = {d.size}")
        one_of("optim.schedule", self.optim.schedule, ("constant", "cosine"))
        want(self.optim.moments in (8, 32), "optim.moments", self.optim.moments, "8 or 32 (bits)")
        one_of("engine.name", self.engine.name, ("plain", "zero3"))
        one_of("engine.dtype", self.engine.dtype, ("float32", "bfloat16"))
        want(self.engine == Engine(micro=self.engine.micro) or self.engine.name == "zero3", "engine.name",
             self.engine.name, "zero3: plain keeps float32, whole and on one device")
        one_of("sample.sampler", self.sample.sampler, ("euler", "consistency"))
        want(not self.da or not isinstance(self.objective, Flow | Ta), "da", "a section",
             f"none with {objective_name(self.objective)}: it aligns a consistency objective")
        want(not self.da or self.da.lead <= self.da.start, "da.lead", self.da and self.da.lead,
             f"at most da.start, {self.da and self.da.start}: the last steps before it")
        want(not self.da or self.da.window <= d.frames // 4 + 1, "da.window", self.da and self.da.window,
             f"at most the {d.frames // 4 + 1} latent frames of a clip")
        if isinstance(self.objective, Ccd):
            one_of("objective.norm", self.objective.norm, ("l2", "rms", "clip"))
        if isinstance(self.objective, Ta):
            one_of("objective.winner", self.objective.winner, ("sampled", "real"))
            one_of("objective.noise", self.objective.noise, ("fresh", "paired"))


LIMITS = [
    ("run.steps run.save_every run.log_every run.keep data.pace data.pool data.batch optim.lr optim.clip "
     "times.std sample.shift objective.c objective.grid objective.count engine.micro engine.sequence da.lr "
     "da.window",
     lambda x: x > 0, "a positive number"),
    ("run.seed run.watch_every data.speed optim.warmup optim.weight_decay optim.skips objective.warmup "
     "objective.beta objective.reflow objective.rank da.weight da.start da.lead da.watch", lambda x: x >= 0,
     "0 or more"),
    ("objective.drop_text objective.r_max", lambda x: 0 <= x <= 1, "a number in [0, 1]"),
    ("ema", lambda x: 0 <= x < 1, "a number in [0, 1)"),
    ("objective.steps", lambda pair: min(pair) > 0, "two positive numbers"),
    ("optim.betas", lambda pair: all(0 <= x < 1 for x in pair), "two numbers in [0, 1)"),
    ("data.frames", lambda x: x > 1 and x % 4 == 1, "4n + 1, n > 0"),
    ("da.crop", lambda x: x >= 16, "16 pixels or more"),
    ("data.size", lambda x: x > 0 and x % 16 == 0, "a positive multiple of 16 (codec stride 8, patch 2)"),
]


def objective_name(objective: Objective) -> str:
    """Its key `name` in YAML."""
    return type(objective).__name__.lower()
