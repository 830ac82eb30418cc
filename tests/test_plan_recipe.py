"""Hours of the whole recipe, against a sum by hand."""

import json

import pytest

from swiftvideo_fast import cli, plan_recipe

PARTS = {"step": {"ms": 3000.0}, "one forward": {"ms": 500.0}, "da": {"ms": 4000.0}, "ta": {"ms": 2000.0}}


def record(tmp_path, **parts):
    path = tmp_path / "gpu.json"
    steps = {"measured": "a day", "parts": PARTS | parts}
    path.write_text(json.dumps({"old": {"small": {}}, "a card": {"step": {"wan_1_3b": steps}}}))
    return path


@pytest.mark.parametrize("gpus, batch, hours", [
    (1, 1, (3000 * 4 + 10000 * 6 + 4000 * 2) / 3600),
    (8, 1, (3000 * 4 + 1250 * 6 + 4000 * 2) / 3600),            # one clip per step: only pairs are split
    (8, 16, (3000 * 2 * 4 + 1250 * 6 + 4000 * 2 * 2) / 3600),
])
def test_hours_are_counts_times_seconds_shared_by_the_gpus(tmp_path, gpus, batch, hours):
    said = plan_recipe.report("1.3b", gpus, batch, record=record(tmp_path)).splitlines()
    assert said[0] == f"the recipe for 1.3b on {gpus} x a card, {batch} clips a step (a day)"
    assert float(said[-1].split()[0]) == pytest.approx(hours, abs=0.051)
    assert said[-1].endswith(f"{hours * gpus:.0f} GPU hours")


def test_what_is_not_measured_is_said(tmp_path):
    said = plan_recipe.report("1.3b", 1, record=record(tmp_path, ta={"out of memory": True}))
    assert "3.00 s each; TA is not measured on this card: CCD's step is counted" in said


def test_the_repositorys_own_record_serves(capsys):
    assert "H100" in plan_recipe.report("1.3b", 8)
    argv = ["plan", "--preset", "1.3b", "--gpus", "8"]
    cli.main(argv)
    plain = capsys.readouterr().out
    cli.main([*argv, "--recipe"])
    assert capsys.readouterr().out == plain + plan_recipe.report("1.3b", 8) + "\n"


def test_a_record_without_what_is_wanted_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="plan --recipe: the record is .*; want bench/gpu.json"):
        plan_recipe.report("1.3b", 1, record=tmp_path / "none.json")
    with pytest.raises(ValueError, match="card is 'a carb'; want one of .*'a card'"):
        plan_recipe.report("1.3b", 1, card="a carb", record=record(tmp_path))
    with pytest.raises(ValueError, match="--preset is 14b; want 1.3b"):
        plan_recipe.report("14b", 1, record=record(tmp_path))
    with pytest.raises(ValueError, match="the record is without 'step'"):
        plan_recipe.report("1.3b", 1, record=record(tmp_path, step={}))
