"""The report: one file, written atomically, with the given charts, pictures and text."""

import base64
import io
import re
from html.parser import HTMLParser

import av
import numpy as np
import pytest
import torch

from swiftvideo_fast.report.about import About, environment
from swiftvideo_fast.report.charts import Chart, Curves, Series, logged
from swiftvideo_fast.report.page import Headline, Pending, Text, write_report
from swiftvideo_fast.report.samples import Column, Samples, encoded, sprite_sheet
from swiftvideo_fast.report.tables import Row, comparison

ABOUT = About({"machine": "2 <cores>", "commit": "abc"}, {"ccd.yaml": "a: <b>"})


@pytest.fixture
def clip(rng):
    return torch.rand(3, 5, 16, 24, generator=rng) * 2 - 1


@pytest.fixture
def sections(clip):
    return [Text("", "Four steps, with `make demo`.\n\nA < B & C."),
            Samples("Held-out clips", ["a street"], [Column("condition", [clip[:, :1]])],
                    {"ccd": [Column("4 steps", [clip], "<new>")], "da": [Column("4 steps", [-clip])]}),
            Headline("6 times faster", "4 steps in place of 25: A < B"),
            comparison([Row("teacher", 4, {"frechet": [2.0]}), Row("student", 4, {"frechet": [1.0]})]),
            Curves("Training", [Chart("Loss", [Series("ccd", [0, 1, 2], [3.0, 2.0, 1.0])])]),
            Pending("Alignment", "the adversary")]


class Tags(HTMLParser):
    """Checks that tags nest, and collects them."""

    VOID = {"meta", "input", "br", "path", "circle", "rect"}

    def __init__(self, page):
        super().__init__()
        self.open, self.all = [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.all.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.all.append((tag, dict(attrs)))


def test_the_page_is_one_well_formed_file_that_fetches_nothing(tmp_path, sections):
    page = write_report(tmp_path / "run" / "report.html", "A <title>", sections, ABOUT).read_text()
    tags = Tags(page).all
    assert [t for t, a in tags if t in ("link", "iframe", "img") or "src" in a] == []
    assert {a["href"][0] for _, a in tags if "href" in a} == {"#"}
    assert set(re.findall(r"https?://[^\s\"']+|url\(|@import|fetch\(", page)) == {"http://www.w3.org/2000/svg"}
    assert "A &lt;title&gt;" in page and "A &lt; B &amp; C." in page and "<code>make demo</code>" in page
    assert "2 &lt;cores&gt; · abc" in page and "<pre>a: &lt;b&gt;</pre>" in page and "&lt;new&gt;" in page
    assert "Pending: shown after the adversary." in page
    assert list((tmp_path / "run").iterdir()) == [tmp_path / "run" / "report.html"]


def test_every_picture_and_control_has_a_label(tmp_path, sections):
    tags = Tags(write_report(tmp_path / "report.html", "Title", sections, ABOUT).read_text()).all
    labels = [a["aria-label"] for t, a in tags
              if t in ("svg", "canvas", "nav") or t == "input" and a["type"] == "range"]
    assert labels == ["Sections", "Frame", "a street: condition", "a street: 4 steps", "a street: 4 steps",
                      "Line chart, Loss: ccd from 3 to 1"]


def test_one_of_the_choices_is_shown(clip):
    columns = {name: [Column(name, [clip])] for name in ("ccd", "da", "ta")}
    tags = Tags(Samples("", ["a"], [Column("real", [clip])], columns).html()).all
    figures = [(a.get("data-choice"), "hidden" in a) for t, a in tags if t == "figure"]
    assert figures == [(None, False), ("0", False), ("1", True), ("2", True)]
    marks = [(a["value"], "checked" in a) for t, a in tags if a.get("type") == "radio"]
    assert marks == [("0", True), ("1", False), ("2", False)]
    assert "radio" not in Samples("", ["a"], [], {"ccd": columns["ccd"]}).html()


def test_a_section_that_fails_leaves_the_old_report_and_nothing_half_written(tmp_path, sections):
    path = write_report(tmp_path / "report.html", "Old", sections, ABOUT)
    with pytest.raises(ValueError, match="no point to draw"):
        write_report(path, "New", [Curves("", [Chart("Empty", [Series("nan", [1], [float("nan")])])])], ABOUT)
    assert "Old" in path.read_text() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("H, W", [(1, 1), (85, 64), (7, 33)])
def test_png_decodes_to_the_same_pixels(rng, H, W):
    pixels = torch.randint(256, (H, W, 3), generator=rng, dtype=torch.uint8).numpy()
    pixels[: H // 2] = np.arange(W)[:, None] * np.array([1, 2, 3])      # smooth rows: other filters
    head, url = encoded(pixels.tobytes(), (H, W), "png").split(",")
    frame = next(av.open(io.BytesIO(base64.b64decode(url)), format="png_pipe").decode(video=0))
    assert head == "data:image/png;base64"
    np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), pixels)


def test_a_sprite_sheet_is_the_frames_from_top_to_bottom():
    clip = torch.stack([torch.full((3, 2, 4), v) for v in (-1.0, 0.0, 3.0)], 1)
    assert sprite_sheet(clip)[:, 0, 0].tolist() == [0, 0, 128, 128, 255, 255]
    with pytest.raises(ValueError, match="all finite"):
        sprite_sheet(clip * float("nan"))


def test_a_large_clip_is_shrunk_to_256_pixels_and_its_shape_kept(rng):
    ramp = torch.linspace(-1, 1, 832).expand(3, 2, 480, 832)
    sheet = sprite_sheet(ramp)
    assert sheet.shape == (2 * 148, 256, 3)
    np.testing.assert_allclose(sheet[5, :, 0], np.linspace(0, 255, 256), atol=1.6)
    html = Samples("", ["a"], [Column("real", [ramp])]).html()
    assert 'width="256" height="148"' in html and "data:image/jpeg;base64" in html


def test_a_column_with_a_clip_too_few_is_refused_by_name():
    with pytest.raises(ValueError, match="2 names, but 'b' has 1; want one clip per name in every column"):
        still = torch.zeros(3, 1, 8, 8)
        Samples("", ["x", "y"], [Column("a", [still] * 2)], {"c": [Column("b", [still])]}).html()
    with pytest.raises(ValueError, match="0 names, but no columns"):
        Samples("", [], []).html()


def test_a_line_runs_through_its_points_and_gaps_are_skipped():
    svg = Chart("", [Series("y", [0, 1, 2, 3], [0.0, float("nan"), 2.0, 3.0])]).svg()
    line = re.search(r'd="(M[^"]*)" fill="none"', svg).group(1)
    (x0, y0), (x2, y2), (x3, y3) = (map(float, p.split()) for p in line[1:].split("L"))
    assert (x2 - x0) == pytest.approx(2 * (x3 - x2), abs=0.2)
    assert (y0 - y2) == pytest.approx(2 * (y2 - y3), abs=0.2)


def test_a_log_axis_spaces_decades_evenly_and_drops_what_is_not_positive():
    svg = Chart("", [Series("y", [1, 10, 100], [1e-3, 0.0, 1e1])], log_x=True, log_y=True).svg()
    assert len(re.search(r'd="(M[^"]*)" fill="none"', svg).group(1).split("L")) == 2
    assert {"1", "10", "100", "0.001", "0.1"} <= set(re.findall(r">([\d.e-]+)</text>", svg))


def test_a_constant_is_said_in_words_and_not_drawn():
    constant = Chart("weight", [Series("y", [5, 6], [2.0, 2.0]), Series("z", [5, 6], [2.0, 2.0 + 1e-9])])
    moving = Chart("loss", [Series("y", [5, 6], [2.0, 2.1])])
    html = Curves("", [constant, moving], note="Of one run.").html()
    assert html.count("<svg") == 1 and "Of one run." in html
    assert "Constant, not drawn: weight, 2." in html
    assert Chart("one point", [Series("y", [5], [2.0])]).constant() is None     # a point is drawn
    assert "nan" not in constant.svg()


def test_smoothing_begins_and_ends_at_the_data_keeps_a_straight_line_and_shows_the_raw(rng):
    straight, noisy = list(range(31)), torch.randn(31, generator=rng).tolist()
    for values, same in ((straight, range(31)), (noisy, (0, 30))):
        svg = Chart("", [Series("y", straight, values, smooth=3)]).svg()
        raw, smooth = (d[1:].split("L") for d in re.findall(r'd="(M[^"]*)" fill="none"', svg))
        assert [raw[i] == smooth[i] for i in same] == [True] * len(same) and 'opacity=".28"' in svg
    assert raw[1:30] != smooth[1:30]


def test_few_points_are_marked_and_not_smoothed():
    svg = Chart("", [Series("y", [0, 1, 2], [1.0, 3.0, 1.0], smooth=3)]).svg()
    assert svg.count("<circle") == 3 and "opacity" not in svg


@pytest.mark.parametrize("log_y", [False, True])
def test_noise_on_a_constant_is_not_blown_up(log_y):
    """8 +- 0.4 % takes a tenth of the height."""
    svg = Chart("", [Series("y", [0, 1, 2], [8.0, 8.033, 7.967])], log_y=log_y).svg()
    heights = [float(point.split()[1]) for point in re.search(r'd="M([^"]*)" fill', svg).group(1).split("L")]
    assert max(heights) - min(heights) == pytest.approx(170 * 0.0083 / 0.11, rel=0.1)


def test_the_facts_are_of_this_machine_and_checkout():
    facts = environment()
    assert " thread" in facts["machine"] or torch.cuda.is_available()
    assert torch.__version__ in facts["software"] and re.search(r"20\d\d, \d\d:\d\d", facts["date"])
    assert re.match(r"commit [0-9a-f]{10}|swiftvideo_fast \d", facts["commit"])


def test_a_scalar_of_a_log_becomes_a_series_or_says_which_there_are():
    log = [{"step": 0, "loss": 4}, {"step": 1, "loss": 3}, {"step": 2}]
    assert logged(log, "loss") == Series("loss", [0, 1], [4, 3])
    with pytest.raises(ValueError, match=r"no scalar 'lsos'; it has \['loss'\]"):
        logged(log, "lsos")


def test_a_legend_too_wide_goes_on_in_another_line_above_the_chart():
    names = [f"a series of number {i}" for i in range(5)]
    svg = Chart("t", [Series(name, [0, 1], [0.0, 1.0]) for name in names]).svg()
    places = [(float(x), int(y)) for x, y in re.findall(r'<rect x="([\d.]+)" y="(\d+)"', svg)]
    assert len(places) == len(set(places)) == 5
    assert all(x + 16 + 6 * len(name) <= 380 for (x, _), name in zip(places, names, strict=True))
    above = max(y for _, y in places) - 24
    assert above > 0 and f'viewBox="0 {-above} 380 {250 + above}"' in svg and f"translate(0 {-above})" in svg
