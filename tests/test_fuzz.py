"""Damaged files: a sample of tests/fuzz.py, and files that point outside their folder."""

import json
from pathlib import Path

import fuzz
import pytest
import released

from swiftvideo_fast.data import files
from swiftvideo_fast.data.files import Place
from swiftvideo_fast.models import weights

CASES = 25


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_damaged_file_is_read_right_or_refused_by_name(name, folder):
    if name in ("index", "shards"):
        pytest.importorskip("pyarrow")
    good, wanted = fuzz.prepared(name, folder)
    for number in range(CASES):
        outcome, said = fuzz.one(fuzz.TARGETS[name], good, wanted, number, folder / "case" / name)
        assert outcome not in fuzz.FAILURES, f"case {number}: {said}"


@pytest.mark.parametrize("path", ["../secret", "a/../../secret", "/etc/passwd"])
def test_a_path_out_of_the_folder_is_not_opened(path, tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "set").mkdir()
    for open_it in (files.open_file, files.read):
        for place in (Place("", path), Place(path, "member")):
            with pytest.raises(ValueError, match="not inside .*set; index the folder again"):
                open_it(tmp_path / "set", place)


@pytest.mark.parametrize("shard", ["../net.safetensors", "/tmp/net.safetensors", 3, ["a"]])
def test_a_shard_out_of_the_model_folder_is_not_opened(shard, tmp_path):
    place = released.write(tmp_path / "model", "sharded")
    index = next(Path(place).glob("*.index.json"))
    where = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": dict.fromkeys(where, shard)}))
    with pytest.raises(ValueError, match="weight_map does not map tensors to files of that folder"):
        weights.load(tmp_path / "model")
