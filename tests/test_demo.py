"""The demo's runs and page, without training: dependencies, and the report's content."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from swiftvideo_fast import config, demo
from swiftvideo_fast.config import Config, Sample
from swiftvideo_fast.demo import measure, page, pool
from swiftvideo_fast.demo.measure import SHOWN
from swiftvideo_fast.demo.seed import (
    PROGRESS,
    REAL,
    ROWS,
    SAMPLES,
    STEPS,
    TEACHER,
    TIMES,
    TRAINED,
    WATCHED,
    Seed,
    rows_of,
    tasks,
)
from swiftvideo_fast.demo.seed import result as seed_result
from swiftvideo_fast.demo.stages import (
    ALIGNED,
    CONTROL,
    FULL,
    LAST,
    PAIRED,
    STAGES,
    TWICE,
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
from swiftvideo_fast.report.tables import METRICS
from swiftvideo_fast.train import recipe
from swiftvideo_fast.train.log import LOG

CONFIGS = Path(__file__).parents[1] / "configs/demo"


KEYS = ["loss", "tangent", "dF_dt", "win_diff", "lose_diff", "accuracy", "reflow", "critic/loss",
        "held out/spatial", "held out/temporal"]


@pytest.fixture
def runs(tmp_path) -> dict[str, Config]:
    """Returns runs with logs in their folders, as after training."""
    runs = dict(students(tmp_path, CONFIGS, seed=0, overrides=[], paired=True))
    for run in runs.values():
        Path(run.run.dir).mkdir(parents=True)
        lines = [{"step": n, "gradient/ratio": 4.0} | dict.fromkeys(KEYS, 1 / n) for n in (10, 20)]
        (Path(run.run.dir) / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return runs


def returned(name: str, kind: str, figure: float):
    """Returns a task's result, with figures from `figure` upwards."""
    clips = np.zeros((SHOWN, 3, 5, 8, 8), np.float32)
    steps = (REFERENCE_STEPS, *STEPS[name]) if name == TEACHER else STEPS.get(name, ())
    if kind == SAMPLES:
        return ["a clip"] * SHOWN, clips, dict.fromkeys(steps, clips)
    if kind == TIMES:
        return {(student, n): n * seconds for student, seconds in ((False, 0.02), (True, 0.01))
                for n in (REFERENCE_STEPS, 8, 4, 2, 1)}
    if kind == PROGRESS:
        return {20: 5.0, 40: 4.0}
    if name == REAL:
        return dict.fromkeys(measure.REAL_ROWS, {"frechet": 0.5, "frechet_random": 0.5})
    if kind == ROWS:
        keys = [key for key in METRICS if key != "seconds"]
        return {n: (dict.fromkeys(keys, figure + i), clips) for i, n in enumerate(steps)}
    return None


@pytest.fixture
def done(runs, tmp_path) -> dict:
    """Returns all tasks' results, in order."""
    places = tasks(0, runs, 256, tmp_path)
    return {(seed, name, kind): pool.Ended(returned(name, kind, 10.0 * i), 1.0)
            for i, (seed, name, kind) in enumerate(places)}


@pytest.fixture
def result(runs, done) -> Seed:
    return seed_result(0, runs, done)


def test_each_run_starts_from_the_student_before_it(tmp_path):
    runs = dict(students(tmp_path, CONFIGS, seed=3, overrides=[], paired=True))
    assert {*runs} == {*STAGES, CONTROL, FULL, *ALIGNED, *VARIANTS, TWICE} and len(runs) == 11
    assert all(cfg.run.seed == 3 for cfg in runs.values())
    assert len({cfg.run.dir for cfg in runs.values()}) == len(runs)
    chain = [*STAGES, *ALIGNED]
    for before, after in [*zip(chain, chain[1:], strict=False), (PAIRED, TWICE)]:
        assert runs[after].model.student == f"{runs[before].run.dir}/average.safetensors"
    assert [runs[name].objective.steps for name in ALIGNED] == [(8, 4), (4, 2)]


def test_what_is_unjudged_differs_by_its_adversary_alone(tmp_path):
    runs = dict(students(tmp_path, CONFIGS, seed=0, overrides=[], paired=True))
    full, control = (config.to_dict(runs[name]) for name in (LAST, CONTROL))
    changed = {d.partition(":")[0].partition(".")[0] for d in config.differences(full, control)}
    assert changed == {"run", "da"} and runs[CONTROL].da is None


def test_variants_differ_from_the_first_round_in_what_they_try_alone(tmp_path):
    runs = dict(students(tmp_path, CONFIGS, seed=0, overrides=[], paired=True))
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
    runs = dict(students(tmp_path, CONFIGS, seed=0, overrides=[], paired=True))
    first, second = ALIGNED
    assert {name: set(needed(run, runs)) for name, run in runs.items()} == {
        "CCD": set(), LAST: {"CCD"}, CONTROL: {"CCD"}, FULL: set(), first: {LAST}, second: {first},
        "reflow alone": {LAST, first}, "DPO alone": {LAST, first}, PAIRED: {LAST, first}, TWICE: {PAIRED},
        "real winners": {LAST}}


def test_a_student_is_measured_once_it_is_trained_and_the_teacher_measured(tmp_path):
    runs = dict(students(tmp_path, CONFIGS, seed=5, overrides=[], paired=True))
    todo = tasks(5, runs, 8, tmp_path)
    assert {name for seed, name, kind in todo if kind == TRAINED} == {*runs}
    assert {name for seed, name, kind in todo if kind == ROWS} == {*STEPS, REAL}
    for name in runs:
        assert todo[5, name, ROWS].after == {(5, name, TRAINED), (5, TEACHER, ROWS)}
    for name in WATCHED:
        assert todo[5, name, PROGRESS].after == {(5, name, TRAINED)}
    assert todo[5, CONTROL, TRAINED].after == {(5, "CCD", TRAINED)}
    assert next(iter(todo)) == (5, TEACHER, SAMPLES) and not todo[5, TEACHER, SAMPLES].after


def test_one_seed_trains_what_the_paper_has(tmp_path):
    one, more = (dict(students(tmp_path, CONFIGS, 0, [], paired)) for paired in (False, True))
    assert {*more} - {*one} == {PAIRED, TWICE} and all(more[name] == run for name, run in one.items())


def call(place: tuple) -> tuple:
    """A task that records when it ran."""
    DONE.append(place)
    return place


DONE = []


def test_a_task_waits_for_those_it_comes_after(monkeypatch):
    DONE.clear()
    monkeypatch.setattr(pool, "ProcessPoolExecutor", Fake)
    after = {(n,): frozenset((m,) for m in range(n + 1, 9, 3)) for n in range(9)}
    heard = []
    found = pool.run_tasks({place: pool.Task(call, (place,), those) for place, those in after.items()},
                           lambda place, done: heard.append((place, len(done))))
    assert {place: ended.value for place, ended in found.items()} == {place: place for place in after}
    assert [*zip(found, range(1, 10), strict=True)] == heard
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
    """On the real clips: patches of a test do not apply in another process."""
    cfg = tiny.config(inputs, "ccd", run=str(tmp_path / "beside"))
    cfg = replace(cfg, data=replace(cfg.data, pool=4), run=replace(cfg.run, steps=2))
    ended, = pool.run_tasks({("beside",): pool.Task(finish, (cfg,))}).values()
    assert ended.core_seconds > 0.5         # importing torch takes longer
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = recipe.train(replace(cfg, run=replace(cfg.run, dir=str(tmp_path / "alone"))))
    finally:
        torch.set_num_threads(threads)
    ours, theirs = (weights.read(run / recipe.FILES[AVERAGE])[0] for run in (tmp_path / "beside", alone))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_rows_of_teacher_and_student_are_those_of_the_benchmark(inputs, tmp_path):
    """Figures by hand from the same samples; the teacher's many-step samples have no trajectory error."""
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
    at = measure.different(bench.real)
    assert torch.equal(torch.from_numpy(student[2][1]), bench.codec.decode(z[at]))
    assert student[2][0]["trajectory"] > 0


def test_the_preview_shows_the_samples_that_the_tables_measure(inputs, tmp_path, monkeypatch):
    """Bit for bit, also for clips beyond the first batch."""
    monkeypatch.setattr(measure, "FIRST_BATCH", 32)
    cfg = tiny.config(inputs, "ccd", run=str(tmp_path / "run"))
    captions, real, teacher = measure.preview(cfg, 40, (2,), tiny.TABLES)
    rows = measure.teacher_rows(cfg, 40, (2,), tmp_path / "reference.safetensors", tiny.TABLES)
    assert len(captions) == len(real) == SHOWN and {*teacher} == {*rows} == {REFERENCE_STEPS, 2}
    assert all(np.array_equal(teacher[n], shown) for n, (_, shown) in rows.items())
    bench = measure.benchmark(cfg, "test", 40, tiny.TABLES)
    assert all(any(np.array_equal(clip, other) for other in bench.real[:32].numpy()) for clip in real)


def test_the_clips_shown_differ_and_none_is_shown_twice():
    greys = torch.tensor([0.2, 0.21, 1.0, 0.2, -0.9, 0.95, 0.5, -0.3, 0.2])
    clips = greys[:, None, None, None, None].expand(-1, 3, 2, 4, 4)
    assert measure.different(clips) == [0, 4, 2, 7, 6, 5]
    assert sorted(measure.different(clips[:1].expand(4, -1, -1, -1, -1))) == [0, 1, 2, 3]


def test_seconds_are_the_least_of_interleaved_rounds_for_a_clip(inputs, tmp_path, monkeypatch):
    cfg = tiny.config(inputs, "ccd", run=str(tmp_path / "run"))
    run = tiny.config(inputs, "ccd", run=str(recipe.train(cfg, tiny.TABLES)))
    now, order = [0.0], []

    def sample(net, clips, steps, how, seed):
        order.append((how.guidance, steps))
        slow = 1 if 4 <= len(order) <= 6 else 2         # the second round is the fastest
        now[0] += steps * (3 if how.guidance > 1 else 1) * slow

    monkeypatch.setattr(measure, "sample", sample)
    monkeypatch.setattr(measure.time, "process_time", lambda: now[0])
    found = measure.timings(cfg, run, (25, 4), (4,), tiny.TABLES)
    assert found == {(False, 25): 75 / 4, (False, 4): 12 / 4, (True, 4): 4 / 4}
    assert order == [(3.0, 25), (3.0, 4), (1.0, 4)] * measure.TIMINGS


def test_other_real_crops_stand_nearer_than_those_of_the_training(inputs):
    measure.benchmark.cache_clear()
    same, training = measure.real_rows(tiny.config(inputs, "ccd"), 32, tiny.TABLES).values()
    assert same.keys() == training.keys() == {"frechet", "frechet_random"}
    assert all(0 < same[metric] < training[metric] for metric in same)


def test_the_tables_have_the_papers_layouts(result):
    methods, added, rounds, *_ = page.tables([result], rows_of([result]), clips=256)
    assert [(row[0], row[1]) for row in methods.rows[:7]] == [
        *((name, "") for name in measure.REAL_ROWS),
        *((TEACHER, str(n)) for n in (REFERENCE_STEPS, *STEPS[TEACHER])), ("CCD", "4")]
    assert not {row[0] for row in methods.rows} & {CONTROL, *VARIANTS, TWICE}
    settings = [row[0] for row in added.rows]
    questions = [CONTROL, LAST, LAST, *ALIGNED, LAST, PAIRED, TWICE]
    assert settings == ["CCD", *questions, ALIGNED[0], *VARIANTS]
    assert [row[-1] for row in added.rows if row[0] == "CCD"][0] == "172.54"
    assert [row[0] for row in rounds.rows] == questions


def test_ratios_in_the_second_table_are_to_the_first_of_their_group(result):
    _, added, *_ = page.tables([result], rows_of([result]), clips=256)
    by = {place: found["frechet"] for place, found in result.rows.items()}
    aligned = next(row for row in added.rows if row[0] == ALIGNED[0])
    assert aligned[1].remark == f"×{by[ALIGNED[0], 4] / by[LAST, 4]:.2f}"
    first = {question: added.rows[i] for i, question in added.groups.items()}
    assert first["does alignment help?"][0] == LAST and first["does alignment help?"][1].remark == ""


def test_questions_about_runs_that_are_not_there_are_not_asked(runs, done):
    """With one seed there is no paired noise; while the demo runs, results are missing."""
    def asked(*without: str) -> list[list[str]]:
        kept = {place: ended for place, ended in done.items() if place[1] not in without}
        there = seed_result(0, runs, kept)
        return [[*table.groups.values()] for table in page.tables([there], rows_of([there]), clips=256)[1:3]]

    distilled, first = "distillation", "what makes the first round?"
    questions = ["does the adversary help?", "does alignment help?", "does paired noise?"]
    assert asked() == [[distilled, *questions, first], questions]
    assert asked(PAIRED, TWICE) == [[distilled, *questions[:2], first], questions[:2]]
    assert asked(PAIRED, TWICE, *VARIANTS, *ALIGNED) == [[distilled, questions[0]], questions[:1]]
    assert asked(CONTROL, TWICE, *VARIANTS) == [[distilled, questions[1]], questions[1:2]]


def test_the_page_shows_figures_6_and_8_the_samples_and_the_gain(result):
    html = render(page.TITLE, page.sections([result, result], clips=256), About({}))
    for said in ("temporal heads", "reflow alone from 5 to 4", "Frechet distance at 4 steps", "Win Diff",
                 ALIGNED[1], "FVD in the paper", "12.5 times faster", "0.040 s per clip instead of 0.500 s",
                 f"This is {ALIGNED[0]}. {ALIGNED[0]} in 2 steps: 25.0 times faster",
                 "distillation&#x27;s, 4."):
        assert said in html, said
    assert "Pending: shown" not in html and "nan" not in html


def test_a_page_is_written_at_every_stage_and_says_what_is_still_to_come(runs, done):
    """Never with less than before."""
    shown, waits = 0, 9
    for count in range(1, len(done) + 1):
        partial = seed_result(0, runs, dict(list(done.items())[:count]))
        html = render(page.TITLE, page.sections([partial], clips=256), About({}))
        assert html.count("<canvas") >= shown and html.count("Pending: shown") <= waits
        shown, waits = html.count("<canvas"), html.count("Pending: shown")
        if count == 1:
            assert "students&#x27; samples follow" in html and waits == 9 and "teacher, 25 steps" in html
    assert not waits
    resumed = {place: ended for place, ended in done.items() if place[-1] in (TRAINED, TIMES)}
    html = render(page.TITLE, page.sections([seed_result(0, runs, resumed)], clips=256), About({}))
    assert "Pending: shown after the teacher is sampled" in html        # other tasks may end first


def test_the_first_page_is_there_with_the_teachers_samples_and_the_last_is_whole(
        runs, done, monkeypatch, tmp_path, capsys):
    def run_tasks(todo, ended):
        assert {*todo} == {*done}
        for count, place in enumerate(done, 1):
            ended(place, dict(list(done.items())[:count]))
            pages.append(report.read_text())
            assert ("is updated from now on" in capsys.readouterr().out) == (count == 1)
        return done

    report, pages = tmp_path / "report.html", []
    report.write_text("of another day")
    monkeypatch.setattr(demo, "run_tasks", run_tasks)
    monkeypatch.setattr(demo, "students", lambda *_, **__: runs.items())
    assert demo.demo(tmp_path, CONFIGS, clips=256, overrides=["data.batch=2"]) == report
    assert "teacher, 25 steps" in pages[0] and "of another day" not in pages[0]
    trained = [i for i, (_, _, kind) in enumerate(done) if kind == TRAINED]
    assert all(pages[i] == pages[i - 1] for i in trained)
    for said in ("Pending: shown", "The demo is still running"):
        assert said in pages[1] and said not in pages[-1]
    assert "configs/demo data.batch=2" in pages[-1] and "<summary>CCD + DA</summary>" in pages[-1]
    assert f"for {len(done)} of {len(done)} tasks, {len(done)} core-seconds" in pages[-1]
    assert f"for 3 of {len(done)} tasks, 3 core-seconds" in pages[2]
    table = json.loads((tmp_path / "table.json").read_text())
    student = next(row for row in table if row["name"] == ALIGNED[0])
    assert student["metrics"]["seconds"]["mean"] == pytest.approx(0.04)
