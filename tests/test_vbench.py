"""The folder for VBench, by its own file checks; its scores in the paper's columns.

Against the package: `python tests/compare_vbench.py` in VBench's environment.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from swiftvideo_fast.data.clips import write_video
from swiftvideo_fast.metrics import vbench
from swiftvideo_fast.metrics.vbench import Clip, name_of, prepare, read_table
from swiftvideo_fast.metrics.vbench_scores import COLUMNS, DIMENSIONS, Scores, read

CONSTANTS = {               # VBench's scripts/constant.py for I2V: weight, least, greatest
    "i2v_subject": (1, 0.1462, 1.0), "i2v_background": (1, 0.2615, 1.0),
    "subject_consistency": (1, 0.1462, 1.0), "background_consistency": (1, 0.2615, 1.0),
    "motion_smoothness": (1, 0.7060, 0.9975), "dynamic_degree": (0.5, 0, 1),
    "aesthetic_quality": (1, 0, 1), "imaging_quality": (1, 0, 1), "temporal_flickering": (1, 0.6293, 1.0),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Writes videos of 52x30 (as 832x480) and another size, and wide and tall images."""
    folder = tmp_path_factory.mktemp("made")
    rng = torch.Generator().manual_seed(0)
    for i in range(5):
        write_video(folder / f"{i}.mp4", torch.rand(3, 4, 30, 52, generator=rng) * 2 - 1)
    write_video(folder / "square.mp4", torch.zeros(3, 4, 32, 32))
    Image.new("RGBA", (100, 30), (255, 0, 0, 9)).save(folder / "wide.png")
    Image.new("L", (52, 90)).save(folder / "tall.jpg")
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def clip(made, prompt="a cat", image="wide.png", video="0.mp4"):
    return Clip(prompt, made / image, made / video)


def found_by_vbench(folder, dimension):
    """Returns videos and images as VBench 0.1.5 finds them: five names per prompt, images in its folder."""
    names, pairs = {p.name for p in (folder / "videos").iterdir()}, []
    for entry in json.loads((folder / "full_info.json").read_text()):
        if dimension in entry["dimension"]:
            for i in range(5):
                if (name := f"{entry['prompt_en']}-{i}.mp4") in names:
                    pairs.append((name, folder / "vbench2_beta_i2v/data/crop/7-4" / entry["image_name"]))
    return pairs


def test_every_video_and_image_is_where_vbench_looks(made, tmp_path):
    long = "a very long caption / with a slash, " * 20
    clips = [clip(made, "a cat", "wide.png", f"{i}.mp4") for i in range(5)]
    clips += [clip(made, long, "tall.jpg", f"{i}.mp4") for i in (3, 1)]
    assert prepare(tmp_path / "out", clips) == "7-4"
    for dimension in DIMENSIONS:
        pairs = found_by_vbench(tmp_path / "out", dimension)
        assert [name for name, _ in pairs[:5]] == [f"a cat-{i}.mp4" for i in range(5)]
        assert [name for name, _ in pairs[5:]] == [f"{name_of(long)}-{i}.mp4" for i in range(2)]
        for _, image in pairs:
            with Image.open(image) as opened:
                assert opened.mode == "RGB"
                assert opened.width / opened.height == pytest.approx(52 / 30, rel=0.03)
    bytes_of = [(tmp_path / "out/videos" / name).read_bytes() for name, _ in pairs]
    assert bytes_of == [one.video.read_bytes() for one in clips]
    compile((tmp_path / "out/run.py").read_text(), "run.py", "exec")


def test_an_image_is_turned_and_cropped_as_the_model_saw_it(made, tmp_path):
    """As release.sample's frame_of: the EXIF orientation, then the centre."""
    image = Image.new("RGB", (60, 104), (0, 0, 0))
    image.paste((255, 0, 0), (0, 52, 60, 104))              # its lower half is on the left after rotation
    exif = image.getexif()
    exif[0x0112] = 6                                        # turn clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    prepare(tmp_path / "out", [Clip("a cat", tmp_path / "turned.png", made / "0.mp4")])
    with Image.open(tmp_path / "out/vbench2_beta_i2v/data/crop/7-4/a cat.png") as found:
        assert found.size == (104, 60)
        assert found.getpixel((10, 30)) == (255, 0, 0) and found.getpixel((90, 30)) == (0, 0, 0)


def test_run_takes_each_dimension_once_and_goes_on_where_it_was(made, tmp_path, monkeypatch):
    """With a stub of the package that records calls and writes the same files."""
    prepare(tmp_path / "out", [clip(made)])
    calls = []

    class VBenchI2V:
        def __init__(self, device, info, output):
            assert json.loads(Path(info).read_text()) and (device, output) == ("cpu", "results")

        def evaluate(self, videos, name, dimension_list, resolution):
            calls.append((videos, name, dimension_list, resolution))
            (tmp_path / "out/results").mkdir(exist_ok=True)
            (tmp_path / f"out/results/{name}_eval_results.json").write_text(
                json.dumps({name: [0.75, [{"video_path": "x", "video_results": 0.75}]]}))

    monkeypatch.setitem(sys.modules, "vbench2_beta_i2v", type(sys)("vbench2_beta_i2v"))
    sys.modules["vbench2_beta_i2v"].VBenchI2V = VBenchI2V
    monkeypatch.chdir(tmp_path)
    source = (tmp_path / "out/run.py").read_text()
    for words in (["cpu", "i2v_subject"], ["cpu"], ["cpu"]):
        monkeypatch.setattr(sys, "argv", ["run.py", *words])
        exec(compile(source, "run.py", "exec"), {"__file__": str(tmp_path / "out/run.py")})
    order = ["i2v_subject", *(name for name in DIMENSIONS if name != "i2v_subject")]
    assert calls == [("videos", name, [name], "7-4") for name in order]
    assert [*read(tmp_path / "out").columns()] == [*COLUMNS]


@pytest.mark.parametrize("width, height, ratio", [
    (832, 480, "7-4"), (1280, 720, "16-9"), (512, 512, "1-1"), (512, 320, "8-5"), (480, 832, "1-1")])
def test_the_ratio_is_the_nearest(width, height, ratio, monkeypatch, made):
    from swiftvideo_fast.data.shots import ClipFile

    monkeypatch.setattr(vbench, "probe", lambda path: ClipFile(path, width, height, 16.0))
    assert vbench._ratio([made / "0.mp4"]) == (ratio, width / height)


def test_names_are_prompts_where_a_file_can_be_called_so():
    assert name_of("a cat, running") == "a cat, running"
    awkward = ["a/b", "x" * 241, ".hidden", "two\nlines", "ä" * 121, "日本" * 90, "///"]
    names = [name_of(prompt) for prompt in awkward]
    assert len({*names}) == len(awkward)
    for name in names:
        assert len(name.encode()) <= 240 and "/" not in name and name.isprintable() and name[0] not in ". "


@pytest.mark.parametrize("wrong, says", [
    (lambda made: [clip(made, video=f"{i}.mp4") for i in (0, 1, 2, 3, 4, 0)], "has 6 videos; VBench takes 5"),
    (lambda made: [clip(made), clip(made, image="tall.jpg")], "and of another image"),
    (lambda made: [clip(made), clip(made, video="square.mp4")], "52x30, .*square.mp4 is 32x32"),
    (lambda made: [clip(made, video="broken.mp4")], "broken.mp4: no readable video"),
    (lambda made: [clip(made, video="missing.mp4")], "missing.mp4: no readable video"),
    (lambda made: [clip(made, video="wide.png")], "want a .mp4"),
    (lambda made: [clip(made, image="missing.png")], "missing.png: not a readable image"),
    (lambda made: [clip(made, image="0.mp4")], "0.mp4: not a readable image"),
    (lambda made: [], "there is none"),
])
def test_what_vbench_would_trip_over_is_refused_and_nothing_is_written(made, tmp_path, wrong, says):
    with pytest.raises(ValueError, match=says):
        prepare(tmp_path / "out", wrong(made))
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists; choose another folder"):
        prepare(tmp_path / "out", [clip(made)])


def test_the_suite_must_be_whole(made, tmp_path):
    info = tmp_path / "info.json"
    entries = [{"prompt_en": "a cat", "dimension": ["i2v_subject"], "image_name": "a cat.jpg"},
               {"prompt_en": "a hill", "dimension": ["i2v_background"], "image_name": "hill.jpg"},
               {"prompt_en": "a hill, camera pans left", "dimension": ["camera_motion"],
                "image_name": "hill.jpg"}]
    info.write_text(json.dumps(entries))
    clips = [clip(made, p, "tall.jpg", f"{i}.mp4") for p in ("a hill", "a cat") for i in range(5)]
    with pytest.raises(ValueError, match="1 of the suite's 2 prompts .* the first 'a hill'"):
        prepare(tmp_path / "out", clips[1:], info)
    with pytest.raises(ValueError, match="1 prompts are not in .*'a dog'"):
        prepare(tmp_path / "out", [*clips, clip(made, "a dog")], info)
    prepare(tmp_path / "out", clips, info)
    assert json.loads((tmp_path / "out/full_info.json").read_text()) == entries[:2]
    (name, image), = found_by_vbench(tmp_path / "out", "i2v_background")[:1]
    assert name == "a hill-0.mp4" and image.name == "hill.jpg"
    with Image.open(image) as opened:
        assert opened.size == (52, 90)                      # the suite's images are already cropped
    for text in ("[1]", "{}x", "[" * 100_000, '{"a": 1}', '[{"prompt_en": "a cat"}]'):
        info.write_text(text)
        with pytest.raises(ValueError, match="not vbench2_i2v_full_info.json"):
            prepare(tmp_path / "other", clips, info)
    for key, value in (("image_name", "../../../out.jpg"), ("prompt_en", "a/b"), ("dimension", 7)):
        info.write_text(json.dumps([entries[0] | {key: value}]))
        with pytest.raises(ValueError, match="lacks dimensions, or it or its image is no valid"):
            prepare(tmp_path / "other", clips, info)
    assert not (tmp_path / "other").exists()


def test_a_table_gives_prompts_images_and_videos(tmp_path):
    table = tmp_path / "clips.csv"
    for mark in ("", "\ufeff"):                             # as spreadsheets write
        table.write_text(f'{mark}prompt,video,image\n"a cat, running",v/0.mp4,cat.png\n')
        assert read_table(table) == [Clip("a cat, running", tmp_path / "cat.png", tmp_path / "v/0.mp4")]
    for text, says in (("video,prompt\nx,y\n", "no column 'image'"),
                       ("prompt,image,video\na,,c\n", "row 1 lacks"),
                       ("prompt,image,video\na\n", "row 1 lacks")):
        table.write_text(text)
        with pytest.raises(ValueError, match=says):
            read_table(table)
    table.write_bytes(b"prompt,image,video\n\xff,b,c\n")
    with pytest.raises(ValueError, match="cannot be read"):
        read_table(table)
    with pytest.raises(ValueError, match=r"none\.csv: cannot be read"):
        read_table(tmp_path / "none.csv")


def scores(**changed):
    raw = {name: 0.9 for name in DIMENSIONS} | {"dynamic_degree": 0.4} | changed
    return Scores(raw, dict.fromkeys(raw, 7))


def test_columns_are_weighted_means_of_scaled_dimensions():
    """By VBench's constants, written out."""
    assert {name: (d.weight, d.least, d.greatest) for name, d in DIMENSIONS.items()} == CONSTANTS
    found = scores().columns()
    temporal = [(0.9 - 0.1462) / 0.8538, (0.9 - 0.2615) / 0.7385, (0.9 - 0.706) / 0.2915, 0.5 * 0.4]
    assert found == pytest.approx({"temporal quality": 100 * sum(temporal) / 3.5, "frame quality": 90.0,
                                   "I2V subject": 100 * (0.9 - 0.1462) / 0.8538,
                                   "I2V background": 100 * (0.9 - 0.2615) / 0.7385}, rel=1e-12)
    assert scores(temporal_flickering=0.7).columns() == found
    perfect = scores(**{name: d.greatest for name, d in DIMENSIONS.items()}).columns()
    assert perfect == pytest.approx(dict.fromkeys(COLUMNS, 100.0))
    partial = Scores({"aesthetic_quality": 0.5, "i2v_subject": 1.0}, {"aesthetic_quality": 1,
                                                                      "i2v_subject": 1})
    assert partial.columns() == {"I2V subject": 100.0}
    assert "missing: subject_consistency" in str(partial) and "frame quality" in str(partial)


def test_results_that_are_no_scores_are_refused(tmp_path):
    results = tmp_path / "results"
    with pytest.raises(ValueError, match="no .*_eval_results.json in it; run"):
        read(tmp_path)
    results.mkdir()
    file = results / "a_eval_results.json"
    for text, says in (("{", "not VBench's results"), ("[]", "not VBench's results"),
                       ('{"x": 1}', "not VBench's results"),
                       ('{"i2v_subject": [NaN, []]}', "is nan; want a number from 0 to 1"),
                       ('{"imaging_quality": [67.2, [1]]}', "is 67.2")):
        file.write_text(text)
        with pytest.raises(ValueError, match=says):
            read(tmp_path)
    for name in "ab":
        (results / f"{name}_eval_results.json").write_text('{"i2v_subject": [0.5, [1]]}')
    with pytest.raises(ValueError, match="i2v_subject is in .*a_eval.* and in .*b_eval"):
        read(tmp_path)


def test_the_command_prepares_and_reads(made, tmp_path, monkeypatch, capsys):
    (tmp_path / "clips.csv").write_text(f"prompt,image,video\na cat,{made / 'wide.png'},{made / '0.mp4'}\n")
    out = str(tmp_path / "out")
    for words, code in ((["prepare", out, "--table", str(tmp_path / "clips.csv")], 0), (["read", out], 2)):
        monkeypatch.setattr(sys, "argv", ["vbench", *words])
        assert vbench.main() == code
    said = capsys.readouterr()
    assert f"python {out}/run.py" in said.out
    assert said.err.startswith("vbench: ") and said.err.count("\n") == 1
