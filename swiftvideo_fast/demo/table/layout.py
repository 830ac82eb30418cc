"""The comparison's results in the layouts of the paper's tables and figures, with the paper's numbers."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from swiftvideo_fast.demo.table import work
from swiftvideo_fast.demo.table.methods import METHODS, OTHER_TIMES, PAIRED
from swiftvideo_fast.demo.table.paper import CCD_DA, FVD, ORDERINGS, OURS, VBENCH
from swiftvideo_fast.demo.table.work import FIRST_SEED, TEACHER, Table, read
from swiftvideo_fast.metrics.benchmark import REFERENCE_STEPS
from swiftvideo_fast.report import tables
from swiftvideo_fast.report.charts import Chart, Series, logged
from swiftvideo_fast.report.tables import METRICS
from swiftvideo_fast.train.log import read_log

MAP, FINITE, RMS, START = "flow map", "flow map, finite", "flow map, RMS norm", "CCD + DA, 7/10"
REAL = "real, the same frames"
T_QUANTILE = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # .975, of n - 1 degrees
DISTANCES = {"frechet": "Frechet, trained", "frechet_random": "Frechet, random"}
WINNERS = {PAIRED: "sampled winners, reflow", "real winners": "real winners, reflow",
           "DPO alone": "sampled winners, DPO alone"}
LAMBDAS = {"DPO alone": "0", "lambda_RF 1": "1", PAIRED: "2", "lambda_RF 3": "3"}
BF16, BF16_FINITE = "flow map, bf16", "flow map, finite, bf16"
COMPARED = ["LCM", "PCM", "PCM, 2 phases", "DMD2", "OSV", "DCD", "CCD", CCD_DA, OURS, MAP, FINITE, RMS,
            BF16, BF16_FINITE]
OWN_ORDERINGS = [("control", (CCD_DA, 4), ("CCD + CCD", 4)), ("control", ("CCD", 4), ("DCD", 4)),
                 *(("flow map", (name, 2 * n), (name, n)) for name in (MAP, RMS) for n in (1, 2, 4)),
                 *(("flow map", (MAP, n), (FINITE, n)) for n in (8, 4, 2, 1)),
                 *(("flow map", (BF16, n), (BF16_FINITE, n)) for n in (8, 4, 2, 1)),
                 *(("flow map", (RMS, n), (OURS, n)) for n in (4, 2))]


@dataclass
class Results:
    """All results.  rows: (name, steps) -> seed -> figures.  progress: name -> step -> seed -> distance.

    scores: name -> rate -> Frechet distance on validation clips.  cpu_s: name -> seconds of all its runs.
    trained: name -> seed -> seconds of the training with the chosen rate.
    """

    rows: dict = field(default_factory=lambda: defaultdict(dict))
    progress: dict = field(default_factory=lambda: defaultdict(lambda: defaultdict(dict)))
    logs: dict = field(default_factory=dict)
    derivative: dict = field(default_factory=dict)
    trained: dict = field(default_factory=lambda: defaultdict(dict))
    scores: dict = field(default_factory=dict)
    cpu_s: dict = field(default_factory=lambda: defaultdict(float))

    def values(self, place: tuple[str, int | None], metric: str) -> dict[int, float]:
        return {seed: figures[metric] for seed, figures in self.rows[place].items() if metric in figures}

    def training(self, name: str) -> float:
        """Returns the CPU seconds of one student including its stages, averaged over seeds."""
        if name not in METHODS or not self.trained[name]:
            return 0.0
        return fmean(self.trained[name].values()) + self.training(METHODS[name].start)

    def at_the_end(self, name: str) -> dict[int, float]:
        """Returns seed -> distance at a run's last checkpoint."""
        return self.progress[name][max(self.progress[name])] if self.progress[name] else {}

    def win_diff(self, name: str, part: int) -> dict[int, float]:
        """Returns seed -> Win Diff averaged over a third (part 0, 1 or 2) of the run."""
        logs = {seed: [x["win_diff"] for x in log] for (run, seed), log in self.logs.items() if run == name}
        third = {seed: len(log) // 3 for seed, log in logs.items()}
        return {seed: fmean(log[part * third[seed]:(part + 1) * third[seed]]) for seed, log in logs.items()}

    def as_json(self) -> dict:
        return {"rows": [{"name": name, "steps": steps, "seeds": by_seed}
                         for (name, steps), by_seed in self.rows.items() if by_seed],
                "progress": self.progress, "derivative": self.derivative, "cpu_s": self.cpu_s,
                "rates": {name: {f"{rate:g}": score for rate, score in found.items()}
                          for name, found in self.scores.items()}}


def collect(table: Table, seeds: int) -> Results:
    """Returns all existing records."""
    found = Results()
    for file in table.folder.glob("seed-*/**/*.json"):
        record = read(file)
        if "cpu_s" in record:
            found.cpu_s[record.get("name", "")] += record["cpu_s"]
    for name, method in METHODS.items():
        if not isinstance(method.rates, str) and len(method.rates) > 1:
            try:
                found.scores[name] = table.scores(name)
            except LookupError:
                continue
    for seed in range(seeds):
        for name, file in ((TEACHER, "teacher.json"), ("", "real.json")):
            for steps, figures in _rows(table.folder / f"seed-{seed}" / file):
                found.rows[(name, int(steps)) if name else (steps, None)][seed] = figures
        for name in METHODS:
            try:
                run = table.run(name, seed)
            except LookupError:
                continue
            for steps, figures in _rows(run / "test.json"):
                found.rows[name, int(steps)][seed] = figures
            for step, distance in (read(run / "progress.json") or {"progress": {}})["progress"].items():
                found.progress[name][int(step)][seed] = distance
            if record := read(run / "trained.json"):
                found.logs[name, seed] = read_log(run)
                found.trained[name][seed] = record["cpu_s"]
            if name == MAP and (errors := read(run / "derivative.json")):
                found.derivative[seed] = {key: errors[key] for key in ("exact", "finite")}
    return found


def _rows(file: Path):
    return (read(file) or {"rows": {}})["rows"].items()


def sections(found: Results) -> list[tables.Table]:
    return [orderings(found), *main_tables(found), *ablations(found), *figures(found), *flow_maps(found),
            rates(found), costs(found)]


def interval(values: list[float], digits: int) -> str:
    """Returns the mean with its 95 % t interval, or a single value alone."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    half = T_QUANTILE[len(values)] * stdev(values) / len(values) ** 0.5
    return f"{fmean(values):.{digits}f} ± {half:.{digits}f}"


def cells(found: Results, place: tuple, metrics) -> list[str]:
    return [interval([*found.values(place, m).values()], METRICS[m].digits) for m in metrics]


def orderings(found: Results) -> tables.Table:
    """Returns the table of orderings, by differences within a seed: equal clips and noise."""
    def verdict(a: dict[int, float], b: dict[int, float], digits: int = 1) -> str:
        d = [a[seed] - b[seed] for seed in a.keys() & b.keys()]
        if not d:
            return "–"
        half = T_QUANTILE[len(d)] * stdev(d) / len(d) ** 0.5 if len(d) > 1 else float("inf")
        answer = "yes" if fmean(d) + half < 0 else "NO" if fmean(d) - half > 0 else "open"
        return f"{answer}: {interval(d, digits)}"

    def label(place: tuple) -> str:
        return f"{place[0]} at {place[1]}"

    def values(place: tuple[str, int]) -> list[dict[int, float]]:
        return [found.values(place, metric) for metric in DISTANCES]

    lines = [[where, f"{label(a)} < {label(b)}", *map(verdict, values(a), values(b)),
              f"{FVD[a] - FVD[b]:.1f}" if a in FVD and b in FVD else ""]
             for where, a, b in [*ORDERINGS, *OWN_ORDERINGS]]
    lines += [["Figure 6", f"{WINNERS[PAIRED]} < {WINNERS[other]}, at the end",
               verdict(found.at_the_end(PAIRED), found.at_the_end(other)), "", ""]
              for other in ("real winners", "DPO alone")]
    lines += [["Figure 8", "Win Diff with reflow < DPO alone, last third",
               verdict(found.win_diff(PAIRED, 2), found.win_diff("DPO alone", 2), 4), "", ""]]
    return tables.Table("Orderings", ["where", "claim", *DISTANCES.values(), "FVD in the paper"], lines,
                        "Differences within a seed (same clips, same noise) with 95 % t intervals over "
                        "seeds; yes or NO if the interval excludes 0, else open.")


def main_tables(found: Results) -> list[tables.Table]:
    """Returns Tables 1 and 3."""
    places = [(REAL, None), *((TEACHER, n) for n in (REFERENCE_STEPS, *work.TEACHER_STEPS)),
              *((name, n) for name in COMPARED for n in METHODS[name].measured if n in (4, 2))]
    first, third = ["frechet", "frechet_random", "trajectory"], ["motion", "detail", "psnr"]

    def seconds(name: str) -> str:
        return f"{found.training(name):.0f}" if name in METHODS else ""

    def lines(metrics: list[str], theirs) -> list[list[str]]:
        return [[name, str(steps or ""), *cells(found, (name, steps), metrics), *theirs((name, steps))]
                for name, steps in places]

    return [tables.Table("Table 1", ["", "steps", *(METRICS[m].label for m in first), "training, CPU s",
                                     "FVD in the paper"],
                         lines(first, lambda place: [seconds(place[0]),
                                                     f"{FVD[place]:.2f}" if place in FVD else ""]),
                         "Mean and 95 % t interval over seeds.  All students have equal numbers of steps; "
                         "seconds for one seed on one core, including all stages and pairs."),
            tables.Table("Table 3", ["", "steps", *(METRICS[m].label for m in third),
                                     "the paper: temporal, frame, subject, background"],
                         lines(third, lambda place: [" ".join(f"{x:.2f}" for x in VBENCH.get(place, ()))]),
                         "Substitutes for VBench's columns, whose networks no package ships: motion for "
                         "temporal quality, detail for frame quality, the first frame for the image.")]


def ablations(found: Results) -> list[tables.Table]:
    """Returns Table 2, at 4 steps."""
    groups = {"Table 2a: distillation and alignment": ["DA", "DCD", "DCD + DA", "CCD", CCD_DA],
              "Table 2b: distribution alignment": ["CCD", "CCD + CCD", CCD_DA],
              "Table 2c: trajectory alignment": [CCD_DA, PAIRED, OURS],
              "Table 2d: time samplers": [CCD_DA, *(f"{CCD_DA}, {times}" for times in OTHER_TIMES)]}
    shown = {CCD_DA: f"{CCD_DA}, lognorm(-0.6, 1.4)"}
    metrics = ["frechet", "frechet_random", "trajectory", "detail", "motion", "psnr"]
    return [tables.Table(title, ["", *(METRICS[m].label for m in metrics), "FVD in the paper"],
                         [[shown.get(name, name) if "2d" in title else name,
                           *cells(found, (name, 4), metrics), f"{FVD.get((name, 4), '')}"] for name in names],
                         "At 4 steps." + " CCD + CCD is CCD + DA without the adversary." * ("2b" in title))
            for title, names in groups.items()]


def figures(found: Results) -> list[tables.Table]:
    steps = sorted({step for name in LAMBDAS for step in found.progress[name]})
    start = [d for by_seed in found.progress[START].values() for d in by_seed.values()]

    def by_checkpoint(title: str, named: dict[str, str], note: str) -> tables.Table:
        lines = [[label, interval(start, 1), *(interval([*found.progress[name][step].values()], 1)
                                               for step in steps)] for name, label in named.items()]
        return tables.Table(title, ["", "before", *(f"step {n}" for n in steps)], lines, note)

    by_steps = [[f"{n}", *cells(found, (CCD_DA, n), DISTANCES)] for n in METHODS[CCD_DA].measured[::-1]]
    return [by_checkpoint("Figure 6: winners and reflow", WINNERS, "Frechet distance (trained) at 4 steps on "
                          "validation clips.  In the paper sampled winners with reflow are best, then "
                          "without; real winners converge slowly."),
            tables.Table("Figure 7: CCD + DA by sampling steps", ["steps", *DISTANCES.values()], by_steps,
                         "Euler.  In the paper quality improves with every step up to 8."),
            tables.Table("Figure 8: Win Diff", ["", "first third", "second", "last"],
                         [[WINNERS[name], *(interval([*found.win_diff(name, part).values()], 4)
                                            for part in range(3))] for name in (PAIRED, "DPO alone")],
                         "In the paper it stays low with reflow and grows without."),
            by_checkpoint("Figure 9: lambda_RF", LAMBDAS, "As Figure 6.  The paper finds 1 to 3 robust; "
                          "smaller is faster and less stable.")]


def flow_maps(found: Results) -> list[tables.Table]:
    maps = [TEACHER, MAP, FINITE, RMS, BF16, BF16_FINITE]
    by_seed = [[f"{name}, {label}", str(seed),
                *(f"{found.rows[name, n][seed][metric]:.1f}" for n in (1, 2, 4, 8))]
               for name in maps for metric, label in DISTANCES.items()
               for seed in sorted(found.rows[name, 8])]
    errors = [[key, *(f"{found.derivative[seed][key]:.4f}" for seed in found.derivative)]
              for key in ("exact", "finite")]
    seeds = [f"seed {seed}" for seed in found.derivative]
    head = ["", "seed", *(f"{n} steps" for n in (1, 2, 4, 8))]
    return [tables.Table("The flow map by sampling steps", head, by_seed),
            tables.Table("Relative error of du/dt", ["", *seeds], errors,
                         "The trained map with weights and arithmetic rounded to bf16, against the exact "
                         "derivative of the rounded weights in float64, on 16 validation clips.")]


def rates(found: Results) -> tables.Table:
    lines = [[name, *(f"{rate:g}: {score:.1f}" + " *" * (score == min(scores.values()))
                      for rate, score in scores.items())] for name, scores in found.scores.items()]
    width = max((len(line) for line in lines), default=1)
    return tables.Table("Learning rates", ["", *["rate: distance"] * (width - 1)],
                        [line + [""] * (width - len(line)) for line in lines],
                        "Frechet distance (trained) on validation clips, seed 0; * is used by all seeds.")


def costs(found: Results) -> tables.Table:
    lines = [[name, f"{seconds:.0f}"] for name, seconds in found.cpu_s.items()]
    return tables.Table("Cost", ["", "CPU seconds, all rates and seeds"],
                        [*lines, ["all", f"{sum(found.cpu_s.values()) / 60:.0f} core-minutes"]])


def curves(found: Results) -> dict[str, str]:
    """Returns file name -> SVG."""
    def of(names: list[str], key: str) -> list[Series]:
        return [logged(found.logs[name, FIRST_SEED], key, name=name, smooth=6)
                for name in names if (name, FIRST_SEED) in found.logs]

    maps = [MAP, FINITE, BF16, BF16_FINITE]
    charts = {"loss": Chart("loss of the flow map", of(maps, "loss"), x_label="step", log_y=True),
              "tangent": Chart("tangent before normalisation", of(maps, "tangent"), x_label="step",
                               log_y=True),
              "win-diff": Chart("Win Diff", of([PAIRED, "DPO alone"], "win_diff"), x_label="step")}
    return {f"{name}.svg": chart.svg() for name, chart in charts.items() if chart.series}


def markdown(table: tables.Table) -> str:
    lines = [table.head, ["---", *["--:"] * (len(table.head) - 1)], *table.rows]
    body = "\n".join(f"| {' | '.join(str(c) for c in line)} |" for line in lines)
    return f"### {table.title}\n\n{body}\n" + f"\n{table.note}\n" * bool(table.note)


BEGIN, END = "<!-- tables, by `make table` -->\n", "<!-- end of the tables -->"


def paste(file: Path, text: str) -> None:
    """Writes the tables between the two marks of a document.  ValueError without the marks."""
    whole = file.read_text()
    if BEGIN not in whole or END not in whole:
        raise ValueError(f"{file} lacks {BEGIN.strip()} or {END}; want both, the tables go between them")
    head, tail = whole.split(BEGIN)[0], whole.split(END)[1]
    file.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")
