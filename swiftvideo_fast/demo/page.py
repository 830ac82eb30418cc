"""The demo's report: samples, speed-up, and the paper's Tables 1 and 2 on our benchmark.

Every section shows the results so far, or what it waits for.
"""

from collections import Counter
from statistics import fmean

from swiftvideo_fast.adversary.discriminator import KINDS
from swiftvideo_fast.demo import curves
from swiftvideo_fast.demo.measure import FIRST_BATCH, TIMED
from swiftvideo_fast.demo.pool import Ended, Place
from swiftvideo_fast.demo.seed import REAL, STEPS, TEACHER, Seed, rows_of
from swiftvideo_fast.demo.stages import ALIGNED, CONTROL, FIRST, FULL, LAST, PAIRED, STAGES, TWICE, VARIANTS
from swiftvideo_fast.metrics.benchmark import REFERENCE_STEPS
from swiftvideo_fast.report.page import Headline, Pending, Section, Text
from swiftvideo_fast.report.samples import Column, Samples
from swiftvideo_fast.report.tables import METRICS, Metric, Row, Table, ablation, comparison

TITLE = "Video from a still, in 4, 2 or 1 steps instead of 25"
ACCURACY = {f"held out/{kind}": Metric(
    f"by {kind} heads", 2, "fraction of held-out pairs of a real and a generated clip in which these heads "
    "score the real one higher; 0.5 is chance") for kind in KINDS}
ALIGNMENT = {
    "win_diff": Metric("Win Diff", 4, "the student's error on winners minus that of the round's initial "
                       "student: below 0 the student fits the winners better"),
    "lose_diff": Metric("Lose Diff", 4, "the same on losers"),
    "accuracy": Metric("implicit accuracy", 2, "fraction of pairs in which the winner's error fell more"),
    "reflow": Metric("reflow", 3, "the winners' error: mean squared difference of velocities")}
PAPER = {"CCD": 172.54, "CCD + DA": 136.14, "CCD + DA + TA": 118.89}        # Table 2: FVD at 4 steps
PREFERRED = [ALIGNED[0], LAST, FIRST]               # the headline's student is the first available


def sections(results: list[Seed], clips: int) -> list[Section]:
    """Returns all sections of the page; samples and logs are those of the first seed."""
    rows = rows_of(results)
    found = [samples(results[0]), headline(rows),
             *(table if table.rows else Pending(table.title, "the runs that it compares")
               for table in tables(results, rows, clips)),
             curves.adversary(results[0]), curves.alignment(results), curves.training(results[0])]
    unfinished = any(isinstance(section, Pending) for section in found)
    return [Text("", LEAD + RUNNING * unfinished), *found,
            Text("What was trained and measured", METHOD.format(clips=clips))]


def samples(result: Seed) -> Section:
    """Returns the clips of the teacher and, by choice, of each stage's students."""
    if not result.captions:
        return Pending("Samples", "the teacher is sampled")

    def columns(*places: tuple[str, int]) -> list[Column]:
        return [Column(f"teacher, {_steps(n)}" if name == TEACHER else f"student, {_steps(n)}",
                       result.pixels[name, n], "not distilled" if name == TEACHER else name)
                for name, n in places if (name, n) in result.pixels]

    best = next((name for name in PREFERRED if (name, 4) in result.pixels), FIRST)
    choices = {"students": columns((best, 4), (best, 2), (FULL, 1)),
               "teacher, fewer steps": columns(*((TEACHER, n) for n in STEPS[TEACHER]))}
    choices |= {name: columns(*((name, n) for n in STEPS[name])) for name in (*STAGES, *ALIGNED, FULL)}
    real = result.pixels[REAL, None]
    always = [Column("condition", real[:, :, :1], "the given still"),
              Column("real", real, "what happened next"), *columns((TEACHER, REFERENCE_STEPS))]
    pending = "" if choices["students"] else f" The students' samples follow, {FIRST}'s first."
    choices = {label: chosen for label, chosen in choices.items() if chosen}
    return Samples("", result.captions, always, choices, note=(
        f"Six of the tables' clips: of the first {FIRST_BATCH}, those with the most different colours. Real "
        f"clips were encoded and decoded, as in the measurements.{pending}"))


def headline(rows: list[Row]) -> Section:
    """Returns the speed-up of the preferred student that is measured and timed, in one sentence."""
    by = {(row.name, row.steps): {key: fmean(values) for key, values in row.values.items()} for row in rows}
    name = next((name for name in PREFERRED if "seconds" in by.get((name, 4), {})), None)
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
        f"4 steps instead of {REFERENCE_STEPS} and {student['seconds']:.3f} s per clip instead of "
        f"{teacher['seconds']:.3f} s, at a Frechet distance to real clips of {student['frechet']:.1f}; the "
        f"teacher's is {teacher['frechet']:.1f} (lower is better).",
        f"This is {name}. {''.join(others)}The teacher's distance at equal steps: {few}. Seconds: CPU time "
        f"of sampling {TIMED} clips in a batch on one core, without decoding. A teacher's step takes two "
        "evaluations of its network, for guidance, a student's one.")


def tables(results: list[Seed], rows: list[Row], clips: int) -> list[Table]:
    """Returns Table 1 (methods by steps), Table 2 (ablation of the stages, at 4 steps and at 2), and tables
    of the logs of DA and TA."""
    stages = [row for row in rows if row.name not in (CONTROL, *VARIANTS, TWICE)]
    questions = {"does the adversary help?": [CONTROL, LAST], "does alignment help?": [LAST, *ALIGNED],
                 f"does {PAIRED}?": [LAST, PAIRED, TWICE]}
    at_4 = {"distillation": [FIRST]} | questions | {"what makes the first round?": [ALIGNED[0], *VARIANTS]}
    added = {key: metric for key, metric in METRICS.items() if key != "seconds"}

    def answered(asked: dict[str, list[str]], steps: int) -> dict[str, list[str]]:
        """Returns questions with their measured settings, if the first and another (if any) are measured."""
        measured = {row.name for row in rows if row.steps == steps}
        found = {question: [name for name in names if name in measured] for question, names in asked.items()}
        return {question: names for question, names in found.items()
                if names[:1] == asked[question][:1] and len(names) >= min(2, len(asked[question]))}

    return [comparison(stages, title=f"Quality by sampling steps, on {clips} held-out clips"),
            ablation(rows, answered(at_4, 4), steps=4, paper=PAPER, metrics=added,
                     title="What each stage adds, at 4 steps"),
            ablation(rows, answered(questions, 2), steps=2, paper={}, metrics=added,
                     title="What each stage adds, at 2 steps"),
            log_table(results, [LAST], ACCURACY, "Accuracy of the adversary"),
            log_table(results, [*ALIGNED, *VARIANTS, TWICE], ALIGNMENT, "Logs of alignment")]


def log_table(results: list[Seed], names: list[str], metrics: dict[str, Metric], title: str) -> Table:
    """Returns a table of logged values, averaged over the last quarter of a run."""
    def end(log: list[dict], key: str) -> float:
        values = [line[key] for line in log if key in line]
        return fmean(values[-max(1, len(values) // 4):])

    logs = {name: [r.logs[name] for r in results if name in r.logs] for name in names}
    rows = [Row(name, None, {key: [end(log, key) for log in by_seed] for key in metrics})
            for name, by_seed in logs.items() if by_seed]
    return comparison(rows, against="", metrics=metrics, title=f"{title}, at the end of training")


def cost(done: dict[Place, Ended], tasks: int, seconds: float) -> Table:
    """Returns a table of core seconds per task, summed over seeds."""
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
Each row starts from one still of held-out frames. The teacher generates a clip in 25 steps; the students,
distilled from the teacher on this machine, in 4, 2 and 1 steps from the same noise.
"""
RUNNING = """
The demo is still running: reload this page, which is rewritten after every stage.
"""
METHOD = """
A small image-to-video network with Wan's architecture, trained on three real clips, is distilled in the
paper's three stages, then sampled on {clips} crops of held-out frames, with the same first frames, captions
and noise for every sampler. The real rows are other crops of the test and training frames: the first is the
distance of a perfect sampler.

`CCD` is continuous-time consistency distillation as in the paper: L2 norm of the tangent, few iterations,
Euler sampling. `CCD + DA` continues with an adversary on real clips; `CCD + CCD` continues without one.
`CCD + DA + TA` is trained on its own 8-step samples against 4-step ones, and in a second round, `+ TA + TA`,
on 4 against 2. Its loss draws fresh noise; `paired noise`, which `make demo SEEDS=3` trains, uses the noise a
pair was sampled from. `CCD, full` is distilled further (RMS norm) and sampled with fresh noise, which a
nearly converged consistency network needs.
"""
