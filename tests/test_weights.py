"""Weight files: read as written, or an error with the file and the reason."""

import json
import os
from dataclasses import asdict

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from swiftvideo_fast.models import weights


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    weights.save(tiny.network(), path, sample={"sampler": "euler"}, note="why")
    return path


def test_a_network_comes_back_to_the_bit(file):
    net, back = tiny.network(), weights.load(file)
    assert back.config == net.config
    assert back.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), back.parameters(), strict=True))


def test_the_header_says_what_the_file_is(file):
    with safe_open(str(file), "pt") as opened:
        header = opened.metadata()
    assert json.loads(header["config"]) == asdict(tiny.SIZES)
    assert json.loads(header["about"]) == {"sample": {"sampler": "euler"}, "note": "why"}


def test_half_precision_on_disk_is_fp32_in_memory(tmp_path):
    weights.save(tiny.network(), tmp_path / "half.safetensors", dtype=torch.bfloat16)
    net, back = tiny.network(), weights.load(tmp_path / "half.safetensors")
    pairs = zip(net.parameters(), back.parameters(), strict=True)
    assert all(torch.equal(a.bfloat16().float(), b) for a, b in pairs)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}/none.safetensors: no such file"):
        weights.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("damage", [
    lambda raw: raw[:len(raw) // 2], lambda raw: raw[:4], lambda raw: b"", lambda raw: b"PK" + raw[2:],
    lambda raw: raw[:9] + b"\x00" + raw[10:]], ids=["half", "four bytes", "empty", "a zip", "header"])
def test_a_damaged_file_is_named_with_the_way_out(damage, file, tmp_path):
    (tmp_path / "net.safetensors").write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=f"{tmp_path}/net.safetensors: damaged.*restore it from its source"):
        weights.load(tmp_path / "net.safetensors")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match="no config.json; want a Wan model folder"):
        weights.load(tmp_path)


@pytest.mark.parametrize("header", [None, {"format": "pt"}])
def test_a_foreign_file_is_not_ours(header, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors", header)
    with pytest.raises(ValueError, match="header has no network sizes; want a file written by swiftvideo"):
        weights.load(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("sizes", ["12", "{", '{"dim": 16}', json.dumps(asdict(tiny.SIZES) | {"heads": 3}),
                                   json.dumps(asdict(tiny.SIZES) | {"wings": 2})])
def test_sizes_that_make_no_network_are_shown(sizes, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "odd.safetensors", {"config": sizes})
    with pytest.raises(ValueError, match="odd.safetensors: its header's sizes, .* are not a network"):
        weights.load(tmp_path / "odd.safetensors")


def test_the_first_three_tensors_that_do_not_fit_are_named(file, tmp_path):
    tensors, header = weights.read(file)
    names = sorted(tensors)
    tensors["a.stranger"] = torch.zeros(2)
    del tensors[names[0]]
    tensors[names[1]] = torch.zeros(3, 3)
    tensors[names[2]] = torch.zeros(5)
    save_file(tensors, tmp_path / "odd.safetensors", header)
    with pytest.raises(ValueError) as error:
        weights.load(tmp_path / "odd.safetensors")
    message = str(error.value)
    assert "a.stranger: found (2,), want nothing" in message
    assert f"{names[0]}: found nothing, want " in message
    assert f"{names[1]}: found (3, 3), want " in message
    assert names[2] not in message and "(and 1 more)" in message


def test_a_write_that_fails_midway_leaves_the_old_file(file, tmp_path, monkeypatch):
    old = file.read_bytes()
    (tmp_path / "net.safetensors").write_bytes(old)

    def fail(tensors, path, header):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights.sealed, "save_file", fail)
    with pytest.raises(OSError, match="net.safetensors: could not be written .*No space left"):
        weights.save(tiny.network(1), tmp_path / "net.safetensors")
    assert (tmp_path / "net.safetensors").read_bytes() == old
    assert os.listdir(tmp_path) == ["net.safetensors"]
