"""Windows: frames by time stamp, upright, cropped and resized, equal from PyAV and DALI."""

import logging
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pipeline
import pytest
import synthetic
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from swiftvideo_fast.data import dali, decode
from swiftvideo_fast.data.decode import Framing, PyAv, decoder, fit
from swiftvideo_fast.data.files import Place
from swiftvideo_fast.data.probe import Video, probe

needs_dali = pytest.mark.skipif(not dali.installed(), reason="DALI is not installed")


def video(times, tick=Fraction(1, 1000), **changes) -> Video:
    about = dict(codec="h264", pixels="yuv420p", width=64, height=64, rotation=0, aspect=1.0, matrix=2,
                 full=False)
    return Video(**about | changes, tick=tick, times=np.array(times, np.int64))


def window(path: Path, start: int, framing: Framing, how=None) -> torch.Tensor:
    about = probe(path)
    how = how or PyAv()
    return how.window(path.parent, Place("", path.name), about, framing.choose(about, start), framing)


# Which frames.

@given(gaps=st.lists(st.integers(1, 200), min_size=1, max_size=60), start=st.integers(0, 50),
       frames=st.integers(2, 40), rate=st.sampled_from([8.0, 16.0, 23.976, 30.0]),
       tick=st.sampled_from([Fraction(1, 1000), Fraction(1001, 30000)]))
def test_no_frame_is_nearer_than_the_one_chosen(gaps, start, frames, rate, tick):
    clip = video([5, *(5 + np.cumsum(gaps))], tick)
    start %= len(clip.times)
    chosen = Framing(frames, rate, 16, 16).choose(clip, start)
    exact = [Fraction(int(t)) * tick for t in clip.times]
    step = 1 / Fraction(rate).limit_denominator(1000)
    for k, i in enumerate(chosen):
        far = [abs(t - exact[start] - k * step) for t in exact]
        assert far[i] == min(far) and far.index(min(far)) == i
    assert chosen[0] == start


def test_frames_of_24_a_second_are_taken_at_16_with_ties_to_the_earlier():
    clip = video(range(12), Fraction(1, 24))
    assert Framing(7, 16.0, 16, 16).choose(clip, 0).tolist() == [0, 1, 3, 4, 6, 7, 9]


def test_a_window_begins_wherever_it_fits_and_nowhere_else():
    framing = Framing(5, 10.0, 16, 16)                  # 0.4 s, half a frame less will do
    assert [framing.starts(video(range(0, end + 1, 50))) for end in (300, 350, 400, 450)] == [0, 1, 2, 3]
    assert framing.seconds == pytest.approx(0.35)


def test_a_framing_of_nothing_is_refused():
    for wrong in (dict(frames=1), dict(rate=0.0), dict(width=0), dict(height=-8)):
        with pytest.raises(ValueError, match="Framing: .*want 2 frames or more"):
            Framing(**wrong)


# Decoding.

@pytest.mark.parametrize("encoder, varies", [
    *((encoder, False) for encoder in synthetic.CODECS),
    *((encoder, True) for encoder in synthetic.CODECS if encoder != "mpeg4")])           # an AVI has one rate
def test_frames_are_those_whose_time_stamps_are_nearest(encoder, varies, tmp_path):
    times = synthetic.varying(1, 4.0) if varies else synthetic.constant(24, 97)
    path = synthetic.write_video(tmp_path / f"a{synthetic.CODECS[encoder][0]}", encoder, times)
    about, framing = probe(path), pipeline.FRAMING
    for start in range(0, framing.starts(about), 7):
        pipeline.check_frames(window(path, start, framing), about.times * float(about.tick), start)


@pytest.mark.parametrize("encoder", ["libx264", "libx265"])
def test_a_window_after_a_seek_has_the_bytes_of_decoding_from_the_start(encoder, tmp_path):
    """Open GOPs with B-frames: some frames displayed before a keyframe need the previous GOP."""
    path = synthetic.write_video(tmp_path / "a.mp4", encoder, synthetic.constant(24, 120))
    with av.open(str(path)) as file:
        whole = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    framing = Framing(4, 24.0, 80, 64)
    for start in range(110):
        got = window(path, start, framing).permute(1, 2, 3, 0).numpy()
        assert np.array_equal(got, np.stack(whole[start:start + 4])), start


def test_a_frame_before_the_keyframe_that_a_seek_lands_on_is_not_taken():
    """A decoder may return a broken frame 98 after a seek to the keyframe at 100."""
    def frame(pts: int, key: bool, good: bool = True) -> SimpleNamespace:
        return SimpleNamespace(pts=pts, key_frame=key, good=good)

    class Container:
        streams = SimpleNamespace(video=[SimpleNamespace(codec_context=SimpleNamespace(width=64))])
        shown = [frame(pts, pts % 50 == 0) for pts in range(0, 200, 2)]

        def seek(self, target, stream):
            self.shown = [frame(98, False, good=False), *(f for f in Container.shown if f.pts >= 100)]
            if target < 90:
                self.shown = [f for f in Container.shown if f.pts >= 50]

        def decode(self, stream):
            return iter(self.shown)

    taken = []
    decode._visit(Container(), [98, 100, 104], video(range(0, 200, 2), Fraction(1, 25)), taken.append)
    assert [f.pts for f in taken] == [98, 100, 104] and all(f.good for f in taken)


def test_a_frame_that_is_shown_twice_is_there_twice(tmp_path):
    path = synthetic.write_video(tmp_path / "a.mp4", "libx264", synthetic.constant(8, 30))
    shown = window(path, 3, Framing(9, 16.0, 64, 64))
    assert torch.equal(shown[:, 0:8:2], shown[:, 1:9:2]) and not torch.equal(shown[:, 1], shown[:, 2])


@pytest.mark.parametrize("turns", range(4))
def test_a_turned_picture_is_upright(turns, tmp_path):
    size = {"width": 64, "height": 80}
    upright = synthetic.write_video(tmp_path / "0.mp4", "libx264", synthetic.constant(24, 12), **size)
    turned = synthetic.write_video(tmp_path / "1.mp4", "libx264", synthetic.constant(24, 12), **size,
                                    quarter_turns=turns)
    framing = Framing(5, 24.0, 48, 80)
    a, b = (window(path, 2, framing).float() for path in (upright, turned))
    assert (a - b).abs().mean() < 3


def test_a_file_that_is_no_longer_that_of_the_index_is_named(tmp_path):
    path = synthetic.write_video(tmp_path / "a.mp4", "libx264", synthetic.constant(24, 40))
    about, place, framing = probe(path), Place("", "a.mp4"), Framing(9, 24.0, 64, 64)
    indices = framing.choose(about, 30)
    synthetic.write_video(path, "libx264", synthetic.constant(24, 34))
    with pytest.raises(ValueError, match=r"a.mp4: 5 indexed frames are missing, the first at 1.42 s"):
        PyAv().window(tmp_path, place, about, indices, framing)
    path.write_bytes(b"no video")
    with pytest.raises(ValueError, match="a.mp4: no longer decodes .*index the folder again"):
        PyAv().window(tmp_path, place, about, indices, framing)
    path.unlink()
    with pytest.raises(ValueError, match="a.mp4: no longer decodes"):
        PyAv().window(tmp_path, place, about, indices, framing)


# Resize and crop.

@pytest.mark.parametrize("width, height, aspect", [
    (64, 48, 1.0), (100, 48, 1.0), (64, 90, 1.0), (63, 47, 1.0), (32, 48, 2.0), (40, 20, 1.0)])
def test_a_picture_keeps_its_shape_and_its_middle(width, height, aspect):
    """A ramp keeps its centre, and has the slope given by the scale."""
    framing = Framing(2, 16.0, 32, 24)
    for axis, size, out in ((2, width, 32), (1, height, 24)):
        grey = np.linspace(20, 230, size)
        x = torch.from_numpy(np.broadcast_to(grey[:, None] if axis == 1 else grey, (height, width)).copy())
        x = x.round().byte()[None, :, :, None].expand(1, height, width, 3)
        got = fit(x, video([0, 1], width=width, height=height, aspect=aspect), framing).float()
        assert got.shape == (1, 24, 32, 3)
        line = got[0, :, :, 0].mean(0 if axis == 2 else 1)
        scale = max(24 / height, 32 / (width * aspect))         # output pixels per input pixel, upright
        slope = 210 / (size - 1) / scale / (aspect if axis == 2 else 1)
        middle = line[out // 4:-(out // 4)]
        assert torch.allclose(middle.diff().mean(), torch.tensor(slope), rtol=0.1)
        assert abs(middle.mean() - 125) < 1.5 * slope * scale + 1


@pytest.mark.parametrize("width, height", [(96, 60), (131, 77), (40, 30)])
def test_a_picture_is_resized_as_pillow_does(width, height):
    rng = torch.Generator().manual_seed(0)
    picture = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=rng)
    framing = Framing(2, 16.0, 32, 32 * height // width)
    got = fit(picture[None], video([0, 1], width=width, height=height), framing)[0]
    h = min(height, round(framing.height * width / 32))
    cut = picture[(height - h) // 2:(height - h) // 2 + h].numpy()
    want = Image.fromarray(cut).resize((32, framing.height), Image.Resampling.BICUBIC)
    assert (got.int() - torch.from_numpy(np.array(want)).int()).abs().max() <= 1


def test_a_picture_of_the_size_wanted_is_left_alone():
    x = torch.randint(256, (3, 24, 32, 3), dtype=torch.uint8)
    assert torch.equal(fit(x, video([0, 1]), Framing(3, 16.0, 32, 24)), x)


# DALI.

@needs_dali
@pytest.mark.parametrize("size", [(80, 64), (98, 62)])
@pytest.mark.parametrize("varies", [False, True], ids=["cfr", "vfr"])
def test_dali_on_the_cpu_gives_the_bytes_of_pyav(size, varies, tmp_path):
    times = synthetic.varying(2, 4.0) if varies else synthetic.constant(24, 97)
    path = synthetic.write_video(tmp_path / "a.webm", "libvpx-vp9", times, width=size[0], height=size[1])
    how = decoder("dali")
    for start in (0, 5, 20, 3):
        got, want = (window(path, start, pipeline.FRAMING, by) for by in (how, PyAv(smooth=True)))
        assert torch.equal(got, want)
    plain = window(path, 3, pipeline.FRAMING)
    assert 0 < (plain.float() - want.float()).abs().mean() < 4      # the chroma between pixels differs


@needs_dali
def test_dali_turns_a_picture_and_keeps_the_colours_of_bt709(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libvpx-vp9", rate=24, options=synthetic.CODECS["libvpx-vp9"][1])
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 2_000_000
        stream.codec_context.colorspace = dali.BT709
        y, x = np.mgrid[:48, :64]
        for i in range(12):
            colours = np.stack([90 + x + i, 180 - y, 90 + y], -1).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(colours, format="rgb24")))
        file.mux(stream.encode())
    synthetic.turn(path, 1)
    about, framing = probe(path), Framing(5, 24.0, 48, 64)
    assert about.matrix == dali.BT709 and about.rotation == 90
    how = decoder("dali")
    got, want = (window(path, 2, framing, by).float() for by in (how, PyAv(smooth=True)))
    assert how.takes(about) and (got - want).abs().max() <= 2           # rounded twice
    wrong = how.frames(path.read_bytes(), np.arange(5))
    assert (dali.recolour(wrong).float() - wrong.float()).abs().mean() > 2


@needs_dali
def test_dali_leaves_to_pyav_what_it_cannot_take(tmp_path, caplog):
    path = synthetic.write_video(tmp_path / "a.mp4", "libx264", synthetic.constant(24, 60))
    with caplog.at_level(logging.INFO):
        how = decoder("dali")
        got = window(path, 3, pipeline.FRAMING, how)
        window(path, 4, pipeline.FRAMING, how)
    assert [r.message for r in caplog.records] == ["decoding h264 with pyav, smooth chroma"]
    assert torch.equal(got, window(path, 3, pipeline.FRAMING, PyAv(smooth=True)))
    assert how.takes(video([0, 1], codec="vp9"))
    for wrong in ({"full": True}, {"matrix": 9}, {"pixels": "yuv420p10le"}, {"codec": "hevc"}):
        assert not how.takes(video([0, 1], **{"codec": "vp9"} | wrong))


@needs_dali
def test_dalis_pipeline_for_the_gpu_decodes_on_the_gpu_what_it_is_fed(monkeypatch):
    from nvidia import dali as nvidia

    monkeypatch.setattr(nvidia.Pipeline, "build", lambda pipe: pipe._build_graph())     # all but the device
    graph = dali.pipeline(torch.device("cuda:1"))
    assert (graph.device_id, graph.max_batch_size, graph.prefetch_queue_depth) == (1, 1, 1)
    encoded, frames, video = (str(op.spec) for op in graph._ops)
    for source, name in ((encoded, "bytes"), (frames, "frames")):
        assert "OpSpec for ExternalSource" in source and f"Outputs:\n    {name}_cpu" in source
    assert "OpSpec for decoders__Video" in video and "device: mixed" in video
    assert "Inputs:\n    bytes_cpu\n    frames_cpu" in video and "_gpu" in video.split("Outputs:")[1]


@needs_dali
def test_dali_names_a_file_that_it_cannot_decode_and_goes_on(tmp_path):
    good = synthetic.write_video(tmp_path / "a.webm", "libvpx-vp9", synthetic.constant(24, 60))
    about, decode = probe(good), decoder("dali")
    bad = tmp_path / "b.webm"
    bad.write_bytes(good.read_bytes()[:300])
    indices = pipeline.FRAMING.choose(about, 0)
    with pytest.raises(ValueError, match="b.webm: DALI does not decode it"):
        decode.window(tmp_path, Place("", "b.webm"), about, indices, pipeline.FRAMING)
    pixels = decode.window(tmp_path, Place("", "a.webm"), about, indices, pipeline.FRAMING)
    assert pixels.shape == (3, 33, 64, 64)


def test_the_decoder_is_chosen_by_device_and_by_what_is_installed(monkeypatch):
    made_of = []
    monkeypatch.setattr(dali, "Dali", lambda device: made_of.append(device) or "dali")
    for there in (True, False):
        monkeypatch.setattr(dali, "installed", lambda there=there: there)
        assert isinstance(decoder("auto", "cpu"), PyAv) and isinstance(decoder("pyav", "cuda"), PyAv)
        assert (decoder("auto", "cuda:1") == "dali") == there
    assert made_of == [torch.device("cuda:1")] and decoder("dali") == "dali"
    with pytest.raises(ValueError, match="decoder is 'ffmpeg'; want one of auto, pyav, dali"):
        decoder("ffmpeg")


def test_dali_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(dali, "installed", lambda: False)
    with pytest.raises(ImportError, match=r"pip install 'swiftvideo_fast\[dali\]'"):
        decode.decoder("dali")
