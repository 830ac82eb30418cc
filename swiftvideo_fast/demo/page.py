"""The demo's report: the paper's Tables 1 and 2 and Figures 6 and 8 on our benchmark, curves, samples."""

from statistics import fmean

from swiftvideo_fast.adversary.discriminator import KINDS
from swiftvideo_fast.demo.seed import REAL, TEACHER, Seed
from swiftvideo_fast.demo.stages import ALIGNED, FIRST, FULL, LAST, PAIRED, STAGES, TWICE, UNJUDGED, VARIANTS
from swiftvideo_fast.metrics.benchmark import REFERENCE_STEPS
from swiftvideo_fast.report.charts import Chart, Curves, Series, logged
from swiftvideo_fast.report.page import Headline, Section, Text
from swiftvideo_fast.report.samples import Column, Samples
from swiftvideo_fast.report.tables import Metric, Row, Table, ablation, comparison

TITLE = "From 25 steps to 4, 2 and 1"
TOLD_APART = {f"held out/{kind}": Metric(f"by {kind} heads, held out", 2) for kind in KINDS}
ALIGNMENT = {"win_diff": Metric("Win Diff", 4), "lose_diff": Metric("Lose Diff", 4),
             "accuracy": Metric("implicit accuracy", 2), "reflow": Metric("reflow", 3)}
PAPER = {"CCD": 172.54, "CCD + DA": 136.14, "CCD + DA + TA": 118.89}        # Table 2: FVD at 4 steps


def sections(results: list[Seed], rows: list[Row], clips: int) -> list[Section]:
    """All of the page; samples and logs are those of the first seed."""
    seeds = f"{len(results)} seed{'s' * (len(results) > 1)}"
    return [samples(results[0]), headline(rows), Text("", INTRODUCTION.format(clips=clips, seeds=seeds)),
            *tables(results, rows, clips), adversary(results[0]), alignment(results), curves(results[0])]


def tables(results: list[Seed], rows: list[Row], clips: int) -> list[Table]:
    """Table 1: methods by steps.  Table 2: what each stage adds, at 4 steps and at 2.  And what the heads and
    the aligned students have learned, by their logs."""
    stages = [row for row in rows if row.name not in (UNJUDGED, *VARIANTS, TWICE)]
    questions = {"distribution alignment": [UNJUDGED, LAST], "trajectory alignment": [LAST, *ALIGNED],
                 f"with {PAIRED}": [LAST, PAIRED, TWICE]}
    at_4 = {"distillation": [FIRST]} | questions | {"the first round": [ALIGNED[0], *VARIANTS]}
    return [comparison(stages, title=f"{clips} held-out clips"),
            ablation(rows, at_4, steps=4, paper=PAPER, title="What each stage adds, at 4 steps"),
            ablation(rows, questions, steps=2, paper={}, title="What each stage adds, at 2 steps"),
            learned(results, [LAST], TOLD_APART, "What the adversary tells apart"),
            learned(results, [*ALIGNED, *VARIANTS, TWICE], ALIGNMENT, "What alignment has learned")]


def learned(results: list[Seed], names: list[str], metrics: dict[str, Metric], title: str) -> Table:
    """Means of the last quarter of what a run has logged."""
    def end(log: list[dict], key: str) -> float:
        values = [line[key] for line in log if key in line]
        return fmean(values[-max(1, len(values) // 4):])

    rows = [Row(name, None, {key: [end(r.logs[name], key) for r in results] for key in metrics})
            for name in names]
    return comparison(rows, against="", metrics=metrics, title=f"{title}, at the end of training")


def headline(rows: list[Row]) -> Headline:
    """The gain in one sentence."""
    by = {(row.name, row.steps): fmean(row.values["frechet"]) for row in rows}
    return Headline("4 steps in place of 25", f"Frechet distance {by[LAST, 4]:.1f}, the teacher's is "
                    f"{by[TEACHER, REFERENCE_STEPS]:.1f} (lower is better)")


def adversary(result: Seed) -> Curves:
    log = result.logs[LAST]
    told = [logged(log, f"held out/{kind}", name=f"{kind} heads") for kind in KINDS]
    return Curves("Distribution alignment", [
        Chart("share of held-out pairs told apart", told, x_label="step"),
        Chart("loss of the heads", [logged(log, "critic/loss", smooth=3)], x_label="step"),
        Chart("gradient at x0-hat, of the distillation's", [logged(log, "gradient/ratio", smooth=3)],
              x_label="step")],
        note=f"The adversary looks through {result.backbone}.  Its loss is 2 a head where it tells nothing.")


def alignment(results: list[Seed]) -> Curves:
    """Figure 6, the mean over seeds, and Figure 8, of the first."""
    names = {ALIGNED[0]: "DPO + reflow"} | {name: name for name in VARIANTS}
    progress = [Series(shown, [*results[0].progress[name]], [fmean(r.progress[name][step] for r in results)
                                                             for step in results[0].progress[name]])
                for name, shown in names.items()]
    differences = {key: [logged(results[0].logs[name], key, name=shown, smooth=3)
                         for name, shown in names.items()] for key in ("win_diff", "accuracy")}
    return Curves("Trajectory alignment", [
        Chart("Frechet distance at 4 steps", progress, x_label="step"),
        Chart("Win Diff", differences["win_diff"], x_label="step"),
        Chart("implicit accuracy", differences["accuracy"], x_label="step")],
        note="The first round: the paper's Figures 6 and 8.  Win Diff is the winners' error beyond that of "
             "the network the round began with: below zero it has come nearer to them.")


def curves(result: Seed) -> Curves:
    def chart(title: str, key: str) -> Chart:
        lines = [logged(result.logs[name], key, name=name, smooth=3) for name in (*STAGES, FULL)]
        return Chart(title, lines, x_label="step", log_y=True)

    return Curves("Training", [
        chart("loss", "loss"), chart("tangent ‖g‖ before normalisation", "tangent"),
        chart("dF/dt, root mean square", "dF_dt")])


def samples(result: Seed) -> Samples:
    def column(name: str, steps: int) -> Column:
        return Column(f"{steps} step{'s' * (steps != 1)}", result.pixels[name, steps])

    real = result.pixels[REAL, 0]
    choices = {name: [column(name, steps) for steps in (4, 2)] for name in (*STAGES, *ALIGNED)}
    choices |= {FULL: [column(FULL, 1)]}
    columns = [Column("condition", real[:, :, :1]), Column("real", real), column(TEACHER, REFERENCE_STEPS)]
    return Samples("", result.captions, columns, choices,
                   note="Real clips went through the codec, as measured.")


INTRODUCTION = """
A small image-to-video network with Wan's architecture, trained on three real clips, goes through the
paper's three stages, then is sampled on {clips} crops of frames that were held out: the same first frames,
captions and noise for every sampler. {seeds} in all. The real rows are other crops: where a perfect sampler
would stand, and where the frames stand that the network was trained on.

`CCD` is continuous-time consistency distillation in the paper's regime: the literal L2 norm of the tangent,
few iterations, Euler sampling. `CCD + DA` goes on with an adversary on real clips beside it; `CCD + CCD`
without one. `CCD + DA + TA` has learned from its own samples of 8 steps against those of 4, and in a second
round, `+ TA + TA`, of 4 against 2. Its loss draws fresh noise; `paired noise` takes what a pair was sampled
from, and `paired noise, twice` is the second round of that. `CCD, full` carries distillation further (RMS
norm) and samples it with fresh noise, which is what a nearly converged consistency network wants.
"""
