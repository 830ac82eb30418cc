"""The command line of `swiftvideo evaluate`: the models it accepts, and the guidance of their teacher."""

import re
import shlex
from pathlib import Path

import pytest
import tiny
from test_evaluate import main, refusal, student

from swiftvideo_fast import cli
from swiftvideo_fast.config import Sample
from swiftvideo_fast.evaluate import models
from swiftvideo_fast.models import weights


@pytest.fixture(scope="module")
def ccd(inputs) -> Path:
    return student(inputs)


# --- the teacher and its guidance ------------------------------------------------------------------------


def teacher_of(run: Path, guidance: float | None = None) -> models.Model:
    cfg = models.trained_by(run / "average.safetensors", tiny.TABLES)
    return models.teacher([models.Model("x", run, run, cfg.sample, cfg)], guidance, tiny.TABLES)


def test_an_aligned_student_has_the_guidance_of_the_run_it_started_from(inputs):
    first = student(inputs, "ccd", name="at 1.5", options={"guidance": 1.5}, sample={"shift": 3.0})
    aligned = student(inputs, "ta", model={"student": f"{first}/average.safetensors"}, sample={"shift": 3.0})
    twice = student(inputs, "ta", name="twice", model={"student": f"{aligned}/average.safetensors"})
    assert teacher_of(aligned).sampling == Sample(shift=3.0, guidance=1.5)
    assert teacher_of(twice).sampling == Sample(guidance=1.5)
    assert teacher_of(twice, 2.0).sampling.guidance == 2.0
    assert teacher_of(first).weights == inputs / "teacher.safetensors"


def test_a_guidance_that_nobody_says_is_asked_for(inputs, capsys, tmp_path):
    out = "--out", tmp_path / "out", "--count", 16
    alone = student(inputs, "ta", name="alone")
    assert "alone: its objective, ta, has no teacher guidance, nor has a run that it started from" in \
        refusal(capsys, "--models", alone, *out)
    gone = student(inputs, "ta", name="gone", model={"student": "nowhere.safetensors"})
    assert "(nowhere.safetensors); want --guidance" in refusal(capsys, "--models", gone, *out)
    blind = student(inputs, "osv", name="blind")
    found = refusal(capsys, "--models", blind, *out)
    assert "osv, has no teacher guidance" in found, "its guidance is of the image, not of the text"
    scratch = student(inputs, "flow", name="scratch", model={"weights": None, "preset": "tiny"})
    assert "scratch: its run was trained from scratch, without a teacher" in refusal(
        capsys, "--models", scratch, *out)
    assert main("--models", alone, "--guidance", 2, *out, "--dry-run") == 0
    assert "teacher: 25 steps by euler, shift 1, guidance 2" in capsys.readouterr().out
    assert main("--models", scratch, "--against", "none", *out, "--dry-run") == 0
    assert "teacher" not in capsys.readouterr().out.replace("teacher.safetensors", "")
    assert not (tmp_path / "out").exists()


def test_what_a_reader_must_know_is_said(inputs, ccd, tmp_path, capsys):
    other = student(inputs, "ccd", name="other", options={"guidance": 1.5})
    weights.save(tiny.network(9), inputs / "another.safetensors")
    third = student(inputs, "ccd", name="third", model={"weights": str(inputs / "another.safetensors")})
    assert main("--models", ccd, other, third, "--count", 16, "--out", tmp_path, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "other was distilled at guidance 1.5; the teacher is shown at 3." in said
    assert f"third was distilled from {inputs}/another.safetensors; the teacher shown is {inputs}/t" in said


# --- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, why", [
    (["--models", "ccd", "--against", "techer:25"], "--against: 'techer:25'; want teacher:25,8,4, or none"),
    (["--models", "ccd", "--against", "teacher:25,0"], "'teacher:25,0'; want teacher:25,8,4, or none"),
    (["--models", "ccd", "--against", "teacher"], "'teacher'; want teacher:25,8,4, or none"),
    (["--models", "teacher=runs/ccd"], "'teacher=runs/ccd'; want a run's folder or weight file"),
    (["--models", "=runs/ccd"], "'=runs/ccd'; want a run's folder"),
    (["--models", "ccd="], "'ccd='; want a run's folder"),
    (["--models", "a", "--steps", "0"], "--steps: '0'; want a positive number"),
    (["--models", "a", "--guidance", "nan"], "--guidance: 'nan'; want a number, 0 or more"),
    (["--models", "a", "--guidance", "-3"], "--guidance: '-3'; want a number, 0 or more"),
    (["--models", "a", "--fvd", "i4d=x.pt"], "'i4d=x.pt'; want i3d=PATH or videomae=PATH, a file of weights"),
    (["--models", "a", "--fvd", "i3d="], "'i3d='; want i3d=PATH or videomae=PATH"),
    ([], "required: --models"),
])
def test_a_wrong_command_line_is_told_apart(arguments, why, capsys):
    with pytest.raises(SystemExit) as end:
        main(*arguments)
    assert end.value.code == 2 and why in capsys.readouterr().err


@pytest.mark.parametrize("path, name", [
    ("runs/demo/ccd", "ccd"), ("runs/demo/ccd/", "ccd"), ("runs/ta/4-2/average.safetensors", "4-2"),
    ("runs/ccd/student.safetensors", "ccd-student"), ("lr=1=runs/a", "lr"), ("runs/lr=1e-3", None),
    ("my run=runs/lr=1e-3", "my run"), ("runs/v1.5", "v1.5"),
])
def test_a_model_is_named_by_its_folder_unless_it_is_given_a_name(path, name):
    if name is None:
        with pytest.raises(Exception, match="want a run's folder"):
            models.model_argument(path)
    else:
        assert models.model_argument(path).name == name


def test_models_that_cannot_be_compared_are_one_line(inputs, ccd, capsys, tmp_path):
    out = "--out", tmp_path / "out"
    assert "--count 1; want at least 16 clips" in refusal(capsys, "--models", ccd, "--count", 1, *out)
    assert "--count 2; want at least 16 clips" in refusal(capsys, "--models", ccd, "--count", 2, *out)
    assert "--models: none: no such run or weight file" in refusal(capsys, "--models", "none", *out)
    assert f"two are named ccd; name one, as in other={ccd}" in refusal(capsys, "--models", ccd, ccd, *out)
    bare = tmp_path / "bare.safetensors"
    weights.save(tiny.network(), bare)
    assert "has no training config" in refusal(capsys, "--models", bare, ccd, *out)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((ccd / "average.safetensors").read_bytes()[:1000])
    assert f"{damaged}: damaged" in refusal(capsys, "--models", ccd, damaged, *out)
    codec = tmp_path / "codec.safetensors"
    tiny.fit_codec(tiny.CropSource(tiny.clips(), "train", frames=5, size=16), seed=1, count=32).save(codec)
    other = student(inputs, "ccd", name="other codec", model={"codec": str(codec)})
    assert "other codec: its codec (" in refusal(capsys, "--models", ccd, other, *out)
    gone = student(inputs, "ccd", name="no teacher", model={"weights": "gone.safetensors"})
    assert "gone.safetensors: no such file" in refusal(capsys, "--models", gone, *out)
    assert not (tmp_path / "out").exists()


def test_the_commands_of_the_page_are_taken():
    page = (Path(__file__).parents[1] / "docs/evaluate.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^    (?:swiftvideo|torchrun .* swiftvideo_fast) (evaluate .*)$", page, re.M)
    assert len(commands) == 2
    for command in commands:
        args = cli.parser().parse_args(shlex.split(command))
        assert args.steps == [4, 2] and args.against == (25, 8, 4) and len(args.models) == 3
