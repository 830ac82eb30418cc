"""The loops a borrower starts from: each trains, its loss falls, and it draws its picture."""

from importlib import import_module
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("name", ["scm_trigflow", "meanflow", "flow_map"])
def test_the_loss_falls(name, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    _, losses = import_module(name).train(steps=150, batch=256)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])   # MeanFlow's error is mostly the data's own spread


@pytest.mark.parametrize("name", ["scm_trigflow", "meanflow", "flow_map"])
def test_a_picture_is_drawn(name, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr("sys.argv", [name, "--steps", "2", "--png", str(tmp_path / "plot.png")])
    import_module(name).main()
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
