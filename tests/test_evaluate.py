"""`swiftvideo evaluate`: the same clips and noise for each model, on any number of ranks, killed or not."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path

import launch
import pytest
import tiny
import torch
from safetensors.torch import load_file

from swiftvideo_fast import cli, sampler
from swiftvideo_fast.atomic import temporary_of
from swiftvideo_fast.config import Sample, to_dict
from swiftvideo_fast.metrics import published_nets
from swiftvideo_fast.metrics.benchmark import Benchmark
from swiftvideo_fast.models import weights
from swiftvideo_fast.seeds import generator
from swiftvideo_fast.train import recipe
from swiftvideo_fast.train.recipe import Parts

COUNT = 40              # two batches, the second of 8


def main(*arguments: object) -> int:
    return cli.main(["evaluate", *map(str, arguments)], tiny.TABLES)


def student(inputs: Path, kind: str = "ccd", seed: int = 1, name: str = "", options: dict | None = None,
            **changes: dict) -> Path:
    """Writes the folder of a finished run, without training it.  options: of the objective."""
    run = inputs / (name or kind)
    cfg = tiny.config(inputs, kind, run=str(run), **changes)
    cfg = replace(cfg, objective=replace(cfg.objective, **(options or {})))
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text("{}")
    net = tiny.network(seed)
    if kind == "flowmap":
        Parts(cfg, tiny.TABLES).family.add_second_time(net)
    weights.save(net, run / "average.safetensors", sample=asdict(cfg.sample), trained=to_dict(cfg))
    return run


@pytest.fixture(scope="module")
def ccd(inputs) -> Path:
    return student(inputs)


@pytest.fixture(scope="module")
def fresh(inputs) -> Path:
    """Writes an LCM run, whose sampler draws fresh noise."""
    return student(inputs, "lcm", seed=2, sample={"sampler": "consistency"})


@pytest.fixture(scope="module")
def words(ccd, fresh) -> list:
    """Returns the arguments of this module's evaluation, except --out."""
    return ["--models", ccd, f"lcm={fresh}/average.safetensors", "--steps", 4, 2, "--against", "teacher:5,2",
            "--count", COUNT]


@pytest.fixture(scope="module")
def done(words, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("evaluate") / "out"
    assert main(*words, "--out", out) == 0
    return out


def contents(out: Path) -> dict[str, bytes]:
    """Returns the bytes of every file except those that record seconds."""
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*.safetensors"))}


def figures(out: Path) -> list:
    rows = json.loads((out / "figures.json").read_text())["rows"]
    return [(row["name"], row["steps"], {name: of["mean"] for name, of in row["metrics"].items()
                                         if name != "seconds"}) for row in rows]


def refusal(capsys, *arguments: object) -> str:
    """Returns the one line on stderr of a command that exits with code 2."""
    assert main(*arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("swiftvideo evaluate: ") and err.count("\n") == 1 and not out
    return err


def test_a_row_a_sampler_with_figures_evaluations_and_a_page(done, words, capsys):
    assert main(*words, "--out", done) == 0             # nothing is missing: it only reads
    said = capsys.readouterr().out
    assert f"{COUNT} clips of the test split" in said and "are few" in said
    assert said.endswith(f"report: {done}/report.html\n")
    found = figures(done)
    assert [(name, steps) for name, steps, _ in found] == [
        ("teacher", 5), ("teacher", 2), ("ccd", 4), ("ccd", 2), ("lcm", 4), ("lcm", 2)]
    assert [row["evaluations"] for *_, row in found] == [10, 4, 4, 2, 4, 2]
    metrics = {"evaluations", "frechet", "frechet_random", "detail", "motion", "psnr", "still", "flicker",
               "sharpness", "colour"}
    assert [row.keys() ^ metrics for *_, row in found] == [set()] + 5 * [{"trajectory"}]
    page = (done / "report.html").read_text()
    shown = "teacher, 5 steps", "ccd, 4 steps", "lcm, 2 steps"
    assert all(f"{name}</figcaption>" in page for name in shown)
    assert page.count("<canvas") == 6 * (3 + 1 + 2 + 2)


def test_the_figures_are_those_of_the_benchmark(done, inputs, ccd, fresh):
    """Figures are the benchmark's, of these latents; latents are the sampler's, one noise per clip."""
    cfg = tiny.config(inputs, "ccd")
    parts = Parts(cfg, tiny.TABLES)
    clips = parts.clips.clips("test", COUNT, 0)
    bench = Benchmark(clips, parts.codec, 0)

    def latents(sampled: str):
        return torch.cat([load_file(done / sampled / f"latents-{k:05d}.safetensors")["z"] for k in (0, 1)])

    found = {(name, steps): row for name, steps, row in figures(done)}
    for sampled in ("teacher-2", "ccd-4", "lcm-2"):
        name, steps = sampled.split("-")
        row = found[name, int(steps)]
        want = bench.figures(latents(sampled), latents("teacher-5"))
        assert {name: row[name] for name in want} == pytest.approx(want, rel=1e-4), sampled

    net = weights.load(fresh / "average.safetensors")
    x1 = torch.cat([torch.randn(1, *clips.x0.shape[1:], generator=generator(0, "evaluate", i))
                    for i in range(COUNT)])
    rng = [generator(0, "fresh", i) for i in range(COUNT)]
    z = sampler.generate(lambda *inputs: parts.family.call(net, *inputs), x1, clips.condition, 2,
                         Sample("consistency"), rng)
    assert torch.allclose(latents("lcm-2"), z, atol=1e-5)
    alone = sampler.generate(lambda *inputs: parts.family.call(net, *inputs), x1[33:34],
                             clips.condition[33:34], 2, Sample("consistency"), [generator(0, "fresh", 33)])
    assert torch.allclose(latents("lcm-2")[33:34], alone, atol=1e-5)


def test_more_models_and_steps_are_added_and_nothing_is_made_again(done, words, inputs, tmp_path):
    out = Path(shutil.copytree(done, tmp_path / "out"))
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    own = student(inputs, "flowmap", seed=3, sample={"sampler": "flowmap"})
    assert main(*words[:3], own, *words[3:], "--steps", 4, 2, 1, "--out", out) == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert len(figures(out)) == 2 + 3 * 3
    same = {(name, steps): row for name, steps, row in figures(out)}
    assert all(same[name, steps] == row for name, steps, row in figures(done))


def test_a_run_that_goes_on_is_sampled_by_its_newest_checkpoint(inputs, ccd, words, capsys, tmp_path):
    cfg = tiny.config(inputs, "ccd", run=str(tmp_path / "run"))
    recipe.train(replace(cfg, run=replace(cfg.run, steps=2)), tiny.TABLES)
    words = "--models", tmp_path / "run", "--steps", 1, "--against", "none", "--count", 16
    assert main(*words, "--out", tmp_path / "ended") == 0
    (tmp_path / "run/average.safetensors").unlink()
    for _ in range(2):
        assert main(*words, "--out", tmp_path / "out") == 0
    assert figures(tmp_path / "out") == figures(tmp_path / "ended")
    assert json.loads((tmp_path / "out/figures.json").read_text())["rows"][0]["model"] == f"{tmp_path}/run"
    page = (tmp_path / "out/report.html").read_text()
    assert "teacher" not in re.sub("(?s)<details>.*</details>", "", page) and "times faster" not in page


def test_a_model_that_has_diverged_is_named(inputs, capsys, tmp_path):
    run = student(inputs, name="diverged")
    net = weights.load(run / "average.safetensors")
    net.head.head.weight.data[0] = torch.nan
    tree = json.loads(weights.Stored(run / "average.safetensors").header["about"])
    weights.save(net, run / "average.safetensors", **tree)
    assert main("--models", run, "--against", "none", "--count", 16, "--out", tmp_path / "out") == 2
    assert f"diverged-4: 16 of 16 clips are NaN or infinite: {run} has diverged" in capsys.readouterr().err
    assert not (tmp_path / "out/figures.json").exists()


def test_fvd_by_published_networks_of_the_frames_they_are_for(done, words, monkeypatch, tmp_path, capsys):
    seen = []

    def load(name: str, path: Path, device: torch.device) -> published_nets.Published:
        def extract(clips_BTHWC: torch.Tensor) -> torch.Tensor:
            seen.append((name, clips_BTHWC.dtype, tuple(clips_BTHWC.shape[1:])))
            return clips_BTHWC.float().mean((2, 3)).flatten(1)[:, :8]

        return published_nets.Published(name, f"{name} of {path}", 8, extract, device)

    monkeypatch.setattr(published_nets, "load", load)
    monkeypatch.setattr(published_nets.Published, "check", lambda self, frames: None)
    out = Path(shutil.copytree(done, tmp_path / "out"))
    assert main(*words, "--fvd", "i3d=a.pt", "--fvd", "videomae=b.pth", "--out", out) == 0
    frames = {"fvd-i3d": 5, "fvd-videomae": 4}
    assert {*seen} == {(name, torch.uint8, (count, 16, 16, 3)) for name, count in frames.items()}
    rows = {(name, steps): row for name, steps, row in figures(out)}
    assert all({"fvd-i3d", "fvd-videomae"} < row.keys() for row in rows.values())
    assert all(rows[name, steps].items() > row.items() for name, steps, row in figures(done))
    said = capsys.readouterr().out
    assert "FVD, I3D" in said and said.index("FVD, VideoMAE") < said.index("Frechet, trained")


def test_fvd_weights_that_are_not_there_are_one_line(ccd, capsys, tmp_path):
    out = "--out", tmp_path / "out", "--count", 16
    assert f"{tmp_path}/none.pt: no such file; fvd-i3d needs i3d_pretrained" in refusal(
        capsys, "--models", ccd, "--fvd", f"i3d={tmp_path}/none.pt", *out)
    assert not (tmp_path / "out").exists()


# --- ranks and kills -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes():
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_evaluate"])
    return context


def work(arguments: list, kill_at: int | None = None) -> None:
    """Runs the command in a process, killed before its kill_at-th file is renamed into place."""
    torch.set_num_threads(1)
    renamed = 0

    def watch(event: str, args: tuple) -> None:
        nonlocal renamed
        if event == "os.rename":
            renamed += 1
            if renamed == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    assert main(*arguments) == 0


def test_two_ranks_make_the_bytes_and_figures_of_one(processes, done, words, tmp_path):
    out = tmp_path / "out"
    assert launch.Processes(processes, 2, work, [*words, "--out", out]).join(120) == [0, 0]
    assert contents(out) == contents(done) and figures(out) == figures(done)


def test_killed_and_resumed_it_makes_the_same_bytes_and_figures(processes, done, words, tmp_path):
    """Kills between the seconds and the latents of a batch, and during the measurement."""
    for kill_at in (15, 35):
        out = tmp_path / str(kill_at)
        [code] = launch.Processes(processes, 1, work, [*words, "--out", out], kill_at).join(120)
        assert code == -signal.SIGKILL and contents(out) != contents(done)
        assert main(*words, "--out", out) == 0
        assert contents(out) == contents(done) and figures(out) == figures(done)
        assert not [file for file in out.rglob(".*")]


def test_a_kill_before_the_first_file_leaves_a_folder_that_is_taken(words, tmp_path):
    temporary_of(tmp_path / "evaluation.json").mkdir()
    assert main(*words[:2], "--steps", 1, "--against", "none", "--count", 16, "--out", tmp_path) == 0
    assert not [file for file in tmp_path.rglob(".*")]


# --- bad input -------------------------------------------------------------------------------------------


def test_a_folder_of_other_settings_or_other_things_is_left_alone(done, words, inputs, capsys, tmp_path):
    before = contents(done)
    assert "compares models on other clips (count: 40 -> 41); choose another --out" in refusal(
        capsys, *words, "--count", 41, "--out", done)
    assert "(seed: 0 -> 1)" in refusal(capsys, *words, "--seed", 1, "--out", done)
    changed = student(inputs, "ccd", seed=5, name="changed")
    found = refusal(capsys, "--models", f"ccd={changed}", *words[3:], "--out", done)
    assert "ccd-4/latents-00000.safetensors was written with other settings (weights: " in found
    assert "--out" in found
    (tmp_path / "thesis.txt").write_text("")
    assert f"{tmp_path}: exists and is not an evaluation" in refusal(capsys, *words, "--out", tmp_path)
    assert "thesis.txt: exists" in refusal(capsys, *words, "--out", tmp_path / "thesis.txt")
    assert contents(done) == before and sorted(os.listdir(tmp_path)) == ["thesis.txt"]


@pytest.mark.parametrize("file", ["ccd-4/latents-00001", "lcm-2/measured-*-00000"])
def test_damaged_files_are_named(file, done, words, capsys, tmp_path):
    out = Path(shutil.copytree(done, tmp_path / "out"))
    [place] = out.glob(f"{file}.safetensors")
    raw = bytearray(place.read_bytes())
    raw[-3] ^= 1
    place.write_bytes(raw)
    assert main(*words, "--out", out) == 2
    said = capsys.readouterr().err
    assert f"{place}: damaged (" in said and "delete it and run `swiftvideo evaluate` again" in said
    place.unlink()
    assert main(*words, "--out", out) == 0 and contents(out) == contents(done)


def test_a_dry_run_writes_nothing(words, capsys, tmp_path):
    assert main(*words, "--out", tmp_path / "out", "--dry-run") == 0
    said = capsys.readouterr().out
    assert f"would sample {COUNT} clips to {tmp_path}/out" in said
    assert "lcm: 2 steps by consistency, shift 1, guidance 1, of " in said
    assert not (tmp_path / "out").exists()
