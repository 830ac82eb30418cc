"""Checkpoints: atomic, and restored bit for bit or rejected."""

import hashlib
import os
import shutil

import pytest
import torch
from torch import nn

from swiftvideo_fast.atomic import temporary_of
from swiftvideo_fast.config import Optim
from swiftvideo_fast.train import checkpoint
from swiftvideo_fast.train.ema import Ema
from swiftvideo_fast.train.single import Trained

FILES = ["rank-00000.safetensors", "state.json", "complete"]
OPTIM = Optim(lr=0.1)


def parts(seed: int, steps: int = 2) -> dict:
    """Returns a student after some steps, and its average."""
    torch.manual_seed(seed)
    student = Trained(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), OPTIM, passes=1)
    average = Ema(student, 0.5)
    for _ in range(steps):
        student.backward(student.net(torch.randn(4, 3)).square().sum())
        student.step(0.1)
        average.update()
    return {"student": student, "average": average}


def save(run, step: int, keep: int = 2, seed: int = 0):
    return checkpoint.save(run, step, parts=parts(seed), state={"config": {"a": 1}}, keep=keep)


def bits(of: dict) -> list[torch.Tensor]:
    moments = of["student"].optimizer.state_dict()["state"].values()
    nets = [part.net.state_dict().values() for part in of.values()]
    return [entry[name] for entry in moments for name in sorted(entry)] + [x for net in nets for x in net]


def test_weights_moments_and_state_come_back_to_the_bit(tmp_path):
    folder, saved, blank = save(tmp_path, 7), parts(0), parts(1, steps=0)
    state = checkpoint.restore(checkpoint.Saved(folder), blank)
    assert (state["step"], state["config"]) == (7, {"a": 1})
    assert len(bits(blank)) == len(bits(saved)) == 4 * 3 + 4 + 3 + 4 + 3
    assert all(torch.equal(a, b) for a, b in zip(bits(saved)[:-3], bits(blank)[:-3], strict=True))

    for of in (saved, blank):               # and the next step is the same
        of["student"].backward(of["student"].net(torch.ones(2, 3)).sum())
        of["student"].step(0.1)
    assert all(torch.equal(a, b) for a, b in zip(bits(saved)[:-3], bits(blank)[:-3], strict=True))


def test_a_tensor_is_read_whole_or_in_part_without_a_network(tmp_path):
    saved, student = checkpoint.Saved(save(tmp_path, 7)), parts(0)["student"].net
    tensors = saved.tensors("student/weight/")
    assert all(torch.equal(tensors[name], p) for name, p in student.named_parameters())
    assert tensors.keys() == dict(student.named_parameters()).keys()
    assert torch.equal(saved.read("student/weight/0.weight", 2, 5), student[0].weight.flatten()[2:5])


def test_the_newest_are_kept(tmp_path):
    assert checkpoint.newest(tmp_path / "no run yet") is None
    for step in (5, 10, 100):
        save(tmp_path, step, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step-00000010", "step-00000100"]
    assert checkpoint.newest(tmp_path).name == "step-00000100"


def test_what_a_kill_left_is_not_taken_for_a_checkpoint_and_goes(tmp_path):
    folder = save(tmp_path, 5)
    for name in ("step-00000010", "step-00000003"):
        shutil.copytree(folder, temporary_of(tmp_path / name) / name)
    assert checkpoint.newest(tmp_path) == folder
    save(tmp_path, 10)
    assert sorted(os.listdir(tmp_path)) == ["step-00000005", "step-00000010"]


def flip(file, where: float):
    raw = bytearray(file.read_bytes())
    raw[int(where * (len(raw) - 1))] ^= 0x10
    file.write_bytes(raw)


DAMAGES = {
    "a flipped first byte": lambda file: flip(file, 0),
    "a flipped byte": lambda file: flip(file, 0.4),
    "a flipped last byte": lambda file: flip(file, 1),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-20]),
    "empty": lambda file: file.write_bytes(b""),
    "deleted": lambda file: file.unlink(),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_last_good_one_is_taken(name, damage, tmp_path):
    good = save(tmp_path, 5)
    folder = save(tmp_path, 10)
    DAMAGES[damage](folder / name)
    with pytest.warns(UserWarning) as warned:
        assert checkpoint.last_good(tmp_path).folder == good
    said, = (str(w.message) for w in warned)
    assert said.startswith(f"{folder}/") and said.endswith(f"damaged-1; resuming from {good}")
    assert name in said or name != FILES[0]
    assert sorted(os.listdir(tmp_path)) == ["step-00000005", "step-00000010.damaged-1"]


def test_without_a_good_one_the_run_stops_and_says_how_to_go_on(tmp_path):
    assert checkpoint.last_good(tmp_path) is None
    for step in (5, 10):
        (save(tmp_path, step) / FILES[0]).write_bytes(b"")
    with pytest.raises(checkpoint.Damaged, match=f"10/{FILES[0]}: damaged .* start again in another"):
        checkpoint.last_good(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["step-00000005", "step-00000010"]


@pytest.mark.parametrize("text", ["[]", "{}", '{"step": 11, "files": {}, "shapes": {}}'])
def test_a_state_that_is_none_is_damage(text, tmp_path):
    folder = save(tmp_path, 10)
    (folder / "state.json").write_text(text)
    (folder / "complete").write_text(hashlib.sha256(text.encode()).hexdigest())
    with pytest.raises(ValueError, match="damaged checkpoint"):
        checkpoint.Saved(folder)


def test_another_network_does_not_fit(tmp_path):
    folder, other = save(tmp_path, 10), parts(1)
    other["average"] = Ema(Trained(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), OPTIM, 1), 0.5)
    before = [t.clone() for t in bits(other)]
    with pytest.raises(ValueError, match=r"average/weight/0.weight: found \(2, 3\), want \(2, 4\)"):
        checkpoint.restore(checkpoint.Saved(folder), other)
    assert all(torch.equal(a, b) for a, b in zip(before, bits(other), strict=True))


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_disk_that_refuses_leaves_the_checkpoints_that_were_there(call, tmp_path, monkeypatch):
    save(tmp_path, 5)
    real, calls = getattr(os, call), []

    def refuse_third(*args, **kwargs):
        calls.append(args)
        if len(calls) == {"replace": 1}.get(call, 3):
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse_third)
        with pytest.raises(OSError, match="step-00000010: could not be written .*No space left"):
            save(tmp_path, 10)
    assert os.listdir(tmp_path) == ["step-00000005"]
    assert checkpoint.restore(checkpoint.Saved(checkpoint.newest(tmp_path)), parts(1))["step"] == 5
