"""A checkpoint is whole or absent, and comes back to the same bits or not at all."""

import os
import shutil

import pytest
import torch
from torch import nn

from swiftvideo_fast.atomic import aside_of
from swiftvideo_fast.train import checkpoint

FILES = ["student.safetensors", "average.safetensors", "optimizer.safetensors", "state.json"]


def parts(seed: int, steps: int = 2) -> dict:
    """A student, its average and an optimizer that has taken some steps."""
    torch.manual_seed(seed)
    student, average = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.1, fused=True)
    for _ in range(steps):
        student(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"nets": {"student": student, "average": average}, "optimizers": {"optimizer": optimizer}}


def save(run, step: int, keep: int = 2, seed: int = 0):
    return checkpoint.save(run, step, **parts(seed), state={"config": {"a": 1}}, keep=keep)


def bits(of: dict) -> list[torch.Tensor]:
    moments = of["optimizers"]["optimizer"].state_dict()["state"].values()
    weights = [p for net in of["nets"].values() for p in net.parameters()]
    return [entry[name] for entry in moments for name in sorted(entry)] + weights


def test_nets_moments_and_state_come_back_to_the_bit(tmp_path):
    folder, saved, blank = save(tmp_path, 7), parts(0), parts(1, steps=0)
    state = checkpoint.restore(folder, **blank)
    assert (state["step"], state["config"]) == (7, {"a": 1})
    assert len(bits(blank)) == len(bits(saved)) == 10
    assert all(torch.equal(a, b) for a, b in zip(bits(saved), bits(blank), strict=True))

    for of in (saved, blank):               # and the next step is the same
        of["nets"]["student"](torch.ones(1, 3)).sum().backward()
        of["optimizers"]["optimizer"].step()
    assert all(torch.equal(a, b) for a, b in zip(bits(saved), bits(blank), strict=True))


def test_the_newest_are_kept(tmp_path):
    assert checkpoint.newest(tmp_path / "no run yet") is None
    for step in (5, 10, 100):
        save(tmp_path, step, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step-00000010", "step-00000100"]
    assert checkpoint.newest(tmp_path).name == "step-00000100"


def test_what_a_kill_left_is_not_taken_for_a_checkpoint_and_goes(tmp_path):
    folder = save(tmp_path, 5)
    for name in ("step-00000010", "step-00000003"):
        shutil.copytree(folder, aside_of(tmp_path / name) / name)
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
def test_damage_is_named_with_the_way_out(name, damage, tmp_path):
    save(tmp_path, 5)
    folder = save(tmp_path, 10)
    DAMAGES[damage](folder / name)
    blank = parts(1)
    before = [t.clone() for t in bits(blank)]
    with pytest.raises(ValueError) as error:
        checkpoint.restore(folder, **blank)
    assert f"{folder}/" in str(error.value) and f"delete {folder} to go on" in str(error.value)
    assert name in str(error.value) or name == "state.json"
    assert all(torch.equal(a, b) for a, b in zip(before, bits(blank), strict=True))

    shutil.rmtree(folder)
    assert checkpoint.restore(checkpoint.newest(tmp_path), **blank)["step"] == 5


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"step": 10}', '{"step": 11, "files": {}}'])
def test_a_state_that_is_none_is_damage(text, tmp_path):
    folder = save(tmp_path, 10)
    (folder / "state.json").write_text(text)
    with pytest.raises(ValueError, match="damaged checkpoint"):
        checkpoint.restore(folder, **parts(1))


def test_another_network_does_not_fit(tmp_path):
    folder, other = save(tmp_path, 10), parts(1)
    other["nets"]["average"] = nn.Linear(4, 2)
    with pytest.raises(ValueError, match=r"average.safetensors: .*weight: found \(2, 3\), want \(2, 4\)"):
        checkpoint.restore(folder, **other)


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
    assert checkpoint.restore(checkpoint.newest(tmp_path), **parts(1))["step"] == 5
