"""The methods of the comparison: configs, starting points, and learning-rate grids.

All methods have the same total of student steps; staged methods split it: CCD 1/2, DA 1/5, TA twice 3/20.
"""

from dataclasses import dataclass
from fractions import Fraction

FROM_TEACHER = (3e-5, 1e-4, 3e-4)               # learning-rate grids; extended where an edge was best
FROM_STUDENT = (1e-5, 3e-5, 1e-4)
ADVERSARY_ONLY = (3e-6, 1e-5, 3e-5)
LORA = (2e-4, 6e-4, 2e-3)
ALL, HALF, DA_SHARE, ROUND = Fraction(1), Fraction(1, 2), Fraction(1, 5), Fraction(3, 20)
DCD = "objective={{name: dcd, guidance: 1.5}}"
PAIRED = "CCD + DA + TA, round 1"               # its pairs are reused by the variants
OTHER_TIMES = {"uniform(0, 1)": "times.uniform=true", "lognorm(-0.8, 1.0)": "times={{mean: -0.8, std: 1.0}}"}


@dataclass(frozen=True)
class Method:
    """One training run.

    file: its config.  options: overrides; {rate} is its rate, {quarter} and {third} fractions of its steps,
    {half} and {twice} multiples of the table's steps, {pairs} the folder of PAIRED's pairs.  start: the
    method whose student it starts from; None: the teacher.  share: fraction of the student steps.  moves:
    optimizer steps per student step.  rates: the grid, or the method whose chosen rate it uses.  measured:
    sampling steps on test clips.  chosen_at: sampling steps for choosing the rate, on validation clips.
    watched: whether it is also measured at every checkpoint, on validation clips.
    """

    file: str
    options: tuple[str, ...] = ()
    start: str | None = None
    share: Fraction = ALL
    moves: int = 1
    rates: tuple[float, ...] | str = FROM_TEACHER
    measured: tuple[int, ...] = (4, 2)
    chosen_at: int = 4
    watched: bool = False


def ccd(*options: str, **changes) -> Method:
    """Returns a CCD run; r reaches 1/2 at the table's last step, as in the demo's config."""
    return Method("ccd.yaml", ("objective.warmup={twice}", *options), **changes)


def da(start: str, *options: str, share: Fraction = HALF, **changes) -> Method:
    """Returns a DA run; in the first quarter of its steps the critic trains without affecting it."""
    common = ("da.start={quarter}", "da.lead={quarter}", "da.watch=0")
    return Method("da.yaml", (*common, *options), start, share, **changes)


def ta(*options: str, start: str = "CCD + DA, 7/10", rates=PAIRED, **changes) -> Method:
    common = ("objective.count=192", "run.save_every={third}", "run.keep=4", "run.log_every=1")
    return Method("ta.yaml", (*common, *options), start, ROUND, rates=rates, **changes)


def flowmap(*options: str, rates=(*FROM_TEACHER, 1e-3)) -> Method:
    return Method("flowmap.yaml", ("objective.warmup={half}", *options), rates=rates, measured=(8, 4, 2, 1))


METHODS: dict[str, Method] = {
    "CCD": ccd(rates=(*FROM_TEACHER, 1e-3)),
    "DCD": Method("ccd.yaml", (DCD,), rates=(1e-5, *FROM_TEACHER)),
    "LCM": Method("lcm.yaml"),
    "PCM": Method("pcm.yaml", rates=(1e-5, *FROM_TEACHER), measured=(4,)),
    "DMD2": Method("dmd2.yaml", ("objective.fake_lr={rate}",), moves=5, rates=(1e-5, *FROM_TEACHER)),
    "OSV, stage 1": Method("osv.yaml", ("objective.stage=1", "objective.rank=16"), share=Fraction(1, 4),
                           rates=(1e-4,), measured=()),
    "OSV": Method("osv.yaml", start="OSV, stage 1", share=Fraction(3, 4), rates=(1e-5, *FROM_TEACHER)),
    "flow map": flowmap(),
    # The weight makes the distillation's gradient a millionth of the adversary's.
    "DA": Method("da.yaml", (DCD, "da.start=0", "da.lead=0", "da.watch=0",
                             "da.weight=1000000.0"), rates=ADVERSARY_ONLY),
    "DCD, half": Method("ccd.yaml", (DCD,), share=HALF, rates="DCD", measured=()),
    "CCD, half": ccd(share=HALF, rates="CCD", measured=()),
    "DCD + DA": da("DCD, half", DCD, rates=FROM_STUDENT),
    "CCD + CCD": Method("da.yaml", ("da=null",), "CCD, half", HALF, rates=FROM_STUDENT),
    "CCD + DA": da("CCD, half", rates=FROM_STUDENT, measured=(16, 8, 4, 2, 1)),
    "CCD + DA, 7/10": da("CCD, half", share=DA_SHARE, rates="CCD + DA", measured=(),
                         watched=True),
    PAIRED: ta(rates=LORA, watched=True),
    "CCD + DA + TA": ta("objective.steps=[4, 2]", start=PAIRED),
    "real winners": ta("objective.winner=real", measured=(), watched=True),
    "DPO alone": ta("objective.reflow=0.0", "objective.pairs={pairs}", measured=(), watched=True),
    "lambda_RF 1": ta("objective.reflow=1.0", "objective.pairs={pairs}", measured=(), watched=True),
    "lambda_RF 3": ta("objective.reflow=3.0", "objective.pairs={pairs}", measured=(), watched=True),
    "flow map, RMS norm": flowmap("objective.norm=rms"),
    "flow map, finite": flowmap("objective.derivative=finite"),
    "flow map, bf16": flowmap("engine.dtype=bfloat16", rates="flow map"),
    "flow map, finite, bf16": flowmap("engine.dtype=bfloat16", "objective.derivative=finite",
                                      rates="flow map"),
    "PCM, 2 phases": Method("pcm.yaml", ("objective.phases=2",), rates="PCM", measured=(2,)),
}
for _name, _times in OTHER_TIMES.items():
    METHODS[f"CCD, half, {_name}"] = ccd(_times, share=HALF, rates="CCD", measured=())
    METHODS[f"CCD + DA, {_name}"] = da(f"CCD, half, {_name}", _times, rates="CCD + DA", measured=(4,))


def rate_source(name: str) -> str:
    """Returns the method whose grid determines the rate of `name`."""
    rates = METHODS[name].rates
    return rate_source(rates) if isinstance(rates, str) else name


def uses_pairs(method: Method) -> bool:
    """Returns whether it trains on the pairs of PAIRED."""
    return any("{pairs}" in option for option in method.options)
