"""docs/config.md is up to date; the shipped configs fit their GPUs and have the paper's values."""

import dataclasses

import pytest

from swiftvideo_fast import config, reference
from swiftvideo_fast.config import shipped, to_dict
from swiftvideo_fast.config.strict import flatten
from swiftvideo_fast.plan import USABLE
from swiftvideo_fast.train.recipe import TABLES

WAN = [name for name in shipped.configs() if name.startswith("wan/")]


def tree(name: str) -> dict:
    return flatten(to_dict(config.from_dict(config.read(name), TABLES.plugs())))


def test_the_page_is_what_the_code_says():
    assert reference.PAGE.read_text() == reference.page(), "run `python -m swiftvideo_fast.reference`"


def test_a_key_without_a_meaning_is_named():
    @dataclasses.dataclass
    class Options:
        """What it is.  lr: of the critic."""
        lr: float
        steps: int

    assert reference.meaning(Options, "lr") == "of the critic"
    with pytest.raises(ValueError, match="Options: no meaning of steps"):
        reference.meaning(Options, "steps")


def test_each_stage_and_baseline_has_a_config_of_each_size():
    small, large = ({name.removeprefix(folder) for name in WAN if name.startswith(folder)} - {"14b"}
                    for folder in ("wan/", "wan/14b/"))
    assert {name for name in small if "/" not in name} == large
    assert {tree(name)["objective.name"] for name in WAN} == set(TABLES.objectives) - {"flow"}


@pytest.mark.parametrize("name", WAN)
@pytest.mark.parametrize("nodes", [1, 4])
def test_it_fits_cards_of_80_gb(name, nodes):
    assert reference.memory(name, nodes) <= USABLE * reference.MEMORY * 1e9


@pytest.mark.parametrize("name", [name for name in WAN if "14b/" in name])
def test_14b_differs_from_1_3b_in_folders_and_in_how_it_is_spread(name):
    large, small = tree(name), tree(name.replace("14b/", ""))
    differs = {key for key in large if large[key] != small[key]}
    assert differs <= {"run.dir", "model.weights", "model.student", "model.recompute", "data.batch",
                       "engine.sequence", "engine.offload"}


@pytest.mark.parametrize("stage", ["ccd", "da", "ta"])
def test_the_stages_have_the_papers_values(stage):
    found = tree(f"wan/{stage}.yaml")
    begins_at_full_r = {"ccd.warmup": 0} if stage == "da" else {}       # stage one has warmed up
    for key, value in (reference.PAPER | begins_at_full_r).items():
        owner, _, name = key.partition(".")
        where = "objective" if owner == found["objective.name"] else owner
        if not isinstance(value, str) and f"{where}.{name}" in found:
            assert found[f"{where}.{name}"] == value, key
    assert sum(tree(f"wan/{each}.yaml")["run.steps"] for each in ("ccd", "da")) == 3000
    assert tree("wan/ta.yaml")["run.steps"] == 2000
