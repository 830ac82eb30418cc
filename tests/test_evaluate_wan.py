"""`swiftvideo evaluate` of Wan students, on encoded shards."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import released
import synthetic
import torch

pytest.importorskip("pyarrow")

from swiftvideo_fast import cli  # noqa: E402
from swiftvideo_fast.config import to_dict  # noqa: E402
from swiftvideo_fast.evaluate import clips, models  # noqa: E402
from swiftvideo_fast.models import weights  # noqa: E402
from swiftvideo_fast.release.find import Sampling, write_sampling  # noqa: E402
from swiftvideo_fast.train.recipe import TABLES  # noqa: E402

CLIPS, COUNT = 12, 5


@pytest.fixture(scope="module", autouse=True)
def few():
    """Permits small sets, in small batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clips, "LEAST", COUNT)
        patch.setattr(clips, "BATCH", 8)
        yield


def main(*arguments: object) -> int:
    return cli.main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Returns a folder with a tiny released model, `base`, and CLIPS encoded clips in `latents`."""
    place = tmp_path_factory.mktemp("wan")
    released.write(place / "base", "original")
    released.write_encoders(place / "base", "original")
    first = synthetic.write_video(place / "clips/0.mp4", "libx264", synthetic.constant(24, 60))
    for number in range(1, CLIPS):
        shutil.copy(first, place / f"clips/{number}.mp4")
    rows = [f'{number}.mp4,"a red ball, the {number}th"' for number in range(CLIPS)]
    (place / "a.csv").write_text("\n".join(["video,caption", *rows]) + "\n")
    assert main("index", place / "clips", "--captions", place / "a.csv", "--out", place / "i.parquet",
                "--workers", 1) == 0
    assert main("encode", place / "i.parquet", "--out", place / "latents", "--codec", place / "base",
                "--frames", 9, "--rate", 8, "--size", "32x32") == 0
    return place


def student(place: Path, name: str, held_out: int = COUNT, seed: int = 1, folder: str = "latents") -> Path:
    """Returns the folder of a finished run of configs/wan/ccd.yaml, without training."""
    cfg = TABLES.load("configs/wan/ccd.yaml", [
        f"run.dir={place / name}", f"model.weights={place}/base", f"data.folder={place / folder}",
        f"data.held_out={held_out}"])
    (place / name).mkdir()
    (place / name / "config.yaml").write_text("{}")
    net = released.randomised(released.network(), seed, 0.02)
    weights.save(net, place / name / "average.safetensors", sample=asdict(cfg.sample), trained=to_dict(cfg))
    return place / name


def refusal(capsys, *arguments: object) -> str:
    assert main("evaluate", *arguments) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def run(place) -> Path:
    return student(place, "ccd")


def test_a_run_an_exported_student_and_the_teacher_on_the_clips_held_out(place, run, tmp_path, capsys):
    exported = released.write(place / "exported", "original")
    write_sampling(Sampling(shift=3.0), exported)
    words = "--models", run, exported, "--steps", 2, "--against", "teacher:3", "--count", COUNT
    assert main("evaluate", *words, "--out", tmp_path / "out") == 0
    assert "report: " in capsys.readouterr().out
    rows = json.loads((tmp_path / "out/figures.json").read_text())["rows"]
    assert [(row["name"], row["steps"], row["sampling"]) for row in rows] == [
        ("teacher", 3, {"sampler": "euler", "shift": 3.0, "guidance": 3.0}),
        ("ccd", 2, {"sampler": "euler", "shift": 3.0, "guidance": 1.0}),
        ("exported", 2, {"sampler": "euler", "shift": 3.0, "guidance": 1.0})]
    metrics = {"evaluations", "seconds", "trajectory", "detail", "motion", "psnr", "still", "flicker",
               "sharpness", "colour"}
    assert rows[1]["metrics"].keys() == metrics, "no Frechet distance without a net for clips of this size"
    assert [row["metrics"]["evaluations"]["mean"] for row in rows] == [6, 2, 2]
    files = sorted(f.name for f in (tmp_path / "out/ccd-2").iterdir())
    assert files[:2] == ["latents-00000.json", "latents-00000.safetensors"]
    assert len(files) == 3 and files[2].startswith("measured-")


def opened(runs: list[Path], count: int = COUNT, shards: Path | None = None) -> clips.HeldOut:
    files = [run / "average.safetensors" for run in runs]
    found = [models.Model(file.parent.name, file, file, None, models.trained_by(file, TABLES))
             for file in files]
    return clips.open_clips(found, "test", count, 0, shards, TABLES)[0]


def test_the_clips_are_the_held_out_ones_each_once_and_all_of_a_folder_named(place, run):
    held = opened([run])
    assert sorted(held[0].captions) == sorted(held.source.captions[held.source.first[row].text]
                                              for row in held.source.held["test"])
    assert len({*held[0].captions}) == COUNT and held.rng("x", 0)[3].initial_seed() != 0
    shutil.copytree(place / "latents", place / "others")
    whole = opened([run], CLIPS, place / "others")
    assert len(whole) == 2 and len(whole[0]) + len(whole[1]) == CLIPS
    assert len({*whole[0].captions, *whole[1].captions}) == CLIPS
    assert whole.about["shards"]["framing"]["rate"] == 8.0


def test_a_long_clip_is_a_batch_of_its_own(run, monkeypatch):
    monkeypatch.setattr(clips, "TOKENS", 20)            # 12 a clip
    held = opened([run])
    assert len(held) == COUNT and held.numbers(3) == range(3, 4)
    apart = torch.cat([held[k].x0 for k in range(COUNT)])
    monkeypatch.undo()
    assert torch.equal(apart, opened([run])[0].x0)


def test_clips_that_were_trained_on_are_refused_or_said(place, run, capsys, tmp_path):
    out = "--out", tmp_path / "out", "--dry-run", "--count"
    none, some = student(place, "none", held_out=0), student(place, "some", held_out=2)
    assert "none: its run held out no clips (data.held_out is 0)" in refusal(
        capsys, "--models", none, *out, COUNT)
    assert "--count 6, but 5 clips are held out; want at most 5" in refusal(
        capsys, "--models", run, *out, 6)
    shutil.copytree(place / "latents", place / "gone")
    elsewhere = student(place, "elsewhere", folder="gone")
    shutil.rmtree(place / "gone")
    assert "none was trained on these shards; want others" in refusal(
        capsys, "--models", elsewhere, none, "--data", place / "latents", *out, COUNT)
    assert f"{place}/base: no encode.json" in refusal(
        capsys, "--models", run, "--data", place / "base", *out, COUNT)
    assert main("evaluate", "--models", run, some, *out, COUNT) == 0
    assert "some was trained with data.held_out 2, not 5: the measured clips may be among" in \
        capsys.readouterr().out
    assert main("evaluate", "--models", run, elsewhere, *out, COUNT) == 0
    assert "held_out" not in capsys.readouterr().out


def test_a_base_model_is_no_student(place, run, capsys, tmp_path):
    found = refusal(capsys, "--models", run, place / "base", "--out", tmp_path / "out")
    assert "base: a base model, which --against teacher samples; want a student" in found
