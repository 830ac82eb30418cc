"""Atomic writes."""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from swiftvideo_fast.atomic import atomic_write, sweep, temporary_of


def test_a_file_takes_its_place_only_when_it_is_whole(tmp_path):
    target = tmp_path / "new" / "file.txt"
    with atomic_write(target) as tmp:
        tmp.write_text("half")
        assert not target.exists()
        tmp.write_text("whole")
    assert target.read_text() == "whole"
    assert os.listdir(target.parent) == ["file.txt"]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="midway"), atomic_write(target) as tmp:
        tmp.write_text("half")
        raise RuntimeError("midway")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_what_is_written_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), replace(a, b)))
    with atomic_write(tmp_path / "folder") as tmp:
        tmp.mkdir()
        (tmp / "file").write_text("content")
    renamed = order.index("rename")
    assert {os.path.basename(path) for path in order[:renamed]} == {"folder", "file"}
    assert order[renamed + 1:] == [str(tmp_path)]


@pytest.mark.parametrize("refusal", [OSError(28, "No space left on device"), OSError(30, "Read-only")])
def test_a_disk_that_refuses_is_one_error_with_the_name_of_the_target(tmp_path, monkeypatch, refusal):
    def refuse(*_):
        raise refusal

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "fsync", refuse)
    message = f"{tmp_path}/file: could not be written .*{refusal.strerror}"
    with pytest.raises(OSError, match=message), atomic_write(tmp_path / "file") as tmp:
        tmp.write_text("new")
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_in_place_of_the_folder_is_one_error(tmp_path):
    (tmp_path / "run").write_text("no folder")
    with pytest.raises(OSError, match="run/file: could not be"), atomic_write(tmp_path / "run/file") as tmp:
        tmp.write_text("never")


def test_a_refusal_inside_safetensors_is_an_oserror_too(tmp_path):
    refused = pytest.raises(OSError, match="weights: could not be written")
    with refused, atomic_write(tmp_path / "weights") as tmp:
        save_file({"a": torch.zeros(1)}, tmp / "no-such-folder" / "file")
    assert os.listdir(tmp_path) == []


def test_others_may_read_it_as_if_open_had_made_it(tmp_path):
    (tmp_path / "plain").write_text("")
    with atomic_write(tmp_path / "weights") as tmp:
        save_file({"a": torch.zeros(1)}, tmp)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "weights")]
    assert modes[0] == modes[1]


def test_what_a_kill_left_is_replaced_and_swept(tmp_path):
    for name in ("again", "never again"):
        temporary_of(tmp_path / name).mkdir()
        (temporary_of(tmp_path / name) / ".tmp-of-a-writer").write_text("half")
    with atomic_write(tmp_path / "again") as tmp:
        tmp.write_text("whole")
    sweep(tmp_path)
    assert os.listdir(tmp_path) == ["again"]
