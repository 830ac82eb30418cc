"""Health checks: alarms on collapse, none otherwise."""

from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from swiftvideo_fast.config import to_dict
from swiftvideo_fast.data.shots import probe
from swiftvideo_fast.objectives.base import AVERAGE
from swiftvideo_fast.train import recipe
from swiftvideo_fast.train.health import alarms, compare
from swiftvideo_fast.train.log import read_log
from swiftvideo_fast.train.samples import FONT, LINE, NARROW, Samples


@pytest.fixture
def real(rng) -> torch.Tensor:
    return torch.rand(2, 3, 5, 16, 16, generator=rng) * 2 - 1


COLLAPSES = {
    "hardly move": lambda real: real[:, :, :1].expand_as(real) + 0.01 * real,
    "one colour": lambda real: 0.1 + 0.2 * real,
    "differ from the conditioning frames": lambda real: real.flip(2, 3),
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


def test_a_sheet_is_a_row_a_clip_and_three_frames_a_network_each_under_its_label(real):
    samples = Samples({"real": real, "student, 4 steps": -real}, ["a cat", "a dog " * 99])
    sheet = samples.sheet("run, step 3 of 6")
    assert sheet.shape == (2 * LINE + 2 * (LINE + NARROW), 2 * 3 * NARROW, 3)

    def cell(row: int, column: int) -> torch.Tensor:
        top, left = 2 * LINE + row * (LINE + NARROW) + LINE, column * NARROW
        shown = sheet[top:top + NARROW, left:left + NARROW][::NARROW // 16, ::NARROW // 16]
        return torch.from_numpy(shown.copy()).permute(2, 0, 1)

    def grey(x: torch.Tensor) -> torch.Tensor:
        return ((x + 1) * 127.5).round().byte()

    assert torch.equal(cell(1, 1), grey(real[1, :, 2])) and torch.equal(cell(0, 5), grey(-real[0, :, -1]))
    lines = [0, LINE, 2 * LINE, 2 * LINE + LINE + NARROW]           # title, heads, the two captions
    assert all((sheet[top:top + FONT] < 128).any() for top in lines)
    assert sheet[LINE:LINE + FONT, 3 * NARROW:].min() < 128, "each column has its head"
    film = samples.video("run, step 3")
    assert film.shape == (5, 2 * LINE + 2 * (LINE + NARROW), 2 * NARROW, 3)
    assert (film[1, 3 * LINE:, :NARROW] != film[0, 3 * LINE:, :NARROW]).any()


def test_clips_that_are_no_numbers_are_black_and_wide_ones_are_reduced():
    wide = torch.full((1, 3, 2, 120, 512), float("nan"))
    sheet = Samples({"real": wide}, ["a"]).sheet("")
    assert sheet.shape == (2 * LINE + LINE + 60, 3 * 256, 3) and not sheet[-60:].any()


@pytest.mark.filterwarnings("ignore:.*step")
@pytest.mark.parametrize("every, steps", [(3, [3, 6]), (None, [2, 4, 6]), (0, [])])
def test_a_run_shows_its_samples_and_logs_what_they_are_like(every, steps, tmp_path):
    tiny.write_inputs(tmp_path)
    tree = to_dict(tiny.config(tmp_path, "ccd"))
    tree["run"]["watch_every"] = every
    run = recipe.train(tiny.TABLES.from_dict(tree), tiny.TABLES)
    shown = [f"step-{step:08d}.{kind}" for step in steps for kind in ("mp4", "png")]
    assert sorted(file.name for file in run.glob("samples/*")) == shown
    log = read_log(run)
    assert [line["step"] for line in log if "average motion" in line] == steps
    if every != 3:
        return
    assert probe(run / "samples/step-00000006.mp4").width == 4 * NARROW
    size = 4 * 3 * NARROW, 2 * LINE + recipe.HELD_OUT * (LINE + NARROW)
    assert Image.open(run / "samples/step-00000006.png").size == size
    assert log[2]["teacher contrast"] == log[5]["teacher contrast"]
    assert Path(run / recipe.FILES[AVERAGE]).exists()
