"""The demo's runs and page, without the training: what starts from what, and what the report shows."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from swiftvideo_fast import config
from swiftvideo_fast.config import Sample
from swiftvideo_fast.demo import measure, page, pool
from swiftvideo_fast.demo.measure import SHOWN
from swiftvideo_fast.demo.seed import PROGRESS, ROWS, STEPS, TEACHER, TRAINED, WATCHED, Seed, tasks
from swiftvideo_fast.demo.stages import (
    ALIGNED,
    FULL,
    LAST,
    PAIRED,
    STAGES,
    TWICE,
    UNJUDGED,
    VARIANTS,
    finish,
    needed,
    students,
)
from swiftvideo_fast.metrics.benchmark import REFERENCE_STEPS
from swiftvideo_fast.models import weights
from swiftvideo_fast.objectives.base import AVERAGE
from swiftvideo_fast.report.about import About
from swiftvideo_fast.report.page import render
from swiftvideo_fast.report.tables import METRICS, Row
from swiftvideo_fast.train import recipe

CONFIGS = Path(__file__).parents[1] / "configs/demo"


@pytest.fixture
def result() -> Seed:
    """Figures that count up, so that each is another."""
    places = [(TEACHER, REFERENCE_STEPS), *((name, n) for name, steps in STEPS.items() for n in steps)]
    rows = {(name, None): {"frechet": 0.5, "frechet_random": 0.5} for name in measure.REAL_ROWS}
    rows |= {place: {key: 1.0 + i for key in METRICS} for i, place in enumerate(places)}
    pixels = dict.fromkeys([*places, ("real", 0)], torch.zeros(SHOWN, 3, 5, 8, 8))
    keys = ["loss", "tangent", "dF_dt", "win_diff", "lose_diff", "accuracy", "reflow", "critic/loss",
            "gradient/ratio", "held out/spatial", "held out/temporal"]
    logs = dict.fromkeys(STEPS, [{"step": step} | dict.fromkeys(keys, 0.5) for step in (10, 20)])
    progress = {name: {20: 5.0, 40: 4.0} for name in (ALIGNED[0], *VARIANTS)}
    return Seed(["a clip"] * SHOWN, "filters", logs, rows, pixels, progress)


def rows_of(result: Seed) -> list[Row]:
    return [Row(name, steps, {key: [x] for key, x in found.items()})
            for (name, steps), found in result.rows.items()]


def test_each_run_starts_from_the_student_before_it(tmp_path):
    runs = dict(students(tmp_path, CONFIGS, seed=3, overrides=[]))
    assert {*runs} == {*STAGES, UNJUDGED, FULL, *ALIGNED, *VARIANTS, TWICE} and len(runs) == 11
    assert all(cfg.run.seed == 3 for cfg in runs.values())
    assert len({cfg.run.dir for cfg in runs.values()}) == len(runs)
    chain = [*STAGES, *ALIGNED]
    for before, after in [*zip(chain, chain[1:], strict=False), (PAIRED, TWICE)]:
        assert runs[after].model.student == f"{runs[before].run.dir}/average.safetensors"
    assert [runs[name].objective.steps for name in ALIGNED] == [(8, 4), (4, 2)]


def test_what_is_unjudged_differs_by_its_adversary_alone(tmp_path):
    runs = dict(students(tmp_path, CONFIGS, seed=0, overrides=[]))
    judged, unjudged = (config.to_dict(runs[name]) for name in (LAST, UNJUDGED))
    changed = {d.partition(":")[0].partition(".")[0] for d in config.differences(judged, unjudged)}
    assert changed == {"run", "da"} and runs[UNJUDGED].da is None


def test_variants_differ_from_the_first_round_in_what_they_try_alone(tmp_path):
    runs = dict(students(tmp_path, CONFIGS, seed=0, overrides=[]))
    first = config.to_dict(runs[ALIGNED[0]])
    tried = {name: {d.partition(":")[0] for d in config.differences(first, config.to_dict(runs[name]))}
             for name in VARIANTS}
    pairs = {"objective.pairs", "run.dir"}
    assert tried == {"reflow alone": {"objective.beta"} | pairs, "DPO alone": {"objective.reflow"} | pairs,
                     PAIRED: {"objective.noise"} | pairs, "real winners": {"objective.winner", "run.dir"}}
    second, twice = (config.to_dict(runs[name]) for name in (ALIGNED[1], TWICE))
    assert {d.partition(":")[0] for d in config.differences(second, twice)} == {
        "objective.noise", "model.student", "run.dir"}
    assert runs["reflow alone"].objective.pairs == f"{runs[ALIGNED[0]].run.dir}/pairs"


class Fake:
    """A pool of threads, so that a test can observe it."""

    def __init__(self, workers, context, begin):
        self.threads = ThreadPoolExecutor(4)

    def __enter__(self):
        return self.threads

    def __exit__(self, *why):
        self.threads.shutdown()


def test_a_run_needs_those_it_starts_from_and_no_others(tmp_path):
    runs = dict(students(tmp_path, CONFIGS, seed=0, overrides=[]))
    first, second = ALIGNED
    assert {name: set(needed(run, runs)) for name, run in runs.items()} == {
        "CCD": set(), LAST: {"CCD"}, UNJUDGED: {"CCD"}, FULL: set(), first: {LAST}, second: {first},
        "reflow alone": {LAST, first}, "DPO alone": {LAST, first}, PAIRED: {LAST, first}, TWICE: {PAIRED},
        "real winners": {LAST}}


def test_a_student_is_measured_once_it_is_trained_and_the_teacher_measured(tmp_path):
    runs = dict(students(tmp_path, CONFIGS, seed=5, overrides=[]))
    todo = tasks(5, runs, 8, tmp_path)
    assert {name for seed, name, kind in todo if kind == TRAINED} == {*runs}
    assert {name for seed, name, kind in todo if kind == ROWS} == {*STEPS, "real"}
    for name in runs:
        assert todo[5, name, ROWS].after == {(5, name, TRAINED), (5, TEACHER, ROWS)}
    for name in WATCHED:
        assert todo[5, name, PROGRESS].after == {(5, name, TRAINED)}
    assert todo[5, UNJUDGED, TRAINED].after == {(5, "CCD", TRAINED)}


def call(place: tuple) -> tuple:
    """A task that tells when it ran."""
    DONE.append(place)
    return place


DONE = []


def test_a_task_waits_for_those_it_comes_after(monkeypatch):
    DONE.clear()
    monkeypatch.setattr(pool, "ProcessPoolExecutor", Fake)
    after = {(n,): frozenset((m,) for m in range(n + 1, 9, 3)) for n in range(9)}
    found = pool.run_tasks({place: pool.Task(call, (place,), those) for place, those in after.items()})
    assert found == {place: place for place in after}
    assert all(DONE.index(other) < DONE.index(place) for place in after for other in after[place])


def test_the_first_error_of_a_task_ends_the_pool(monkeypatch):
    def fail(place):
        raise ValueError("no such teacher")

    DONE.clear()
    monkeypatch.setattr(pool, "ProcessPoolExecutor", Fake)
    todo = {("a",): pool.Task(fail, (("a",),)), ("b",): pool.Task(call, (("b",),), frozenset({("a",)}))}
    with pytest.raises(ValueError, match="no such teacher"):
        pool.run_tasks(todo)
    assert not DONE


def test_a_pool_of_processes_trains_to_the_same_bits_as_the_loop(inputs, tmp_path):
    """On the real clips: what a test patches does not reach another process."""
    cfg = tiny.config(inputs, "ccd", run=str(tmp_path / "beside"))
    cfg = replace(cfg, data=replace(cfg.data, pool=4), run=replace(cfg.run, steps=2))
    pool.run_tasks({("beside",): pool.Task(finish, (cfg,))})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = recipe.train(replace(cfg, run=replace(cfg.run, dir=str(tmp_path / "alone"))))
    finally:
        torch.set_num_threads(threads)
    ours, theirs = (weights.read(run / recipe.FILES[AVERAGE])[0] for run in (tmp_path / "beside", alone))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_rows_of_teacher_and_student_are_those_of_the_benchmark(inputs, tmp_path):
    """Figures by hand from the same samples; the teacher's many-step samples have no error of trajectory."""
    cfg = tiny.config(inputs, "ccd", run=str(tmp_path / "run"))
    run = recipe.train(cfg, tiny.TABLES)
    file = tmp_path / "reference.safetensors"
    measure.benchmark.cache_clear()
    teacher = measure.teacher_rows(cfg, 4, (2, 1), file, tiny.TABLES)
    student = measure.student_rows(cfg, 4, (2,), file, cfg, tiny.TABLES)
    assert [*teacher] == [REFERENCE_STEPS, 2, 1] and teacher[REFERENCE_STEPS][0]["trajectory"] == 0
    bench = measure.benchmark(cfg, "test", 4, tiny.TABLES)
    net, teacher = (measure.network(cfg, file) for file in (run / recipe.FILES[AVERAGE], cfg.model.weights))
    reference = bench.reference(teacher, cfg.objective.guidance)
    z = bench.sample(net, 2, Sample())
    assert student[2][0] == bench.figures(z, reference)
    assert torch.equal(torch.from_numpy(student[2][1]), bench.codec.decode(z[:SHOWN]))
    assert student[2][0]["trajectory"] > 0


def test_other_real_crops_stand_nearer_than_those_of_the_training(inputs):
    measure.benchmark.cache_clear()
    same, training = measure.real_rows(tiny.config(inputs, "ccd"), 32, tiny.TABLES).values()
    assert same.keys() == training.keys() == {"frechet", "frechet_random"}
    assert all(0 < same[metric] < training[metric] for metric in same)


def test_the_tables_have_the_papers_layouts(result):
    methods, added, rounds, *_ = page.tables([result], rows_of(result), clips=256)
    assert [(row[0], row[1]) for row in methods.rows[:7]] == [
        *((name, "") for name in measure.REAL_ROWS),
        *((TEACHER, str(n)) for n in (REFERENCE_STEPS, *STEPS[TEACHER])), ("CCD", "4")]
    assert not {row[0] for row in methods.rows} & {UNJUDGED, *VARIANTS, TWICE}
    settings = [row[0] for row in added.rows]
    questions = [UNJUDGED, LAST, LAST, *ALIGNED, LAST, PAIRED, TWICE]
    assert settings == ["CCD", *questions, ALIGNED[0], *VARIANTS]
    assert [row[-1] for row in added.rows if row[0] == "CCD"][0] == "172.54"
    assert [row[0] for row in rounds.rows] == questions


def test_ratios_in_the_second_table_are_to_the_first_of_their_group(result):
    _, added, *_ = page.tables([result], rows_of(result), clips=256)
    by = {place: found["frechet"] for place, found in result.rows.items()}
    aligned = next(row for row in added.rows if row[0] == ALIGNED[0])
    assert aligned[1].remark == f"×{by[ALIGNED[0], 4] / by[LAST, 4]:.2f}"
    first = {question: added.rows[i] for i, question in added.groups.items()}
    assert first["trajectory alignment"][0] == LAST and first["trajectory alignment"][1].remark == ""


def test_the_page_shows_figures_6_and_8_and_the_samples(result):
    html = render(page.TITLE, page.sections([result, result], rows_of(result), clips=256), About({}))
    for said in ("2 seeds in all", "looks through filters", "temporal heads", "reflow alone from 5 to 4",
                 "Frechet distance at 4 steps", "Win Diff", ALIGNED[1], "FVD in the paper"):
        assert said in html
