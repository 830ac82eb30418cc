"""Config errors: key, found, wanted."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from swiftvideo_fast import config
from swiftvideo_fast.config import shipped, strict, to_dict
from swiftvideo_fast.data.crops import CropOptions
from swiftvideo_fast.objectives.ccd import Ccd
from swiftvideo_fast.objectives.da import Da
from swiftvideo_fast.train.recipe import TABLES

load, from_dict = TABLES.load, TABLES.from_dict
NAMES = [*TABLES.objectives]

SHIPPED = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))
LEAST = """
run: {dir: runs/x, steps: 10}
model: {family: toy, weights: teacher.safetensors, codec: codec.safetensors}
data: {name: crops}
objective: {name: ccd}
optim: {lr: 1e-3}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(LEAST)
    return path


def error(file, *overrides: str) -> str:
    with pytest.raises(ValueError) as raised:
        load(file, list(overrides))
    message = str(raised.value)
    assert message.startswith(f"{file}: ") and "\n" not in message
    return message.removeprefix(f"{file}: ")


def test_defaults_fill_what_the_file_leaves_out(file):
    cfg = load(file)
    assert cfg.optim.lr == 1e-3             # YAML loads it as text
    assert isinstance(cfg.objective, Ccd) and cfg.objective.norm == "l2"
    assert cfg.data == CropOptions()


def test_overrides_win_over_the_file(file):
    cfg = load(file, ["optim.lr=2", "optim.betas=[0.8, 0.9]", "sample.sampler=consistency", "run.dir=a=b"])
    assert (cfg.optim.lr, cfg.optim.betas) == (2.0, (0.8, 0.9))
    assert (cfg.sample.sampler, cfg.run.dir) == ("consistency", "a=b")


def test_an_empty_override_takes_a_value_away(file):
    cfg = load(file, ["objective={name: flow}", "model.weights=", "model.preset=tiny"])
    assert cfg.model.weights is None and cfg.model.preset == "tiny"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_every_shipped_config_loads_and_survives_the_round_trip(path):
    def built(tree: dict):
        return config.from_dict(tree, TABLES.plugs())       # without the checks that look into data folders

    cfg = built(config.read(path))
    assert built(to_dict(cfg)) == cfg
    assert built(yaml.safe_load(yaml.safe_dump(to_dict(cfg)))) == cfg


@pytest.mark.parametrize("override, meant", [
    ("optim.lrr=1", "optim.lr"),
    ("run.step=1", "run.steps"),
    ("objective.guidence=2", "objective.guidance"),
    ("data.hieght=2", "data.height"),
    ("modl.codec=x", "model.codec"),
    ("lr=1", "optim.lr"),                   # the section omitted
    ("batch=1", "data.batch"),
    ("RUN.STEPS=5", "run.steps"),
    ("MODEL.PRESET=tiny", "model.preset"),
    ("modl={}", "model"),
])
def test_an_unknown_key_names_the_nearest_known_one(override, meant, file):
    found = error(file, override)
    assert found.startswith("unknown key ") and found.endswith(f"; the nearest known one is {meant}")


@pytest.mark.parametrize("override, wanted", [
    ("objective.name=cccd", f"one of {NAMES}, perhaps 'ccd'"),
    ("objective.name=7", "objective.name is 7; want one of"),
    ("objective.name=[ccd]", "objective.name is ['ccd']; want one of"),
    ("objective=flwo", f"objective.name is 'flwo'; want one of {NAMES}, perhaps 'flow'"),
    ("objective=flow", "objective is 'flow'; want a section with name: flow"),
    ("objective=", "objective.name is None; want one of"),
    ("objective.norm=L2", "perhaps 'l2'"),
    ("optim.schedule=cosin", "perhaps 'cosine'"),
    ("sample.sampler=eular", "perhaps 'euler'"),
])
def test_an_unknown_name_lists_the_known_ones(override, wanted, file):
    assert wanted in error(file, override)


@pytest.mark.parametrize("override, wanted", [
    ("run.steps=many", "run.steps is 'many' (str); want int"),
    ("run.steps=1.5", "run.steps is 1.5 (float); want int"),
    ("run.steps=true", "run.steps is True (bool); want int"),
    ("run.dir=3", "run.dir is 3 (int); want str"),
    ("optim.lr=fast", "optim.lr is 'fast' (str); want float"),
    ("optim.lr=.nan", "optim.lr is nan; want a finite number"),
    ("optim.lr=inf", "optim.lr is inf; want a finite number"),
    ("optim.lr=2024-01-01", "optim.lr is datetime.date(2024, 1, 1) (date); want float"),
    ("optim.lr=", "optim.lr is None (NoneType); want float"),
    ("optim.betas=0.9", "optim.betas is 0.9; want 2 values"),
    ("optim.betas=[0.9]", "optim.betas is [0.9]; want 2 values"),
    ("optim.betas=[0.9, x]", "optim.betas is 'x' (str); want float"),
    ("times.uniform=1", "times.uniform is 1 (int); want bool"),
    ("data=3", "data.name is 3; want one of"),
    ("sample=3", "sample is 3; want a section with keys"),
    ("times=[1, 2]", "times is [1, 2]; want a section with keys"),
    ("run=", "run is None; want a section with keys"),
])
def test_a_wrong_type_says_what_was_found_and_wanted(override, wanted, file):
    assert wanted in error(file, override)


@pytest.mark.parametrize("override, wanted", [
    *((f"{key}={bad}", "a positive number") for bad in (0, -1) for key in """run.steps run.save_every
      run.log_every run.keep data.batch data.pool optim.lr optim.clip times.std sample.shift
      objective.c""".split()),
    *((f"{key}=-1", "0 or more") for key in
      "run.seed data.speed optim.warmup optim.weight_decay objective.warmup".split()),
    *((f"objective.r_max={bad}", "a number in [0, 1]") for bad in (-0.1, 1.1)),
    *((f"ema={bad}", "a number in [0, 1)") for bad in (-0.1, 1)),
    *((f"optim.betas={bad}", "two numbers in [0, 1)") for bad in ("[1, 0.9]", "[0.9, 1]", "[-0.1, 0.9]")),
    *((f"data.frames={bad}", "4n + 1, n > 0") for bad in (1, 16, -3, 0)),
    *((f"data.size={bad}", "positive multiples of 16") for bad in (0, -16, 20, 8)),
    ("model.family=won", "one of ['wan', 'toy'], perhaps 'wan'"),
    ("data.height=63", "at least data.size = 64"),
    ("run.dir=''", "a folder"),
    ("run.dir=~/run", "a folder without ~ or $"),
    ("run.steps=2000000000", "a positive number, at most a billion"),
    ("objective.guidance=-3", "0 or more"),
    ("sample.guidance=-3", "0 or more"),
    ("model.preset=tiny", "exactly one of the two"),
    ("model.weights=", "exactly one of the two"),
])
def test_a_value_out_of_its_limits_names_the_key(override, wanted, file):
    found = error(file, override)
    key = override.partition("=")[0]
    assert found.startswith((f"{key} is ", "model is ")) and f"want {wanted}" in found


@pytest.mark.parametrize("objective, wanted", [
    ("{name: flow, drop_text: 1.5}", "objective.drop_text is 1.5; want a number in [0, 1]"),
    ("{name: flow, drop_text: -0.5}", "objective.drop_text is -0.5; want a number in [0, 1]"),
    ("{name: dcd, grid: 0}", "objective.grid is 0; want a positive number"),
    ("{name: dcd, warmup: 3}", "unknown key objective.warmup of dcd; the nearest known one is objective."),
])
def test_each_objective_has_its_own_limits(objective, wanted, file):
    assert wanted in error(file, f"objective={objective}")


def test_a_distillation_needs_its_teacher(file):
    found = error(file, "model.weights=", "model.preset=tiny")
    assert "model.weights is None; want a file: ccd distils the teacher in it" in found


@pytest.mark.parametrize("override, wanted", [
    *((f"da={{{key}: {bad}}}", f"da.{key} is {bad}; want a positive number") for key, bad in
      (("lr", 0.0), ("window", 0))),
    *((f"da={{{key}: -1}}", f"da.{key} is -1") for key in ("start", "lead", "watch")),
    ("da={start: 2, lead: 3}", "da.lead is 3; want at most da.start, 2: the last steps before it"),
    ("da={weight: -0.5}", "da.weight is -0.5; want 0 or more"),
    ("da={crop: 8}", "da.crop is 8; want 16 pixels or more"),
    ("da={crop: 65}", "da.crop is 65; want at most 64, the shorter side of a frame"),
    ("da={window: 6}", "da.window is 6; want at most the 5 latent frames of a clip"),
    ("da={wieght: 1}", "unknown key da.wieght; the nearest known one is da.weight"),
    ("da=3", "da is 3; want a section with keys"),
])
def test_an_adversary_has_limits(override, wanted, file):
    assert error(file, override).startswith(wanted)


def test_an_adversary_wants_a_consistency_objective(file):
    found = error(file, "da={crop: 64}", "objective={name: flow}")
    assert found == "da is a section; want none with flow: DA needs a consistency objective"
    assert load(file, ["da={crop: 64}", "objective={name: dcd}"]).da == Da(crop=64)
    assert load(file).da is None


def test_a_network_from_scratch_starts_at_no_student(file):
    model = "model={family: toy, codec: c, preset: tiny, student: ccd.safetensors}"
    found = error(file, "objective={name: flow}", model)
    assert found.startswith("model.student is 'ccd.safetensors'; want none without model.weights")


@pytest.mark.parametrize("key", "run.dir run.steps optim.lr run model objective optim data".split())
def test_a_missing_key_is_named(key, file):
    tree = yaml.safe_load(LEAST)
    section, _, name = key.partition(".")
    del (tree[section] if name else tree)[name or section]
    file.write_text(yaml.safe_dump(tree))
    assert error(file) == f"missing key {key}"


@pytest.mark.parametrize("override", ["optim.lr", "=3", "optim.=3", ".lr=3", "optim..lr=3"])
def test_an_override_has_a_key_and_a_value(override, file):
    assert error(file, override) == f"override {override!r}; want key.subkey=value"


def test_an_override_of_what_is_no_section_says_so(file):
    assert error(file, "optim.lr.x=3") == "override 'optim.lr.x=3': lr is '1e-3'; want a section"


def test_an_override_that_is_not_yaml_says_so(file):
    assert "override 'optim.betas=[0.9': the value is not YAML" in error(file, "optim.betas=[0.9")


@pytest.mark.parametrize("raw, wanted", [
    (b"", "'times', 'sample', 'engine'], found"),
    (b"just words", "found str"),
    (b"- a\n- b", "found list"),
    (b"run: {", "not YAML"),
    (b"\x00\x01", "not YAML"),
    (b"\xff\xfe\xfa", "not YAML"),
])
def test_a_file_that_is_no_config_says_so(raw, wanted, file):
    file.write_bytes(raw)
    assert wanted in error(file)


def test_a_key_that_stands_twice_is_an_error(file):
    file.write_text(LEAST + "run: {dir: elsewhere, steps: 3}\n")
    assert "the key 'run' is given twice" in error(file)
    file.write_text(LEAST.replace("steps: 10", "steps: 10, steps: 20"))
    assert "the key 'steps' is given twice" in error(file)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    assert error(tmp_path / "none.yaml").startswith("no such config; shipped are demo/ccd-full.yaml, demo/")
    assert error(tmp_path) == "not readable (Is a directory)"


def test_a_base_is_what_a_file_does_not_say_itself(tmp_path):
    (tmp_path / "base.yaml").write_text(LEAST + "da: {start: 5}\n")
    file = tmp_path / "deep/run.yaml"
    file.parent.mkdir()
    file.write_text("base: ../base.yaml\nrun: {steps: 7}\nobjective: {c: 0.2}\nda:\nema: 0.5\n")
    cfg = load(file, ["run.seed=3"])
    assert (cfg.run.dir, cfg.run.steps, cfg.run.seed) == ("runs/x", 7, 3)
    assert (cfg.objective.c, cfg.ema, cfg.da, cfg.optim.lr) == (0.2, 0.5, None, 1e-3)
    file.write_text("base: nowhere.yaml\n")
    for base, wanted in (("nowhere.yaml", "nowhere.yaml: no such config"), (3, "base is 3; want the path of"),
                         ("run.yaml", "base is run.yaml; want a config without base")):
        file.write_text(f"base: {base}\n")
        with pytest.raises(ValueError, match=wanted):
            load(file)


@pytest.mark.parametrize("name", ["demo/ccd.yaml", "configs/demo/ccd.yaml"])
def test_a_shipped_config_and_its_weights_are_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = config.read(name)["model"]
    assert all(Path(model[key]).is_file() and Path(model[key]).is_absolute() for key in ("weights", "codec"))
    assert config.read(name, ["model.codec=mine"])["model"]["codec"] == "mine"
    Path("configs/demo").mkdir(parents=True)
    Path("configs/demo/teacher.safetensors").touch()                # local files take precedence
    assert config.read(name)["model"]["weights"] == "configs/demo/teacher.safetensors"


@pytest.mark.parametrize("name", ["../pyproject.toml", "configs/../setup.py", "demo", "", "x" * 5000, "a\0b"])
def test_what_is_not_shipped_is_not_found(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.find(name) is None or name == ""


def test_differences_are_listed_by_key(file):
    old, new = to_dict(load(file)), to_dict(load(file, ["optim.lr=2e-3", "objective.c=0.5"]))
    assert config.differences(old, old) == []
    assert config.differences(old, new) == ["objective.c: 0.1 -> 0.5", "optim.lr: 0.001 -> 0.002"]


KEYS = """run run.dir run.steps model.preset objective objective.name objective.c data.size optim.lr
optim.betas ema no.such .""".split()
VALUES = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
          | st.lists(st.floats(), max_size=2))


@given(st.lists(st.tuples(st.sampled_from(KEYS), VALUES), min_size=1, max_size=3))
def test_any_override_gives_a_sound_config_or_one_valueerror(pairs):
    tree = yaml.safe_load(LEAST)
    try:
        for key, value in pairs:
            strict.override(tree, f"{key}={yaml.safe_dump(value)}")
        cfg = from_dict(tree)
    except ValueError:
        return
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(cfg)))) == cfg
