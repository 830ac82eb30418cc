"""Health checks raise an alarm for a collapse, and none where there is none."""

from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from swiftvideo_fast.config import to_dict
from swiftvideo_fast.objectives.base import AVERAGE
from swiftvideo_fast.train import recipe
from swiftvideo_fast.train.health import alarms, compare, contact_sheet
from swiftvideo_fast.train.log import read_log


@pytest.fixture
def real(rng) -> torch.Tensor:
    return torch.rand(2, 3, 5, 16, 16, generator=rng) * 2 - 1


COLLAPSES = {
    "hardly move": lambda real: real[:, :, :1].expand_as(real) + 0.01 * real,
    "one colour": lambda real: 0.1 + 0.2 * real,
    "not those that were given": lambda real: real.flip(2, 3),
}


@pytest.mark.parametrize("words", COLLAPSES)
def test_a_collapse_has_its_alarm(words, real):
    said = alarms(compare(COLLAPSES[words](real), real))
    assert len(said) == 1 and words in said[0]


def test_clips_like_the_real_ones_have_none(real, rng):
    figures = compare(real + 0.05 * torch.randn(real.shape, generator=rng), real)
    assert alarms(figures) == [] and figures["motion"] == pytest.approx(1, abs=0.1)


def test_clips_that_are_no_numbers_have_every_alarm(real):
    assert len(alarms(compare(real * float("nan"), real))) == 3


def test_strips_are_a_row_a_clip_and_three_frames_a_network(real):
    image = contact_sheet({"real": real, "student": -real})
    assert image.shape == (3, 2 * 16, 6 * 16)
    assert torch.allclose(image[:, 16:, 16:32], (real[1, :, 2] + 1) / 2)
    assert torch.allclose(image[:, :16, 80:], (1 - real[0, :, -1]) / 2)


@pytest.mark.filterwarnings("ignore:.*step")
def test_a_watched_run_shows_its_samples_and_logs_what_they_are_like(tmp_path):
    tiny.write_inputs(tmp_path)
    tree = to_dict(tiny.config(tmp_path, "ccd"))
    tree["run"]["watch_every"] = 3
    run = recipe.train(tiny.TABLES.from_dict(tree), tiny.TABLES)
    assert [file.name for file in sorted((run / "samples").iterdir())] == ["step-00000003.png",
                                                                           "step-00000006.png"]
    size = 4 * 3 * tiny.SIZE, recipe.SHOWN * tiny.SIZE
    assert Image.open(run / "samples/step-00000006.png").size == size
    log = read_log(run)
    assert ["average motion" in line for line in log] == [False, False, True, False, False, True]
    assert log[2]["teacher contrast"] == log[5]["teacher contrast"]
    assert Path(run / recipe.FILES[AVERAGE]).exists()
