"""New objectives, sources and families, each one class and one line, train and resume to the same bits."""

import random
from pathlib import Path

import launch
import plugs
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import everything

from swiftvideo_fast.config import to_dict
from swiftvideo_fast.train import checkpoint, recipe
from swiftvideo_fast.train.log import read_log

CHANGES = {
    "objective": {"objective": {"name": "chase"}},
    "source": {"data": {"name": "waves", "batch": 2}},
    "family": {"model": {"family": "bar", "weights": None, "preset": "short"}, "objective": {"name": "flow"}},
}


def config(inputs: Path, plug: str, run: str, **changes):
    tree = to_dict(tiny.config(inputs, "flow", run=run))
    for section, values in (CHANGES[plug] | changes).items():
        fresh = "name" in values and values["name"] != tree[section]["name"]
        tree[section] = ({} if fresh else tree[section]) | values
    return plugs.TABLES.from_dict(tree)


@pytest.fixture(scope="module")
def processes():
    return launch.server()


@pytest.mark.parametrize("plug", CHANGES)
@pytest.mark.parametrize("world", [0, 2])
def test_a_plug_of_ones_own_trains_and_resumes_to_the_same_bits(plug, world, inputs, processes):
    """world 0: one process without DeepSpeed."""
    engine = {"name": "zero3" if world else "plain", "micro": 1}
    cfg = config(inputs, plug, f"{plug}-{world}", engine=engine)
    run, count = Path(cfg.run.dir), max(world, 1)
    assert launch.Processes(processes, count, plugs.train, cfg).join(120) == [0] * count
    undisturbed = run.rename(f"{run}-undisturbed")
    launch.Processes(processes, count, plugs.train, cfg, random.Random(plug).randint(20, 50)).join(120)
    assert launch.Processes(processes, count, plugs.train, cfg).join(120) == [0] * count
    found, want = everything(run), everything(undisturbed)
    assert {name for name in want | found if found.get(name) != want.get(name)} == set()
    assert len(want) >= 5 + count
    assert all("lr" in line and "grad_norm" in line for line in read_log(run))


def test_a_second_network_moves_four_times_on_what_the_student_handed_it(inputs):
    cfg = config(inputs, "objective", "counted")
    run = recipe.train(cfg, plugs.TABLES)
    saved = checkpoint.last_good(run)
    assert [int(saved.read(f"{role}/steps", 0, 1)) for role in ("student", plugs.CHASER)] == [6, 24]
    log = read_log(run)
    assert all({"chaser/loss", "chaser/lr", "chaser/grad_norm"} <= {*line} for line in log)
    assert log[-1]["chaser/loss"] < log[0]["chaser/loss"]


def test_each_turn_draws_its_own(inputs):
    from types import SimpleNamespace

    from swiftvideo_fast.train.loop import MicroBatches

    run = recipe.build(config(inputs, "objective", "drawn"), plugs.TABLES)
    run.source = SimpleNamespace(draw=lambda *place: SimpleNamespace(to=lambda device: place[-1]))
    batches = MicroBatches(run, 3, keep=True)
    seen = [[(batch, rng.initial_seed()) for batch, rng in batches.of_turn(turn)] for turn in range(3)]
    assert [[batch for batch, _ in turn] for turn in seen] == 3 * [[6]]
    assert len({seed for turn in seen for _, seed in turn}) == 3


def test_a_gradient_of_inf_in_the_second_network_is_skipped_counted_and_ends_the_run(inputs):
    cfg = config(inputs, "objective", "exploding", objective={"name": "chase", "explode": 3, "moves": 1})
    with pytest.raises(FloatingPointError, match="chaser: at step 4 the loss is inf.* 1 steps before it"):
        recipe.train(cfg, plugs.TABLES)
    log = read_log(Path(cfg.run.dir))
    assert [line.get("chaser/skipped", 0) for line in log] == [0, 0, 0, 1]
    assert "skipped" not in log[-1], "the student's steps are sound"


def test_a_gradient_of_inf_in_the_critic_is_skipped_and_counted(inputs, monkeypatch):
    from swiftvideo_fast.objectives import da

    hinge = da.hinge
    monkeypatch.setattr(da, "hinge", lambda logits, sign: hinge(logits, sign) * (
        float("inf") if sign < 0 else 1.0))
    cfg = tiny.config(inputs, "da", run="critic", optim={"max_skips": 1})
    with pytest.raises(FloatingPointError, match="critic: at step 4 the loss is inf"):
        recipe.train(cfg, tiny.TABLES)
    assert read_log(Path(cfg.run.dir))[-1]["critic/skipped"] == 1


VALUES = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
          | st.lists(st.integers() | st.floats(), max_size=3)
          | st.dictionaries(st.text(max_size=3), st.none()))


def keys_of(tree: dict) -> list[tuple[str, str]]:
    return [(section, key) for section, values in tree.items() if isinstance(values, dict) for key in values]


@pytest.mark.parametrize("objective", [*tiny.RUNS, "chase"])
@settings(max_examples=60)
@given(data=st.data())
def test_a_random_tree_builds_or_raises_one_error_that_names_the_key(objective, data, tmp_path_factory):
    folder = Path("inputs")
    tree = to_dict(config(folder, "objective", "any") if objective == "chase"
                   else tiny.config(folder, objective, run="any"))
    for _ in range(data.draw(st.integers(1, 3))):
        section, key = data.draw(st.sampled_from(keys_of(tree)))
        how = data.draw(st.sampled_from(["value", "missing", "unknown", "section"]))
        value = data.draw(VALUES)
        if not isinstance(tree.get(section), dict):
            continue
        if how == "value":
            tree[section][key] = value
        elif how == "missing":
            tree[section].pop(key, None)
        elif how == "unknown":
            tree[section][f"{key}x"] = value
        else:
            tree[section] = value
    try:
        cfg = plugs.TABLES.from_dict(tree)
    except ValueError as why:
        said = str(why)
        named = {section for section, _ in keys_of(to_dict(tiny.config(folder, "da", run="any")))} | {"ema"}
        assert "\n" not in said and any(section in said for section in named), said
    else:
        assert plugs.TABLES.from_dict(to_dict(cfg)) == cfg
