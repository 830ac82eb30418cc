"""The comparison (`make table`): dependencies, resuming, rates, measurements and layout."""

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from test_flowmap import moved

from swiftvideo_fast.config import differences, to_dict
from swiftvideo_fast.demo.table import __main__ as command
from swiftvideo_fast.demo.table import layout, methods, work
from swiftvideo_fast.demo.table.methods import METHODS, PAIRED
from swiftvideo_fast.demo.table.paper import FVD, ORDERINGS
from swiftvideo_fast.demo.table.work import Table
from swiftvideo_fast.models import weights

CONFIGS = Path(__file__).parents[1] / "configs/demo"
RATES = {"CCD": (1e-3, 1e-2), "CCD + DA": (1e-3, 1e-2), PAIRED: (1e-3,), layout.MAP: (1e-3,)}
FEW = [*RATES, "CCD, half", "CCD + DA, 7/10", "DPO alone"]


class Crops(work.CachedCrops):
    footage = staticmethod(lambda height: tiny.clips())


@pytest.fixture
def table(inputs, tmp_path, monkeypatch) -> Table:
    """Returns a table with tiny clips and networks, few methods and rates, in one process."""
    (tmp_path / "configs").mkdir()
    for file in CONFIGS.glob("*.yaml"):
        tree = yaml.safe_load(file.read_text())
        tree["model"] = {"family": "toy"} | {"codec": str(inputs / "codec.safetensors"),
                                             "weights": str(inputs / "teacher.safetensors")}
        tree["data"] |= {"frames": tiny.FRAMES, "size": tiny.SIZE, "height": tiny.HEIGHT}
        tree["data"] |= {"pool": 8, "pace": 1}
        if "da" in tree:
            tree["da"] |= {"crop": 16, "window": 1}
        (tmp_path / "configs" / file.name).write_text(yaml.safe_dump(tree))
    for name in {*METHODS} - {*FEW}:
        monkeypatch.delitem(METHODS, name)
    for name, rates in RATES.items():
        monkeypatch.setitem(METHODS, name, replace(METHODS[name], rates=rates))
    monkeypatch.setattr(layout, "COMPARED", [name for name in layout.COMPARED if name in FEW])
    monkeypatch.setattr(work, "TABLES", replace(work.TABLES, sources=work.by_name(Crops)))
    monkeypatch.setattr(work, "TEACHER_STEPS", (4, 2))
    monkeypatch.setattr(command, "run_tasks", in_turn)
    work.benchmark.cache_clear()
    return Table(tmp_path / "table", tmp_path / "configs", 20, 4)


def in_turn(todo: dict) -> None:
    """run_tasks of demo/pool.py, in this process."""
    done = set()
    while ready := [name for name, task in todo.items() if name not in done and task.after <= done]:
        todo[ready[0]].call(*todo[ready[0]].args)
        done.add(ready[0])
    assert done == {*todo}


def flags(table: Table, *more: str) -> list[str]:
    return ["--dir", str(table.folder), "--configs", str(table.configs), "--seeds", "2", "--steps", "20",
            "--clips", "4", *more]


def test_a_table_cut_short_is_finished_to_the_same_figures_and_nothing_is_done_twice(
        table, tmp_path, monkeypatch, capsys):
    """In the middle of a training, then once more from the end."""
    into = tmp_path / "comparison.md"
    into.write_text(f"Ours.\n{layout.BEGIN}old\n{layout.END}\nThe end.\n")
    measured, train = [], work.train

    def cut(table, name, seed, rate=None):
        if name == "CCD + DA" and rate == 1e-2:
            raise ValueError("the power is off")
        train(table, name, seed, rate)

    monkeypatch.setattr(work, "train", cut)
    assert command.main(flags(table)) == 2
    cut_short = capsys.readouterr()
    assert "the power is off" in cut_short.err and "Table 2b" in cut_short.out
    assert "CCD + DA" not in json.loads((table.folder / "table.json").read_text())["rates"]

    monkeypatch.setattr(work, "train", train)
    assert command.main(flags(table, "--into", str(into))) == 0
    said = into.read_text()
    assert said.startswith("Ours.\n") and said.endswith("\nThe end.\n") and "old" not in said
    assert "### Table 1" in said and "### Figure 9: lambda_RF" in said
    assert {file.name for file in (tmp_path / "comparison").iterdir()} == {
        "loss.svg", "tangent.svg", "win-diff.svg"}

    figures = (table.folder / "table.json").read_text()
    monkeypatch.setattr(work.recipe, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(work, "benchmark", lambda *_: measured.append(_))
    assert command.main(flags(table)) == 0 and not measured
    assert (table.folder / "table.json").read_text() == figures

    rows = {(row["name"], row["steps"]): row["seeds"] for row in json.loads(figures)["rows"]}
    assert rows.keys() == {(layout.REAL, None), ("real, the training's", None)} | {
        (work.TEACHER, n) for n in (25, 4, 2)} | {
        (name, n) for name in FEW for n in METHODS[name].measured}
    assert all(seeds.keys() == {"0", "1"} for seeds in rows.values())
    assert rows["CCD", 4]["0"] != rows["CCD", 4]["1"]
    for name in FEW:
        for seed in (0, 1):
            assert to_dict(table.config(name, seed))["run"]["seed"] == seed
            assert (table.run(name, seed) / "average.safetensors").exists()


def test_the_rate_of_the_least_distance_is_taken_by_all_that_share_it(table, monkeypatch):
    def score(name: str, rate: float, frechet: float | None) -> None:
        file = table.run(name, 0, rate) / "valid.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"frechet": frechet}))

    score("CCD", 1e-3, 5.0)
    with pytest.raises(LookupError, match=r"CCD is not validated at \[0.01\]"):
        table.rate("CCD")
    score("CCD", 1e-2, 4.0)
    assert table.rate("CCD") == table.rate("CCD, half") == 1e-2
    score("CCD", 1e-2, None)                                # broke off
    assert table.rate("CCD, half") == 1e-3 and table.scores("CCD") == {1e-3: 5.0, 1e-2: math.inf}
    assert table.config("CCD, half", 1).optim.lr == 1e-3


def test_every_compared_method_takes_the_same_number_of_student_steps():
    def total(name: str | None) -> Fraction:
        return METHODS[name].share + total(METHODS[name].start) if name else Fraction(0)

    totals = {name: total(name) for name in {*layout.COMPARED, *(name for _, (name, _), _ in ORDERINGS),
                                             *(name for _, _, (name, _) in ORDERINGS)} - {work.TEACHER}}
    assert set(totals.values()) == {1} and len(totals) > 12
    assert {total(name) for name in layout.WINNERS} == {total(name) for name in layout.LAMBDAS} == {
        1 - methods.ROUND}


def test_the_papers_controls_differ_in_what_they_try_alone(monkeypatch):
    monkeypatch.setattr(Table, "rate", lambda self, name: 1e-4)
    table = Table(Path("t"), CONFIGS)

    def changed(one: str, other: str) -> set[str]:
        found = differences(*(to_dict(table.config(name, 0)) for name in (one, other)))
        return {line.partition(":")[0] for line in found} - {"run.dir"}

    assert {key.partition(".")[0] for key in changed("CCD + CCD", "CCD + DA")} == {"da"}
    assert changed(layout.MAP, layout.FINITE) == {"objective.derivative"}
    assert changed(PAIRED, "DPO alone") == {"objective.reflow", "objective.pairs"}
    assert changed(PAIRED, "real winners") == {"objective.winner"}
    for times in methods.OTHER_TIMES:
        assert {key.partition(".")[0] for key in changed("CCD + DA", f"CCD + DA, {times}")} == {
            "times", "model"}
    dmd2 = table.config("DMD2", 0)
    assert dmd2.run.steps == 200 * dmd2.objective.every and dmd2.objective.fake_lr == 1e-4
    assert table.config("CCD", 0).objective.warmup == table.config("CCD, half", 0).objective.warmup == 400


@pytest.mark.parametrize("seed", [0, 1])
def test_every_task_comes_after_what_it_reads(seed):
    todo = command.tasks(Table(Path("t"), CONFIGS), seed)
    assert all(task.after <= todo.keys() for task in todo.values())
    trained = (seed, "DPO alone", command.TRAIN)
    pairs = (seed, PAIRED, command.TRAIN) + ((2e-4,) if seed == 0 else ())
    assert pairs in todo[trained].after
    start = METHODS["CCD + DA"].start
    ours = [task for place, task in todo.items() if place[:3] == (seed, "CCD + DA", command.TRAIN)]
    assert ours and all((seed, start, command.TRAIN) in task.after for task in ours)
    grids = [m.rates for m in METHODS.values() if isinstance(m.rates, tuple) and len(m.rates) > 1]
    validated = [place for place in todo if place[2] == command.VALIDATE]
    assert {place for place in validated if place[1] == "CCD"} <= todo[seed, "CCD", command.MEASURE].after
    assert len(validated) == (0 if seed else sum(map(len, grids)))


def test_a_record_is_made_again_only_when_what_it_is_of_changes(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"value": len(made)}

    for of in ({"steps": (4, 2)}, {"steps": (4, 2)}, {"steps": (4,)}):
        work.once(tmp_path / "record.json", "CCD", of, make)
    assert len(made) == 2 and work.read(tmp_path / "record.json")["value"] == 2


def test_an_interval_is_students_and_a_verdict_is_of_paired_differences():
    from scipy.stats import t
    assert all(abs(q - t.ppf(0.975, n - 1)) < 1e-3 for n, q in layout.T_QUANTILE.items())
    assert layout.interval([1.0, 2.0, 3.0], 2) == f"2.00 ± {4.303 / 3 ** 0.5:.2f}"
    assert layout.interval([], 1) == "–" and layout.interval([3.0], 1) == "3.0"
    found = layout.Results()
    for seed, offset in enumerate((0.0, 50.0, 90.0)):               # clips differ more than methods do
        for place, frechet in ((("CCD + DA", 4), 10), (("CCD", 4), 20), (("CCD + CCD", 4), 5)):
            found.rows[place][seed] = {"frechet": offset + frechet + 0.1 * seed * (frechet == 10)}
    said = {line[1]: line[2] for line in layout.orderings(found).rows}
    assert said["CCD + DA at 4 < CCD at 4"].startswith("yes: -9.9 ± 0.2")
    assert said["CCD + DA at 4 < CCD + CCD at 4"].startswith("NO: 5.1")
    assert said["teacher at 8 < teacher at 4"] == "–"
    found.rows["CCD", 4][1]["frechet"] -= 20
    said = {line[1]: line[2] for line in layout.orderings(found).rows}
    assert said["CCD + DA at 4 < CCD at 4"].startswith("open")


def test_a_document_without_the_marks_is_refused_and_left_alone(tmp_path):
    file = tmp_path / "a.md"
    file.write_text("mine")
    with pytest.raises(ValueError, match="a.md lacks"):
        layout.paste(file, "tables")
    assert file.read_text() == "mine"


def test_the_exact_derivative_of_a_rounded_map_errs_less_than_the_finite_one(inputs, tmp_path):
    weights.save(moved(), tmp_path / "map.safetensors")
    parts = work.Parts(tiny.config(inputs, "flowmap"), tiny.TABLES)
    clips = parts.clips.clips("valid", 4, 0)
    found = work.derivative_errors(parts.family, tmp_path / "map.safetensors", tiny.network(), clips, 0)
    assert found["exact"] < 2**-7 < 30 * found["exact"] < found["finite"]
    assert torch.get_default_dtype() is torch.float32


def test_the_papers_numbers_are_the_papers():
    assert FVD["CCD + DA + TA", 4] == 118.89 and len(FVD) == 17
    for where, better, worse in ORDERINGS:
        if better in FVD and worse in FVD:
            assert FVD[better] < FVD[worse], where
