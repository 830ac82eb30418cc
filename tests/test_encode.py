"""Shards and sources: the same bytes in any order, each clip once per epoch, other settings rejected."""

import argparse
import json
import logging
import shutil
from collections import Counter
from itertools import count
from pathlib import Path

import encoders
import pipeline
import pytest
import synthetic
import torch

pytest.importorskip("pyarrow")

from pyarrow import parquet  # noqa: E402

from swiftvideo_fast.data import encode, shards  # noqa: E402
from swiftvideo_fast.data.decode import Framing  # noqa: E402
from swiftvideo_fast.data.index import Index, index  # noqa: E402
from swiftvideo_fast.data.order import Order, held_out  # noqa: E402
from swiftvideo_fast.data.prefetch import Prefetched  # noqa: E402


@pytest.fixture(scope="module")
def table(videos) -> Index:
    return Index(videos / "index.parquet")


@pytest.fixture
def own(videos, tmp_path) -> Path:
    """Returns a folder with copies of some good files, to be damaged, and their index."""
    shutil.copytree(videos / "set/clips", tmp_path / "set/clips")
    shutil.copy(videos / "set/portrait.mp4", tmp_path / "set")
    shutil.copy(videos / "set/captions.csv", tmp_path)
    index(tmp_path / "set", tmp_path / "captions.csv", tmp_path / "index.parquet")
    return tmp_path


# Shards.

def test_many_ranks_write_the_bytes_of_one(table, tmp_path):
    for world, name in ((1, "one"), (3, "three")):
        work = pipeline.job(table.path, tmp_path / name, passes=5)
        for rank in reversed(range(world)):
            work.write(range(rank, work.shards, world), 2, rank, world)
    assert work.shards == 4
    assert pipeline.contents(tmp_path / "one") == pipeline.contents(tmp_path / "three")


def test_a_caption_is_encoded_once_and_stored_cut_to_its_length(table, tmp_path):
    codec = encoders.Toy()
    work = pipeline.job(table.path, tmp_path, codec, passes=2)
    work.write(range(work.shards), 2)
    captions = {table[row][2] for row in work.rows}
    assert Counter(codec.asked) == Counter(captions) and len(captions) < len(work.rows)
    read = shards.OpenFiles(tmp_path)
    told = read.shard("text", 0).header["rows"]
    assert told == sorted(captions | {""})
    stored = sum(len(codec.text([caption])[0].ne(0).any(1).nonzero()) for caption in told)
    with shards.safe_open(shards.file_of(tmp_path, "text", 0), "pt") as file:
        assert file.get_slice("text").get_shape() == [stored, 8]
    for slot, caption in enumerate(told):
        text = codec.text([caption])[0].bfloat16()
        assert torch.equal(read.shard("text", 0).slot(slot)["text"], text[:encode.length_of(text)])


@pytest.mark.parametrize("codec", [encoders.toy, encoders.tiny_wan])
def test_shards_and_videos_give_what_the_codec_does(codec, videos, tmp_path):
    codec = codec()
    table = Index(videos / "index.parquet").table
    few = tmp_path / "few.parquet"
    parquet.write_table(table.slice(0, 3).replace_schema_metadata({"folder": str(videos / "set")}), few)
    pipeline.job(few, tmp_path, codec, dtype="float32").write([0], 2)
    stored = pipeline.shards_of(tmp_path, codec, pixels=True)
    online = pipeline.videos_of(few, codec, pixels=True)
    assert all(pipeline.place_of(stored, 0, p) == pipeline.place_of(online, 0, p) for p in range(3))
    a, b = stored.clips("train", 3, 0), online.clips("train", 3, 0)
    x0, frames, image = codec.encode_pixels(a.pixels.float() / 127.5 - 1)
    for got in (a, b):
        assert torch.equal(got.pixels, a.pixels) and got.captions == a.captions
        for x, y in ((got.x0, x0), (got.condition.frames, frames), (got.condition.image, image),
                     (got.condition.text, codec.encode_text(a.captions))):
            assert x is y is None or torch.allclose(x, y, atol=1e-5)
        assert torch.equal(got.condition.null_text, codec.null_text)


def test_each_pass_and_each_epoch_has_windows_of_its_own_the_same_from_both(videos, table):
    stored, online = pipeline.shards_of(videos / "shards"), pipeline.videos_of(table.path)
    size, starts = len(online), []
    for epoch in range(3):
        a, b = (source.draw(size, 0, epoch * size) for source in (stored, online))
        assert a.captions == b.captions and torch.allclose(a.x0, b.x0, atol=1e-5)
        rows = [stored.order.at(0, p) for p in range(epoch * size, (epoch + 1) * size)]
        starts.append({row.row: row.start for row in rows})
    assert all(sum(starts[0][row] != starts[e][row] for row in starts[0]) > size // 2 for e in (1, 2))


def test_latents_are_stored_as_asked_and_widened_when_drawn(table, tmp_path, videos):
    work = pipeline.job(table.path, tmp_path)
    work.write(range(work.shards), 2)
    half, full = pipeline.shards_of(tmp_path), pipeline.shards_of(videos / "shards")
    a, b = half.clips("train", 4, 0), full.clips("train", 4, 0)
    row = half.order.at(0, 0)
    assert half.files.shard("clips", row.shard).slot(row.slot)["x0"].dtype == torch.bfloat16
    assert a.x0.dtype == b.x0.dtype == torch.float32 and a.condition.text.dtype == torch.bfloat16
    assert a.captions == b.captions and torch.equal(a.x0, b.x0.bfloat16().float())


def test_shards_of_something_else_are_refused(table, videos, tmp_path):
    work = pipeline.job(table.path, tmp_path)
    work.write(range(work.shards), 2)
    with pytest.raises(ValueError, match=r"was encoded with other settings \(seed: 0 -> 1\).*another --out"):
        pipeline.job(table.path, tmp_path, seed=1).write([0], 1)
    with pytest.raises(ValueError, match=r"encoded with another codec \(dim: 8 -> 9\)"):
        pipeline.shards_of(tmp_path, encoders.Toy(9))
    with pytest.raises(ValueError, match="no encode.json; write the shards with `swiftvideo encode`"):
        pipeline.shards_of(tmp_path / "none")
    file = shards.file_of(tmp_path, "clips", 0)
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ValueError, match=r"clips-00000.*: damaged \(the bytes of slot \d+ differ"):
        work.write([0], 1)
    file.write_bytes(raw[:-9])
    with pytest.raises(ValueError, match="clips-00000.safetensors: damaged"):
        pipeline.shards_of(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="lacks 1 of 1 clips shards, clips-00000.safetensors the first"):
        pipeline.shards_of(tmp_path)
    with pytest.raises(ValueError, match=r"no video lasts 59.97 s, the length of 961 frames at 16 a second"):
        pipeline.job(table.path, tmp_path, framing=Framing(961, 16.0, 64, 64))


def test_a_video_gone_since_the_index_is_left_out_by_name(own, caplog):
    rows = Index(own / "index.parquet")
    gone = rows[2][0]
    (own / "set" / gone.path).unlink()
    work = pipeline.job(rows.path, own / "shards")
    with caplog.at_level(logging.WARNING):
        left_out = work.write(range(work.shards), 2)
    source = pipeline.shards_of(own / "shards")
    assert len(source) == len(rows) - 1
    lost = source.files.shard("clips", 0).header["lost"]
    assert lost == left_out and list(lost) == [str(gone)] and "no longer decodes" in lost[str(gone)]
    assert any(str(gone) in record.message for record in caplog.records)


def test_the_command_counts_the_videos_that_no_longer_decode(own, capsys):
    parser = argparse.ArgumentParser()
    encode.add_arguments(parser)
    rows = Index(own / "index.parquet")
    (own / "set" / rows[2][0].path).unlink()
    given = [str(rows.path), "--out", str(own / "shards"), "--frames", "9", "--size", "64x64"]
    encode.run(parser.parse_args([*given, "--threads", "1"]), encoders.toy())
    assert "; 1 no longer decode, and are not in the shards" in capsys.readouterr().out


def test_the_command_encodes_and_says_what_it_left_out(table, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    encode.add_arguments(parser)
    given = [str(table.path), "--out", str(tmp_path), "--frames", "33", "--size", "64x64"]
    encode.run(parser.parse_args([*given, "--threads", "2", "--world", "1", "--rank", "0"]), encoders.toy())
    good = len(table) - 1
    assert f"{good} windows of {good} videos, rank 0 of 1; 1 left out" in capsys.readouterr().out
    assert "twelve frames.mp4,too short: 0.46 s" in (tmp_path / "rejects.csv").read_text()
    about = json.loads((tmp_path / "encode.json").read_text())
    assert about["index_sha256"] == table.sha256 and about["codec"] == encoders.toy().identity
    assert about["framing"] == {"frames": 33, "rate": 16.0, "width": 64, "height": 64}
    assert about["resize"] == "centre crop to the aspect, then bicubic with antialias"
    with pytest.raises(ValueError, match="want a rank below it"):
        encode.run(parser.parse_args([*given, "--rank", "2"]), encoders.toy())


# Order.

def test_every_clip_comes_once_an_epoch_in_an_order_of_its_own():
    order = Order([range(5), range(10, 17)])
    drawn = [order.at(3, p) for p in range(3 * 12)]
    for epoch in range(6):
        begin = epoch // 2 * 12 + epoch % 2 * 5
        items = range(10, 17) if epoch % 2 else range(5)
        assert sorted(drawn[begin:begin + len(items)]) == list(items)
    assert drawn[:5] != drawn[12:17] and drawn != [order.at(4, p) for p in range(36)]


def test_two_ranks_go_on_as_one_and_as_three_without_repeat_or_hole(videos):
    """A step's clips are split as in train/loop.py: rank r of w takes every w-th micro-batch."""
    drawn, batch, step = [], 6, count()
    for ranks, steps in ((2, 3), (1, 2), (3, 9)):
        sources = [pipeline.shards_of(videos / "shards") for _ in range(ranks)]
        for _ in range(steps):
            first, size = next(step) * batch, batch // ranks
            for rank in range(ranks):
                one = sources[rank].draw(size, 5, first + rank * size)
                drawn += [(x.sum().item(), caption) for x, caption in zip(one.x0, one.captions)]
    whole = pipeline.shards_of(videos / "shards")
    alone = whole.draw(len(drawn), 5, 0)
    assert drawn == [(x.sum().item(), caption) for x, caption in zip(alone.x0, alone.captions)]
    size = len(whole.order.passes[0])
    rows = [whole.order.at(5, p).row for p in range(len(drawn))]
    for epoch in range(len(drawn) // size):
        assert len(set(rows[epoch * size:(epoch + 1) * size])) == size


@pytest.mark.parametrize("kind", ["shards", "videos"])
def test_clips_held_out_are_never_trained_on(kind, videos, table):
    def opened(count: int):
        if kind == "shards":
            return pipeline.shards_of(videos / "shards", held_out=count)
        return pipeline.videos_of(table.path, held_out=count)

    source = opened(4)
    rows = [pipeline.place_of(source, 0, p)[0] for p in range(len(source))]
    out = source.held["valid"] + source.held["test"]
    assert len(set(out)) == 8 and not set(out) & set(rows)
    assert len(set(rows)) == len(table) - 1 - 8                         # one is too short
    valid, test = (source.clips(split, 4, 0) for split in ("valid", "test"))
    known = {split: Counter(table[row][2] for row in source.held[split]) for split in ("valid", "test")}
    assert Counter(valid.captions) == known["valid"] and Counter(test.captions) == known["test"]
    with pytest.raises(ValueError, match="no clip is left to train on"):
        opened(40)


def test_what_is_held_out_does_not_depend_on_the_run():
    assert held_out(range(50), 5) == held_out(range(50), 5)


# Pixels, from shards.

def test_pixels_of_another_index_are_refused(own):
    rows = Index(own / "index.parquet")
    pipeline.job(rows.path, own / "shards").write([0], 2)
    synthetic.write_video(own / "set/portrait.mp4", "libx264", synthetic.constant(24, 70))
    index(own / "set", own / "captions.csv", rows.path)
    with pytest.raises(ValueError, match="not the index that .* was encoded from; restore that one"):
        pipeline.shards_of(own / "shards", pixels=True)


# From videos.

def test_a_video_that_no_longer_decodes_is_replaced_by_the_next_and_named_once(own, caplog):
    rows = Index(own / "index.parquet")
    source = pipeline.videos_of(rows.path)
    before = source.draw(len(source), 0, 0).captions
    gone = source.at(0, 3)[1]
    (own / "set" / rows[gone][0].path).write_bytes(b"gone")
    with caplog.at_level(logging.WARNING):
        after = [source.draw(len(source), 0, 0).captions for _ in range(2)]
    instead = before.copy()
    instead[3] = rows[(gone + 1) % len(rows)][2]
    assert after == [instead, instead]
    assert [record.message.startswith("replaced: ") for record in caplog.records] == [True]
    for place in range(len(rows)):
        (own / "set" / rows[place][0].path).write_bytes(b"gone")
    with pytest.raises(ValueError, match="8 videos in a row do not decode, the last: "):
        source.draw(1, 0, 0)


def test_a_caption_is_encoded_once_while_it_is_kept(table, monkeypatch):
    monkeypatch.setattr("swiftvideo_fast.data.videos.TEXTS", 3)
    codec = encoders.Toy()
    source = pipeline.videos_of(table.path, codec)
    drawn = [source.text(caption) for caption in ("a b", "c", "a b", "d", "e", "a b")]
    assert codec.asked == ["a b", "c", "d", "e", "a b"] and torch.equal(drawn[0], drawn[5])
    assert torch.equal(drawn[0], codec.text(["a b"])[0])


# Ahead.

class Counted:
    """A source that records its draws."""

    def __init__(self, source):
        self.source, self.asked, self.closed = source, [], False

    def close(self):
        self.closed = True

    def draw(self, count, seed, position):
        self.asked.append(position)
        if position >= 100:
            raise ValueError(f"nothing at {position}")
        return self.source.draw(count, seed, position)


def test_batches_drawn_ahead_are_those_of_the_source(videos):
    plain = pipeline.shards_of(videos / "shards")
    ahead = Prefetched(Counted(plain), ahead=2)
    for position in (0, 6, 12, 18, 3, 9, 0):                            # rank 0 of 3, then somewhere else
        assert torch.equal(ahead.draw(2, 0, position).x0, plain.draw(2, 0, position).x0)
    asked = ahead.source.asked
    assert asked.count(12) == asked.count(18) == 1                      # once, ahead
    ahead.draw(2, 0, 30)
    ahead.pool.submit(int).result()                                     # pending draws are finished
    assert asked[-2:] == [60, 90]
    ahead.close()
    assert ahead.source.closed


def test_an_error_ahead_comes_when_its_batch_is_asked_for(videos):
    ahead = Prefetched(Counted(pipeline.shards_of(videos / "shards")))
    for position in (98, 99):
        ahead.draw(1, 0, position)
    with pytest.raises(ValueError, match="nothing at 100"):
        ahead.draw(1, 0, 100)
    ahead.close()
