"""TA pairs: content, reproducible bytes, and rounds of alignment."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_train import everything

from swiftvideo_fast import path, sampler
from swiftvideo_fast.data import pairs
from swiftvideo_fast.data.pairs import PairShards
from swiftvideo_fast.models import weights
from swiftvideo_fast.models.toy.words import WordVectors
from swiftvideo_fast.train import checkpoint, recipe, rounds, run_folder
from swiftvideo_fast.train.ema import Ema

COUNT = 2 * pairs.SHARD + 3         # the last shard is not full


def config(inputs: Path, folder: Path, **options):
    cfg = tiny.config(inputs, "ta", run=str(folder))
    return replace(cfg, objective=replace(cfg.objective, **{"count": COUNT} | options))


@pytest.fixture(scope="module")
def written(inputs, tmp_path_factory):
    """Returns a config with written pairs."""
    cfg = config(inputs, tmp_path_factory.mktemp("written"))
    make_pairs(cfg)
    return cfg


def make_pairs(cfg, rank: int = 0, world: int = 1) -> None:
    rounds.make_pairs(cfg, rank, world, tiny.TABLES)


def opened(cfg) -> PairShards:
    return PairShards(cfg, recipe.Parts(cfg, tiny.TABLES).codec.identity)


def content(cfg) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in pairs.folder_of(cfg).iterdir()}


def test_winner_and_loser_come_from_one_noise_and_condition_down_their_ladders(written, inputs):
    batch = opened(written).draw(9, seed=0, position=0)
    net = weights.load(inputs / "teacher.safetensors")

    def v(x, t):
        return net(x, t, batch.condition.text, batch.condition.frames, batch.condition.image)

    for clips, steps in ((batch.x0, 2), (batch.loser, 1)):
        want = sampler.euler(v, batch.noise, path.ladder(steps))
        assert (clips - want).abs().max() <= 1e-4 * want.abs().max()        # other batches, other sums
    assert 0.9 < batch.noise.std() < 1.1 and not torch.equal(batch.x0, batch.loser)
    assert len(set(batch.captions)) > 1
    assert torch.equal(batch.condition.text, WordVectors(net.config.text_dim)(batch.captions))


def test_real_winners_are_the_clips(inputs, tmp_path):
    cfg = config(inputs, tmp_path, winner="real", count=4)
    make_pairs(cfg)
    batch = opened(cfg).draw(4, 0, 0)
    assert torch.equal(batch.x0[:, :, 0], batch.condition.frames[:, 4:, 0])     # the given first frame
    assert not torch.equal(batch.loser[:, :, 0], batch.x0[:, :, 0])


def test_a_draw_depends_on_its_place_alone(written):
    one, two = opened(written), opened(written)
    one.draw(3, 0, 7)
    a, b = one.draw(4, 0, 12), two.draw(4, 0, 12)
    assert torch.equal(a.x0, b.x0) and torch.equal(a.noise, b.noise) and a.captions == b.captions
    assert not torch.equal(a.x0, one.draw(4, 0, 16).x0)


def test_every_pair_is_found_in_its_place(written):
    files = sorted(pairs.folder_of(written).glob("*.safetensors"))
    winners = torch.cat([load_file(file)["x0"] for file in files])
    there = opened(written)
    assert len(winners) == len(there) == COUNT
    assert all(torch.equal(there.shards[row // pairs.SHARD].pair(row % pairs.SHARD)["x0"], winner)
               for row, winner in enumerate(winners))


def test_the_manifest_says_what_decides_the_bytes(written, inputs):
    about = json.loads(content(written)[pairs.MANIFEST])
    assert about["student"] == weights.digest(inputs / "teacher.safetensors")
    assert (about["steps"], about["ladders"]) == ([2, 1], [[1.0, 0.5, 0.0], [1.0, 0.0]])
    assert (about["seed"], about["count"], about["winner"]) == (0, COUNT, "sampled")


def test_the_device_samples_and_the_cpu_draws_and_keeps(inputs, tmp_path, monkeypatch):
    def sampled(call, x1, condition, steps, how, rng):
        tensors = [*call.args[0].parameters(), x1, condition.frames, condition.text, condition.null_text]
        assert {x.device.type for x in tensors} == {"meta"} and rng.device.type == "cpu"
        return torch.zeros(x1.shape)

    cfg = config(inputs, tmp_path, count=3)
    monkeypatch.setattr(rounds, "local_device", lambda: torch.device("meta"))
    monkeypatch.setattr(sampler, "generate", sampled)
    make_pairs(cfg)
    assert opened(cfg).draw(2, 0, 0).noise.device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_pairs_of_the_gpu_are_the_cpus_but_for_rounding(inputs, tmp_path, monkeypatch):
    on_gpu, on_cpu = (config(inputs, tmp_path / name, count=4) for name in ("gpu", "cpu"))
    make_pairs(on_gpu)
    monkeypatch.setattr(rounds, "local_device", lambda: torch.device("cpu"))
    make_pairs(on_cpu)
    a, b = (opened(cfg).draw(4, 0, 0) for cfg in (on_gpu, on_cpu))
    assert torch.equal(a.noise, b.noise)
    assert (a.loser - b.loser).abs().max() <= 2**-8 * b.loser.abs().max()      # TF32 has 11 bits


def test_ranks_write_what_one_process_writes(written, inputs, tmp_path):
    cfg = config(inputs, tmp_path)
    for rank in (2, 0, 1):
        make_pairs(cfg, rank, world=3)
    assert content(cfg) == content(written)


def test_pairs_cut_short_are_finished_to_the_same_bytes(written, inputs, tmp_path, monkeypatch):
    cfg, real, made = config(inputs, tmp_path), sampler.generate, []

    def interrupt(*args):
        made.append(args)
        if len(made) == 4:                      # the second shard has its winners
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sampler, "generate", interrupt)
        make_pairs(cfg)
    assert len(content(cfg)) == 2
    with pytest.raises(ValueError, match="lacks 2 of 3 shards, pairs-00001.safetensors the first; finish"):
        opened(cfg)
    make_pairs(cfg)
    assert content(cfg) == content(written)


def test_a_finished_folder_is_only_read(written, monkeypatch):
    monkeypatch.setattr(sampler, "generate", None)
    monkeypatch.setattr(pairs, "atomic_write", None)
    make_pairs(written)


def test_no_pairs_and_damaged_pairs_are_named(inputs, written, tmp_path):
    cfg = config(inputs, tmp_path)
    with pytest.raises(ValueError, match="pairs: no pairs here; write them with `swiftvideo pairs`"):
        opened(cfg)
    shutil.copytree(pairs.folder_of(written), pairs.folder_of(cfg))
    shard = pairs.folder_of(cfg) / "pairs-00001.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    for damaged in (bytes(raw), bytes(raw[:1000]), b""):
        shard.write_bytes(damaged)
        for use in (opened, make_pairs):
            with pytest.raises(ValueError, match=f"{shard}: damaged .*; delete it and run `swiftvideo"):
                use(cfg)
    (pairs.folder_of(cfg) / pairs.MANIFEST).write_text("[]")
    with pytest.raises(ValueError, match="pairs.json: not the manifest of pairs .*; restore it, or choose"):
        opened(cfg)


def test_pairs_of_other_options_or_another_student_are_left_alone(written, inputs, tmp_path):
    before = content(written)
    folder = str(pairs.folder_of(written))
    other = config(inputs, tmp_path, pairs=folder, steps=(4, 1))
    for use in (opened, make_pairs):
        with pytest.raises(ValueError, match=r"holds other pairs \(steps: \[2, 1\] -> \[4, 1\]; ladders: "):
            use(other)
    weights.save(tiny.network(seed=5), tmp_path / "other.safetensors")
    cfg = config(inputs, tmp_path, pairs=folder)
    cfg = replace(cfg, model=replace(cfg.model, student=str(tmp_path / "other.safetensors")))
    with pytest.raises(ValueError, match="holds other pairs .student: "):
        opened(cfg)
    (pairs.folder_of(written) / pairs.MANIFEST).rename(tmp_path / "aside")  # shards record their settings too
    with pytest.raises(ValueError, match="pairs-00000.safetensors holds other pairs .steps"):
        make_pairs(other)
    assert not (pairs.folder_of(written) / pairs.MANIFEST).exists()
    (tmp_path / "aside").rename(pairs.folder_of(written) / pairs.MANIFEST)
    assert content(written) == before


def test_rounds_go_from_student_to_student(inputs, tmp_path):
    cfg = config(inputs, tmp_path, count=3, rank=0)
    last = rounds.run_ta_rounds(cfg, [4, 2, 1], tiny.TABLES)
    assert last == tmp_path / "2-1"
    first, second = (json.loads((tmp_path / name / "pairs" / pairs.MANIFEST).read_text())
                     for name in ("4-2", "2-1"))
    assert (first["steps"], second["steps"]) == ([4, 2], [2, 1])
    assert first["student"] == weights.digest(inputs / "teacher.safetensors")
    assert second["student"] == weights.digest(tmp_path / "4-2/average.safetensors")
    run_folder.check(next(iter(rounds.rounds(cfg, [4, 2]))), tiny.TABLES.fill_defaults)
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.safetensors")}
    assert rounds.run_ta_rounds(cfg, [4, 2, 1], tiny.TABLES) == last
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.safetensors")} == before


@pytest.mark.parametrize("rank", [0, 2])
def test_an_aligned_student_comes_out_whole_and_as_lora(rank, inputs, tmp_path):
    cfg = config(inputs, tmp_path, count=3, rank=rank)
    make_pairs(cfg)
    recipe.train(cfg, tiny.TABLES)
    start, end = (weights.load(f).state_dict() for f in (cfg.model.start, tmp_path / "student.safetensors"))
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert "blocks.0.self_attn.q.weight" in moved
    assert ("blocks.0.self_attn.q.bias" in moved) == (rank == 0)
    assert {f.name for f in tmp_path.glob("lora-*")} == (
        {"lora-student.safetensors", "lora-average.safetensors"} if rank else set())


def test_lora_cut_short_goes_on_to_the_same_bits(inputs, tmp_path, monkeypatch):
    cfg = config(inputs, tmp_path / "run", count=3, rank=2)
    make_pairs(cfg)
    want = everything(recipe.train(cfg, tiny.TABLES))
    kept = checkpoint.Saved(checkpoint.newest(tmp_path / "run")).shapes
    assert not any("base_layer" in name for name in kept)
    shutil.rmtree(tmp_path / "run")
    make_pairs(cfg)
    update, updates = Ema.update, []

    def interrupt(average):
        update(average)
        updates.append(average)
        if len(updates) == 3:                   # one more than the checkpoint counts
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Ema, "update", interrupt)
        recipe.train(cfg, tiny.TABLES)
    assert everything(recipe.train(cfg, tiny.TABLES)) == want
