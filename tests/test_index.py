"""The index: every file probed, captions matched, rejects with reasons."""

import argparse
import csv
import os
import signal
import unicodedata
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
import synthetic

pytest.importorskip("pyarrow")

from swiftvideo_fast.data import captions, files  # noqa: E402
from swiftvideo_fast.data import index as module  # noqa: E402
from swiftvideo_fast.data.decode import Framing, PyAv  # noqa: E402
from swiftvideo_fast.data.files import Place  # noqa: E402
from swiftvideo_fast.data.index import Index, index, rejects_of  # noqa: E402
from swiftvideo_fast.data.probe import Video, probe  # noqa: E402


def film(path: Path, fps: float = 24, frames: int = 6, encoder: str = "libx264", **options) -> Path:
    return synthetic.write_video(path, encoder, synthetic.constant(fps, frames), **options)


def table(path: Path, rows: dict[str, str], header: str = "video,caption") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows.items()])
    return path


def rejected(out: Path) -> dict[str, str]:
    with rejects_of(out).open(encoding="utf-8", newline="") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


# Probing.

@pytest.mark.parametrize("encoder", synthetic.CODECS)
def test_a_probe_tells_codec_size_and_the_time_of_every_frame(encoder, tmp_path):
    suffix, _ = synthetic.CODECS[encoder]
    times = synthetic.constant(24, 30) if encoder == "mpeg4" else synthetic.varying(3, 2.0)
    video = probe(synthetic.write_video(tmp_path / f"a{suffix}", encoder, times, width=98, height=62))
    assert video.codec == {"libx264": "h264", "libvpx-vp9": "vp9", "libx265": "hevc", "libsvtav1": "av1",
                           "mpeg4": "mpeg4"}[encoder]
    assert (video.width, video.height, video.rotation, video.pixels) == (98, 62, 0, "yuv420p")
    assert np.allclose((video.times - video.times[0]) * float(video.tick), times, atol=6e-4)
    assert video.vfr == (encoder != "mpeg4")
    again = Video.of(video.as_dict())
    assert np.array_equal(again.times, video.times) and again.as_dict() == video.as_dict()


@pytest.mark.parametrize("fps", [10, 16, 23.976, 25, 29.97, 60])
def test_rounding_to_ticks_is_no_varying_rate(fps, tmp_path):
    video = probe(film(tmp_path / "a.webm", fps, 40, "libvpx-vp9"))
    assert not video.vfr and abs(video.fps - fps) < 0.02 * fps


@pytest.mark.parametrize("turns, rotation", [(0, 0), (1, 90), (2, 180), (3, -90)])
def test_a_probe_tells_how_the_picture_is_turned(turns, rotation, tmp_path):
    video = probe(film(tmp_path / "a.mp4", width=64, height=80, quarter_turns=turns))
    assert abs(video.rotation) == abs(rotation) and (rotation in {0, 180, -180} or video.rotation == rotation)
    assert (video.width, video.height) == ((80, 64) if turns % 2 else (64, 80))


@pytest.mark.parametrize("encoder, suffix", [("libx264", ".mp4"), ("mpeg4", ".avi")])
def test_damage_inside_one_frame_is_seen_though_the_decoder_conceals_it(encoder, suffix, tmp_path):
    path = film(tmp_path / f"a{suffix}", frames=100, encoder=encoder)
    with av.open(str(path)) as file:
        places = [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size]
    start, size = places[40]
    raw = bytearray(path.read_bytes())
    raw[start + size // 2:start + size] = np.random.default_rng(0).bytes(size - size // 2)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="damaged or truncated: the frame at 1.* s is incomplete"):
        probe(path)


def test_a_file_that_was_trimmed_without_encoding_shows_what_is_left(tmp_path):
    """`ffmpeg -ss 1 -c copy`: earlier frames are still stored and hidden by an edit list."""
    path = film(tmp_path / "whole.mp4", frames=100)
    options = {"use_editlist": "1", "avoid_negative_ts": "disabled"}
    with av.open(str(path)) as whole, av.open(str(tmp_path / "a.mp4"), "w", options=options) as file:
        stream = file.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                second = round(1 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - second, packet.dts - second, stream
                file.mux(packet)
    video = probe(tmp_path / "a.mp4")
    assert len(video.times) == 76 and abs(video.seconds - 75 / 24) < 0.01
    framing = Framing(5, 24.0, 64, 64)
    for start in (0, 40):
        shown = PyAv().window(tmp_path, Place("", "a.mp4"), video, framing.choose(video, start), framing)
        times = [synthetic.read_time(frame) for frame in shown.permute(1, 2, 3, 0).numpy()]
        assert np.allclose(times, [1000 + 1000 * (start + i) / 24 for i in range(5)], atol=1)


def test_a_picture_is_no_video(tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a picture"):
        probe(tmp_path / "a.png")


# Captions.

def test_captions_keep_their_commas_quotes_and_lines(tmp_path):
    texts = {f"{i}.mp4": text for i, text in enumerate(synthetic.CAPTIONS)}
    path = table(tmp_path / "a.csv", texts)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())           # as Excel saves it
    assert captions.read(path) == {name: {text} for name, text in texts.items()}


def test_names_match_by_path_then_by_file_name_and_by_any_spelling_of_accents():
    places = [Place("", "a/x.mp4"), Place("", "b/y.mp4"), Place("part0.zip", "z.mp4"),
              Place("", unicodedata.normalize("NFD", "é.mp4"))]
    told = {"a/x.mp4": {"1"}, "y.mp4": {"2"}, "z.mp4": {"3"}, "é.mp4": {"4"}}
    matched, rejects = captions.match(places, told, "a.csv")
    assert list(matched.values()) == ["1", "2", "3", "4"] and set(matched) == set(places) and not rejects


def test_what_has_no_one_caption_is_left_out_for_its_reason():
    places = [Place("", f"{name}.mp4") for name in ("a/x", "b/x", "none", "two", "empty", "twice")]
    told = {"x.mp4": {"?"}, "two.mp4": {"1", "2"}, "empty.mp4": {""}, "gone.mp4": {"1"},
            "twice.mp4": {"same"}}
    matched, rejects = captions.match(places, told, "a.csv")
    assert matched == {Place("", "twice.mp4"): "same"}
    assert {str(place): why for place, why in rejects.items()} == {
        "a/x.mp4": "a.csv says x.mp4, which is also b/x.mp4; give the path there",
        "b/x.mp4": "a.csv says x.mp4, which is also a/x.mp4; give the path there",
        "none.mp4": "no caption in a.csv", "two.mp4": "different captions in a.csv",
        "empty.mp4": "an empty caption in a.csv", "gone.mp4": "listed in a.csv, but there is no such file"}


@pytest.mark.parametrize("raw, why", [
    (b"name,text\na.mp4,hello\n", "columns are name, text; it lacks video"), (b"", "columns are none"),
    ("video,caption\na.mp4,caf\xe9\n".encode("latin-1"), "not a csv of captions .*want UTF-8"),
], ids=["other columns", "empty", "latin"])
def test_a_csv_of_another_kind_is_one_error(raw, why, tmp_path):
    (tmp_path / "a.csv").write_bytes(raw)
    with pytest.raises(ValueError, match=why):
        captions.read(tmp_path / "a.csv")


# Archives.

def archived(folder: Path, names: list[str], pieces: int = 0) -> Path:
    """Returns a zip of short videos, split as by `split`."""
    path = folder / "OpenVid_part7.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.write(film(folder / "film.mp4"), name)
    (folder / "film.mp4").unlink()
    if pieces:
        raw, size = path.read_bytes(), -(-path.stat().st_size // pieces)
        for i in range(pieces):
            (folder / f"OpenVid_part7_parta{'abc'[i]}").write_bytes(raw[i * size:(i + 1) * size])
        path.unlink()
    return path


@pytest.mark.parametrize("pieces", [0, 3])
def test_videos_in_a_zip_are_read_whole_or_in_pieces(pieces, tmp_path):
    archived(tmp_path, ["video/a.mp4", "b.mp4", "__MACOSX/._b.mp4"], pieces)
    told = table(tmp_path / "OpenVid-1M.csv", {"a.mp4": "one", "b.mp4": "two"},
                 "video,caption,aesthetic score")
    assert index(tmp_path, told, tmp_path / "i.parquet") == (2, {})
    rows = Index(tmp_path / "i.parquet")
    assert [(str(rows[i][0]), rows[i][2]) for i in range(2)] == [
        ("OpenVid_part7.zip/b.mp4", "two"), ("OpenVid_part7.zip/video/a.mp4", "one")]
    assert files.read(tmp_path, rows[0][0]) == files.read(tmp_path, rows[1][0])


def test_a_missing_piece_and_a_damaged_archive_are_left_out_by_name(tmp_path):
    archived(tmp_path, ["a.mp4"], pieces=3)
    (tmp_path / "OpenVid_part7_partab").unlink()
    (tmp_path / "OpenVid_part8.zip").write_bytes(b"PK no zip")
    film(tmp_path / "good.mp4")
    told = table(tmp_path / "a.csv", {"good.mp4": "good"})
    assert index(tmp_path, told, tmp_path / "i.parquet")[0] == 1
    why = rejected(tmp_path / "i.parquet")
    assert "a part before OpenVid_part7_partac is missing" in why["OpenVid_part7.zip"]
    assert "not a zip file" in why["OpenVid_part8.zip"]


# The index.

def test_an_index_does_not_depend_on_the_processes(videos, tmp_path):
    rows, rejects = index(videos / "set", videos / "set/captions.csv", tmp_path / "i.parquet", workers=2)
    read = Index(tmp_path / "i.parquet").table
    assert read.equals(Index(videos / "index.parquet").table) and rows == len(read)
    assert rejected(tmp_path / "i.parquet") == {str(place): why for place, why in rejects.items()}


def test_an_index_goes_on_from_its_journal_and_looks_again_at_what_has_changed(tmp_path, monkeypatch):
    for name in "abc":
        film(tmp_path / f"set/{name}.mp4")
    told = table(tmp_path / "a.csv", {f"{name}.mp4": name for name in "abc"})
    looked, real = [], module.probe

    def once(path):
        looked.append(path.name)
        if len(looked) in {3, 5}:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(module, "probe", once)
    journal = tmp_path / "i.parquet.journal"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            index(tmp_path / "set", told, tmp_path / "i.parquet")
        journal.write_bytes(journal.read_bytes() + b'{"archive": "", "pa')     # an incomplete line
        film(tmp_path / "set/a.mp4", frames=9)
    assert index(tmp_path / "set", told, tmp_path / "i.parquet")[0] == 3
    assert looked == ["a.mp4", "b.mp4", "c.mp4", "a.mp4", "c.mp4", "c.mp4"] and not journal.exists()
    assert len(Index(tmp_path / "i.parquet")[0][1].times) == 9


def crash(source):
    """A probe whose decoder crashes on one file."""
    if source.name == "b.mp4":
        os.kill(os.getpid(), signal.SIGKILL)
    return probe(source)


def test_a_file_that_crashes_the_decoder_is_left_out_and_the_others_go_on(tmp_path, monkeypatch):
    for name in "abc":
        film(tmp_path / f"{name}.mp4")
    places = [Place("", f"{name}.mp4") for name in "abc"]
    import multiprocessing

    monkeypatch.setattr(module, "probe", crash)
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: multiprocessing.context.ForkContext())
    monkeypatch.setattr(multiprocessing.context.ForkContext, "set_forkserver_preload", lambda *_: None)
    found = dict(module._probed(tmp_path, places, workers=2))
    assert found[places[1]] == {"reason": module.CRASHED}
    assert all("video" in found[place] for place in (places[0], places[2]))


def test_the_command_tells_what_it_left_out(videos, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    out = tmp_path / "i.parquet"
    told = str(videos / "set/captions.csv")
    given = [str(videos / "set"), "--captions", told, "--out", str(out), "--workers", "1"]
    module.run(parser.parse_args(given))
    said = capsys.readouterr().out
    assert f"{len(Index(out))} videos; 12 left out, see {rejects_of(out)}" in said and "3  empty file" in said


def test_what_cannot_be_indexed_is_one_error(tmp_path):
    told = table(tmp_path / "a.csv", {"a.mp4": "a"})
    with pytest.raises(ValueError, match="no such folder"):
        index(tmp_path / "none", told, tmp_path / "i.parquet")
    with pytest.raises(ValueError, match="no such file"):
        index(tmp_path, tmp_path / "none.csv", tmp_path / "i.parquet")
    with pytest.raises(ValueError, match="i.parquet: no such file; write an index with"):
        Index(tmp_path / "i.parquet")
    index(tmp_path, told, tmp_path / "i.parquet")
    with pytest.raises(ValueError, match="lists no video; see .*i.rejects.csv"):
        Index(tmp_path / "i.parquet")
