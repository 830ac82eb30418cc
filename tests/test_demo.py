"""The demo's runs and page, without the training: what starts from what, and what the report shows."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from swiftvideo_fast import config
from swiftvideo_fast.demo import crew, page
from swiftvideo_fast.demo.stages import (
    ALIGNED,
    FULL,
    LAST,
    SHOWN,
    STAGES,
    STUDENT_STEPS,
    TEACHER_STEPS,
    UNJUDGED,
    VARIANT_STEPS,
    VARIANTS,
    Seed,
    students,
)
from swiftvideo_fast.evaluate.report import render
from swiftvideo_fast.evaluate.tables import METRICS, Row
from swiftvideo_fast.models import weights
from swiftvideo_fast.train.loop import AVERAGE, train

CONFIGS = Path(__file__).parents[1] / "configs/demo"
STEPS = {"teacher": TEACHER_STEPS} | dict.fromkeys((*STAGES, FULL, *ALIGNED), STUDENT_STEPS)
STEPS |= dict.fromkeys((UNJUDGED, *VARIANTS), VARIANT_STEPS)


@pytest.fixture
def result() -> Seed:
    """Figures that count up, so that each is another."""
    places = [(name, n) for name, steps in STEPS.items() for n in steps]
    rows = {place: {key: 1.0 + i for key in METRICS} for i, place in enumerate(places)}
    pixels = dict.fromkeys([*places, ("real", 0)], torch.zeros(SHOWN, 3, 5, 8, 8))
    keys = ["loss", "tangent", "dF_dt", "win_diff", "accuracy", "discriminator", "gradient/ratio"]
    keys += [f"held out/{kind} on {side}" for kind in ("spatial", "temporal") for side in ("real", "fake")]
    logs = dict.fromkeys(STEPS, [{"step": step} | dict.fromkeys(keys, 0.5) for step in (10, 20)])
    progress = {name: {20: 5.0, 40: 4.0} for name in (ALIGNED[0], *VARIANTS)}
    return Seed(["a clip"] * SHOWN, "filters", logs, rows, pixels, progress)


def rows_of(result: Seed) -> list[Row]:
    return [Row(name, steps, {key: [x] for key, x in found.items()})
            for (name, steps), found in result.rows.items()]


def test_each_run_starts_from_the_student_before_it(tmp_path):
    runs = dict(students(tmp_path, CONFIGS, seed=3, overrides=[]))
    assert [*runs] == [*STAGES, UNJUDGED, FULL, *ALIGNED, *VARIANTS]
    assert all(cfg.run.seed == 3 for cfg in runs.values())
    assert len({cfg.run.dir for cfg in runs.values()}) == len(runs)
    chain = [*STAGES, *ALIGNED]
    for before, after in zip(chain, chain[1:], strict=False):
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
    assert tried == {"DPO alone": {"objective.reflow"} | pairs, "reflow alone": {"objective.beta"} | pairs,
                     "real winners": {"objective.winner", "run.dir"}}
    assert runs["DPO alone"].objective.pairs == f"{runs[ALIGNED[0]].run.dir}/pairs"


class Fake:
    """A crew of threads, so that a test can watch it."""

    def __init__(self, workers, context, begin):
        self.pool = ThreadPoolExecutor(4)

    def __enter__(self):
        return self.pool

    def __exit__(self, *why):
        self.pool.shutdown()


def test_a_run_waits_for_those_it_starts_from_and_for_no_others(tmp_path, monkeypatch):
    runs = dict(students(tmp_path, CONFIGS, seed=0, overrides=[]))
    names = {cfg.run.dir: name for name, cfg in runs.items()}
    before = {name: {other for other in runs if crew.starts_from(runs[name], runs[other])} for name in runs}
    first, second = ALIGNED
    assert before == {"CCD": set(), LAST: {"CCD"}, UNJUDGED: {"CCD"}, FULL: set(), first: {LAST},
                      second: {first}, "DPO alone": {LAST, first}, "reflow alone": {LAST, first},
                      "real winners": {LAST}}

    done = []

    def finish(cfg) -> None:
        assert before[names[cfg.run.dir]] <= set(done)
        done.append(names[cfg.run.dir])

    monkeypatch.setattr(crew, "ProcessPoolExecutor", Fake)
    monkeypatch.setattr(crew, "finish", finish)
    crew.train_all([*runs.values()])
    assert sorted(done) == sorted(runs)


def test_the_first_error_of_a_run_ends_the_crew(tmp_path, monkeypatch):
    def finish(cfg) -> None:
        started.append(cfg.run.dir)
        raise ValueError("no such teacher")

    started = []
    runs = dict(students(tmp_path, CONFIGS, seed=0, overrides=[]))
    monkeypatch.setattr(crew, "ProcessPoolExecutor", Fake)
    monkeypatch.setattr(crew, "finish", finish)
    with pytest.raises(ValueError, match="no such teacher"):
        crew.train_all([*runs.values()])
    assert set(started) <= {runs["CCD"].run.dir, runs[FULL].run.dir}


def test_a_crew_of_processes_trains_to_the_same_bits_as_the_loop(inputs, tmp_path):
    """On the real clips: what a test patches does not reach another process."""
    cfg = tiny.config(inputs, "ccd", run=str(tmp_path / "beside"))
    cfg = replace(cfg, data=replace(cfg.data, pool=4), run=replace(cfg.run, steps=2))
    crew.train_all([cfg])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = train(replace(cfg, run=replace(cfg.run, dir=str(tmp_path / "alone"))))
    finally:
        torch.set_num_threads(threads)
    ours, theirs = (weights.read(run / AVERAGE)[0] for run in (tmp_path / "beside", alone))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_tables_have_the_papers_layouts(result):
    methods, added, rounds = page.tables(rows_of(result), clips=256)
    assert [(row[0], row[1]) for row in methods.rows[:6]] == [
        *(("teacher", str(n)) for n in TEACHER_STEPS), ("CCD", "8")]
    assert not {row[0] for row in methods.rows} & {UNJUDGED, *VARIANTS}
    settings = [row[1] for row in added.rows]
    assert settings == ["CCD", UNJUDGED, LAST, LAST, ALIGNED[0], ALIGNED[0], *VARIANTS]
    assert [row[-1] for row in added.rows if row[1] == "CCD"][0] == "172.54"
    assert [row[1] for row in rounds.rows] == [UNJUDGED, LAST, LAST, *ALIGNED]


def test_ratios_in_the_second_table_are_to_the_first_of_their_group(result):
    _, added, _ = page.tables(rows_of(result), clips=256)
    by = {place: found["frechet"] for place, found in result.rows.items()}
    aligned = next(row for row in added.rows if row[1] == ALIGNED[0])
    assert aligned[2].remark == f"×{by[ALIGNED[0], 4] / by[LAST, 4]:.2f}"
    assert next(row for row in added.rows if row[1] == LAST and row[0])[2].remark == ""


def test_the_page_shows_figures_6_and_8_and_the_samples(result):
    html = render(page.TITLE, page.sections([result, result], rows_of(result), clips=256))
    for said in ("2 seeds in all", "looks through filters", "temporal heads, fake", "DPO alone from 5 to 4",
                 "Frechet distance at 4 steps", "Win Diff", f"{ALIGNED[1]}, 2", "FVD in the paper"):
        assert said in html
