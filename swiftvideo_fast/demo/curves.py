"""The demo's charts, from the logs of its runs: training, the paper's Figures 6 and 8, the adversary."""

from statistics import fmean

from swiftvideo_fast.adversary.discriminator import KINDS
from swiftvideo_fast.demo.measure import PROGRESS_CLIPS
from swiftvideo_fast.demo.seed import Seed
from swiftvideo_fast.demo.stages import ALIGNED, FIRST, FULL, LAST, STAGES, VARIANTS
from swiftvideo_fast.report.charts import Chart, Curves, Series, logged
from swiftvideo_fast.report.page import Pending, Section

FAINT = "Faint: as logged; strong: running mean."


def adversary(result: Seed) -> Section:
    title = "Curves of distribution alignment"
    if LAST not in result.logs:
        return Pending(title, f"{LAST} is trained")
    log = result.logs[LAST]
    accuracy = [logged(log, f"held out/{kind}", name=f"{kind} heads") for kind in KINDS]
    return Curves(title, [
        Chart("accuracy of the heads on held-out pairs", accuracy, x_label="step"),
        Chart("loss of the heads", [logged(log, "critic/loss", smooth=3)], x_label="step"),
        Chart("gradient at x0-hat, as a ratio to the distillation's",
              [logged(log, "gradient/ratio", smooth=3)], x_label="step")],
        note=f"At chance, the accuracy is 1/2 and the loss 2 per head. {FAINT}")


def alignment(results: list[Seed]) -> Section:
    """Returns Figure 6, averaged over seeds, and Figure 8, of the first seed."""
    title, first = "Curves of trajectory alignment", results[0]
    names = {ALIGNED[0]: "DPO + reflow"} | {name: name for name in VARIANTS}
    names = {name: shown for name, shown in names.items() if all(name in r.progress for r in results)}
    if ALIGNED[0] not in names:
        return Pending(title, f"{ALIGNED[0]} is trained")
    progress = [Series(shown, [*first.progress[name]],
                       [fmean(r.progress[name][step] for r in results) for step in first.progress[name]])
                for name, shown in names.items()]
    differences = {key: [logged(first.logs[name], key, name=shown, smooth=3) for name, shown in names.items()]
                   for key in ("win_diff", "accuracy")}
    return Curves(title, [
        Chart(f"Frechet distance at 4 steps, {PROGRESS_CLIPS} clips", progress, x_label="step"),
        Chart("Win Diff", differences["win_diff"], x_label="step"),
        Chart("implicit accuracy", differences["accuracy"], x_label="step")],
        note=f"The first round, as in the paper's Figures 6 and 8. The distance is on {PROGRESS_CLIPS} "
             f"validation clips, not the tables' clips, and larger for fewer clips. {FAINT}")


def training(result: Seed) -> Section:
    names = [name for name in (*STAGES, FULL) if name in result.logs]
    if not names:
        return Pending("Curves of training", f"{FIRST} is trained")

    def loss(name: str) -> Chart:
        log = [line | {"loss": line.get("distillation", line["loss"])} for line in result.logs[name]]
        return Chart(f"distillation loss, {name}", [logged(log, "loss", smooth=3)], x_label="step")

    def chart(title: str, key: str) -> Chart:
        lines = [logged(result.logs[name], key, name=name, smooth=3) for name in names]
        return Chart(title, lines, x_label="step", log_y=True)

    return Curves("Curves of training", [
        *map(loss, names), chart("tangent ‖g‖ before normalisation", "tangent"),
        chart("dF/dt, root mean square", "dF_dt")],
        note=f"The losses have different norms and cannot be compared. {FAINT}")
