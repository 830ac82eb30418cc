"""Short forms of tests/pipeline.py: a generated set end to end, a kill per stage; and training from it."""

import pytest
import tiny
import yaml

pytest.importorskip("pyarrow")

import pipeline  # noqa: E402

from swiftvideo_fast import cli  # noqa: E402
from swiftvideo_fast.config import to_dict  # noqa: E402
from swiftvideo_fast.train.log import LOG, SPEED, read_log  # noqa: E402


def test_a_set_of_good_and_bad_files_goes_from_the_folder_to_the_source(tmp_path):
    pipeline.run_set(tmp_path, 24, seconds=2.6, long=12.0)


@pytest.mark.parametrize("what", ["index", "encode", "epoch"])
def test_a_kill_leaves_the_bytes_of_an_undisturbed_run(what, videos):
    pipeline.kill(videos, what, times=1, seed=0)


@pytest.mark.filterwarnings("ignore:.*first frames")
def test_a_run_from_shards_is_the_run_from_videos_and_its_log_tells_what_it_waited(videos, inputs, tmp_path):
    """With the CLI, and da.raw."""
    shards, table, codec = tmp_path / "shards", videos / "index.parquet", inputs / "codec.safetensors"
    framing = ["--frames", "9", "--rate", "8", "--size", "32x32"]
    toy = ["--family", "toy", "--codec", str(codec), "--weights", str(inputs / "teacher.safetensors")]
    assert cli.main(["encode", str(table), "--out", str(shards), *framing, *toy, "--dtype", "float32",
                     "--passes", "2"]) == 0
    data = {"shards": {"folder": str(shards)},
            "videos": {"index": str(table), "frames": 9, "rate": 8.0, "width": 32, "height": 32}}
    losses = {}
    for name, options in data.items():
        tree = to_dict(tiny.config(inputs, "da", run=str(tmp_path / name)))
        tree["data"] = {"name": name, "batch": 2, "held_out": 2, **options}
        tree["run"]["watch_every"] = 3
        tree["da"] |= {"raw": True}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        for words in (["--dry-run"], []):
            assert cli.main(["train", str(tmp_path / f"{name}.yaml"), *words]) == 0
        log, speed = (read_log(tmp_path / name, file) for file in (LOG, SPEED))
        assert all(0 <= line["waiting"] <= 1 for line in speed) and len(speed) == len(log)
        losses[name] = [line["loss"] for line in log]
    assert len(losses["shards"]) == 6 and losses["shards"] == pytest.approx(losses["videos"], rel=1e-4)
