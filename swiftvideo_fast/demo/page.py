"""The demo's report: samples, the gain, and the paper's Tables 1 and 2 on our benchmark.

Every section is made of what there is so far, or says what it waits for.
"""

from collections import Counter
from statistics import fmean

from swiftvideo_fast.adversary.discriminator import KINDS
from swiftvideo_fast.demo import curves
from swiftvideo_fast.demo.measure import FIRST_BATCH, TIMED
from swiftvideo_fast.demo.pool import Ended, Place
from swiftvideo_fast.demo.seed import REAL, STEPS, TEACHER, Seed, rows_of
from swiftvideo_fast.demo.stages import ALIGNED, FIRST, FULL, LAST, PAIRED, STAGES, TWICE, UNJUDGED, VARIANTS
from swiftvideo_fast.metrics.benchmark import REFERENCE_STEPS
from swiftvideo_fast.report.page import Headline, Pending, Section, Text
from swiftvideo_fast.report.samples import Column, Samples
from swiftvideo_fast.report.tables import METRICS, Metric, Row, Table, ablation, comparison

TITLE = "Video from a still, in 4, 2 or 1 steps in place of 25"
TOLD_APART = {f"held out/{kind}": Metric(
    f"by {kind} heads", 2, "share of held-out pairs of a real and a generated clip in which these heads "
    "score the real one higher; 0.5 is chance") for kind in KINDS}
ALIGNMENT = {
    "win_diff": Metric("Win Diff", 4, "the winners' error minus that of the network the round began with: "
                       "below 0 the student is nearer to the winners"),
    "lose_diff": Metric("Lose Diff", 4, "the losers' error minus that of the network the round began with"),
    "accuracy": Metric("implicit accuracy", 2, "share of pairs in which the winner's error fell more"),
    "reflow": Metric("reflow", 3, "the winners' error: mean squared difference of velocities")}
PAPER = {"CCD": 172.54, "CCD + DA": 136.14, "CCD + DA + TA": 118.89}        # Table 2: FVD at 4 steps
ROAD = [ALIGNED[0], LAST, FIRST]                    # the student of the headline: the first that is there


def sections(results: list[Seed], clips: int) -> list[Section]:
    """All of the page; samples and logs are those of the first seed."""
    rows = rows_of(results)
    found = [samples(results[0]), headline(rows),
             *(table if table.rows else Pending(table.title, "the runs that it compares")
               for table in tables(results, rows, clips)),
             curves.adversary(results[0]), curves.alignment(results), curves.training(results[0])]
    goes_on = any(isinstance(section, Pending) for section in found)
    return [Text("", LEAD + GOES_ON * goes_on), *found,
            Text("What was trained and measured", METHOD.format(clips=clips))]


def samples(result: Seed) -> Section:
    """The same clips by the teacher and, at choice, by the students of each stage."""
    if not result.captions:
        return Pending("Samples", "the teacher is sampled")

    def columns(*places: tuple[str, int]) -> list[Column]:
        return [Column(f"teacher, {_steps(n)}" if name == TEACHER else f"student, {_steps(n)}",
                       result.pixels[name, n], "not distilled" if name == TEACHER else name)
                for name, n in places if (name, n) in result.pixels]

    best = next((name for name in ROAD if (name, 4) in result.pixels), FIRST)
    choices = {"students": columns((best, 4), (best, 2), (FULL, 1)),
               "teacher, fewer steps": columns(*((TEACHER, n) for n in STEPS[TEACHER]))}
    choices |= {name: columns(*((name, n) for n in STEPS[name])) for name in (*STAGES, *ALIGNED, FULL)}
    real = result.pixels[REAL, None]
    always = [Column("condition", real[:, :, :1], "the given still"),
              Column("real", real, "what happened next"), *columns((TEACHER, REFERENCE_STEPS))]
    waits = "" if choices["students"] else f" The students' samples follow, {FIRST}'s first."
    choices = {label: chosen for label, chosen in choices.items() if chosen}
    return Samples("", result.captions, always, choices, note=(
        f"Six of the tables' clips: of the first {FIRST_BATCH}, those whose colours differ most from one "
        f"another. Real clips went through the codec, as measured.{waits}"))


def headline(rows: list[Row]) -> Section:
    """The gain in one sentence, of the last student on the road that is measured and timed."""
    by = {(row.name, row.steps): {key: fmean(values) for key, values in row.values.items()} for row in rows}
    name = next((name for name in ROAD if "seconds" in by.get((name, 4), {})), None)
    if not name:
        return Pending("The gain in steps and seconds", f"{FIRST} is trained and measured")
    teacher, student = by[TEACHER, REFERENCE_STEPS], by[name, 4]

    def faster(place: tuple[str, int]) -> str:
        return f"{teacher['seconds'] / by[place]['seconds']:.1f} times faster"

    others = [f"{of} in {_steps(n)}: {faster((of, n))}, distance {by[of, n]['frechet']:.1f}. "
              for of, n in ((name, 2), (FULL, 1)) if "seconds" in by.get((of, n), {})]
    few = ", ".join(f"{by[TEACHER, n]['frechet']:.1f} in {_steps(n)}" for n in STEPS[TEACHER])
    return Headline(
        faster((name, 4)),
        f"4 steps in place of {REFERENCE_STEPS} and {student['seconds']:.3f} s a clip in place of "
        f"{teacher['seconds']:.3f} s, at a Frechet distance to real clips of {student['frechet']:.1f}; the "
        f"teacher's is {teacher['frechet']:.1f} (lower is better).",
        f"This is {name}. {''.join(others)}The teacher's distance in as few: {few}. Seconds: CPU "
        f"time of sampling {TIMED} clips at once on one core, without decoding. A teacher's "
        "step takes two evaluations of its network, for guidance, a student's one.")


def tables(results: list[Seed], rows: list[Row], clips: int) -> list[Table]:
    """Table 1: methods by steps.  Table 2: what each stage adds, at 4 steps and at 2.  And what the heads and
    the aligned students have learned, by their logs."""
    stages = [row for row in rows if row.name not in (UNJUDGED, *VARIANTS, TWICE)]
    questions = {"does the adversary help?": [UNJUDGED, LAST], "does alignment help?": [LAST, *ALIGNED],
                 f"does {PAIRED}?": [LAST, PAIRED, TWICE]}
    at_4 = {"distillation": [FIRST]} | questions | {"what makes the first round?": [ALIGNED[0], *VARIANTS]}
    added = {key: metric for key, metric in METRICS.items() if key != "seconds"}

    def answered(asked: dict[str, list[str]], steps: int) -> dict[str, list[str]]:
        """Questions with what is measured of their settings: the first, and another where there is one."""
        measured = {row.name for row in rows if row.steps == steps}
        there = {question: [name for name in names if name in measured] for question, names in asked.items()}
        return {question: names for question, names in there.items()
                if names[:1] == asked[question][:1] and len(names) >= min(2, len(asked[question]))}

    return [comparison(stages, title=f"Quality by sampling steps, on {clips} held-out clips"),
            ablation(rows, answered(at_4, 4), steps=4, paper=PAPER, metrics=added,
                     title="What each stage adds, at 4 steps"),
            ablation(rows, answered(questions, 2), steps=2, paper={}, metrics=added,
                     title="What each stage adds, at 2 steps"),
            learned(results, [LAST], TOLD_APART, "What the adversary tells apart"),
            learned(results, [*ALIGNED, *VARIANTS, TWICE], ALIGNMENT, "What alignment has learned")]


def learned(results: list[Seed], names: list[str], metrics: dict[str, Metric], title: str) -> Table:
    """Means of the last quarter of what a run has logged."""
    def end(log: list[dict], key: str) -> float:
        values = [line[key] for line in log if key in line]
        return fmean(values[-max(1, len(values) // 4):])

    logs = {name: [r.logs[name] for r in results if name in r.logs] for name in names}
    rows = [Row(name, None, {key: [end(log, key) for log in there] for key in metrics})
            for name, there in logs.items() if there]
    return comparison(rows, against="", metrics=metrics, title=f"{title}, at the end of training")


def cost(done: dict[Place, Ended], tasks: int, seconds: float) -> Table:
    """Core seconds of every task, all seeds in one line."""
    spent = Counter()
    for (_, name, kind), ended in done.items():
        spent[name, kind] += ended.core_seconds
    kinds, names = list(dict.fromkeys(kind for _, kind in spent)), dict.fromkeys(name for name, _ in spent)
    rows = [[name, *(f"{spent[name, kind]:.0f}" if (name, kind) in spent else "–" for kind in kinds)]
            for name in names]
    total = ["all", *(f"{sum(s for (_, of), s in spent.items() if of == kind):.0f}" for kind in kinds)]
    return Table("Where the time went", ["core-seconds", *kinds], [*rows, total],
                 f"{seconds // 60:.0f} min {seconds % 60:.0f} s for {len(done)} of {tasks} tasks, "
                 f"{spent.total():.0f} core-seconds.")


def _steps(n: int) -> str:
    return f"{n} step{'s' * (n != 1)}"


LEAD = """
Each row begins with one still from frames that no network was trained on. The teacher makes a clip of it in
25 steps; the students, distilled from the teacher on this machine, in 4, 2 and 1 from the same noise.
"""
GOES_ON = """
The demo is still running: this page is written again after every stage, so reload it.
"""
METHOD = """
A small image-to-video network with Wan's architecture, trained on three real clips, goes through the paper's
three stages, then is sampled on {clips} crops of frames that were held out: the same first frames, captions
and noise for every sampler. The real rows are other crops: where a perfect sampler would stand, and where the
frames stand that the network was trained on.

`CCD` is continuous-time consistency distillation in the paper's regime: the literal L2 norm of the tangent,
few iterations, Euler sampling. `CCD + DA` goes on with an adversary on real clips; `CCD + CCD` without one.
`CCD + DA + TA` has learned from its own samples of 8 steps against those of 4, and in a second round,
`+ TA + TA`, of 4 against 2. Its loss draws fresh noise; `paired noise`, which `make demo SEEDS=3` trains,
takes what a pair was sampled from. `CCD, full` carries distillation further (RMS norm) and samples it with
fresh noise, which is what a nearly converged consistency network wants.
"""
