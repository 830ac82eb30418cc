"""Pages in a browser: no overflow, samples large and playing, the selected choice shown.

Headless Chromium, if installed; the page measures itself and its DOM is dumped.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from swiftvideo_fast.report.about import About
from swiftvideo_fast.report.charts import Chart, Curves, Series
from swiftvideo_fast.report.page import Headline, Pending, Text, render
from swiftvideo_fast.report.samples import Column, Samples
from swiftvideo_fast.report.tables import METRICS, Row, ablation, comparison

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="wants chromium")

ASK = """
const found = {width: innerWidth, page: document.documentElement.scrollWidth, frames: new Set(), wide: []};
const canvases = () => [...document.querySelectorAll("canvas")].filter((c) => c.offsetParent);
const pixels = (c) => c.getContext("2d").getImageData(0, 0, 1, 1).data.join();
const watch = setInterval(() => found.frames.add(pixels(canvases()[1])), 40);
setTimeout(() => {
  found.widths = canvases().map((c) => c.getBoundingClientRect().width);
  found.columns = new Set(canvases().map((c) => c.getBoundingClientRect().left)).size;
  found.before = canvases().length;
  const seen = (what) => [...document.querySelectorAll(what)].filter((c) => c.offsetParent).length;
  [found.cells, found.heads] = [seen("td"), seen("thead th")];
  for (const e of document.querySelectorAll("main *:not(svg *)"))
    if (e.offsetParent && e.getBoundingClientRect().right > innerWidth + 0.5) found.wide.push(e.tagName);
  document.querySelectorAll(".choice input")[1].click();
  found.chosen = canvases().map((c) => c.getAttribute("aria-label"));
}, 900);
setTimeout(() => {
  found.painted = canvases().every((c) => pixels(c) !== "0,0,0,0");
  found.frames = found.frames.size;
  parent.postMessage(JSON.stringify(found), "*");
}, 3000);
"""
CLOCK = "requestAnimationFrame = (call) => setTimeout(() => call(performance.now()), 16);"   # virtual time's
FRAME = """<!doctype html><iframe src="page.html" style="width: {}px; height: 900px; border: 0"></iframe>
<pre></pre><script>onmessage = (e) => {{ document.querySelector("pre").textContent = e.data; }}</script>"""


@pytest.fixture
def page(rng) -> str:
    """Returns a page with every component, and tables with all metrics over seeds."""
    def column(label: str) -> Column:
        return Column(label, (torch.rand(6, 3, 9, 16, 16, generator=rng) * 2 - 1).unbind())

    values = {key: [0.123456, 0.2] for key in METRICS}
    rows = [Row(name, 4, values) for name in ("teacher", "CCD + DA + TA + TA, of a long name")]
    names = [row.name for row in rows]
    return render("A title of a page, as long as titles are", [
        Text("", "Words. " * 40),
        Samples("", ["a clip"] * 6, [column(f"always {i}") for i in range(3)], {
            kind: [column(f"{kind} {i}") for i in range(3)] for kind in ("students", "teachers", "others")}),
        Headline("12.5 times faster", "4 steps in place of 25. " * 4, "And a remark. " * 9),
        comparison(rows), ablation(rows, {"does it help?": names}, steps=4, paper={names[1]: 118.89}),
        Curves("Curves", [Chart("loss", [Series(name, [1, 2], [1.0, 2.0]) for name in names])] * 3),
        Pending("Later", "the rest")],
        About({"machine": "a CPU of many words, " * 4}, {"ccd": "key: value " * 30}))


def look(page: str, width: int, folder: Path) -> dict:
    """Measures the page in a frame, because a window is at least 500 pixels wide."""
    asking = page.replace("<head>", f"<head><script>{CLOCK}</script>")
    asking = asking.replace("</body>", f"<script>{ASK}</script></body>")
    (folder / "page.html").write_text(asking)
    (folder / "frame.html").write_text(FRAME.format(width))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1400,900",
               "--virtual-time-budget=6000", f"--user-data-dir={folder}/profile", "--dump-dom"]
    dumped = subprocess.run([CHROMIUM, *options, (folder / "frame.html").as_uri()], capture_output=True,
                            text=True, timeout=120).stdout
    return json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", dumped, re.S).group(1)))


@pytest.mark.parametrize("width, columns", [(390, 2), (1280, 6)])
def test_a_page_fits_and_plays(page, tmp_path, width, columns):
    found = look(page, width, tmp_path)
    assert found["width"] == width and found["page"] <= width and found["wide"] == []
    assert min(found["widths"]) >= 180 and found["columns"] == columns and found["before"] == 36
    assert found["cells"] == page.count("<td")              # no column is hidden
    assert (found["heads"] > 0) == (width == 1280)          # where rows are cards, each cell has its label
    assert found["frames"] > 4                              # the second clip moves
    assert len(found["chosen"]) == 36 and found["painted"]
    assert {label.split(": ")[1] for label in found["chosen"]} == {
        *(f"always {i}" for i in range(3)), *(f"teachers {i}" for i in range(3))}
