"""The examples: training moves few-step samples towards the data; progress output and plot."""

from importlib import import_module
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ["scm_trigflow", "meanflow", "flow_map"]


@pytest.mark.parametrize("name", NAMES)
def test_training_moves_one_step_samples_towards_the_data(name, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    _, _, distances = import_module(name).train(steps=250, batch=256)
    assert sum(distances[-5:]) < 0.8 * sum(distances[:5])


@pytest.mark.parametrize("name", NAMES)
def test_progress_distances_and_plot(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr("sys.argv", [name, "--steps", "2", "--png", str(tmp_path / "plot.png")])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    import_module(name).main()
    assert torch.get_num_threads() == 1         # of two cores, one is often busy with something else
    torch.set_num_threads(threads)
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    for word in ("teacher 2/2", "student 2/2", "steps/s", "loss", "s left", "distance to fresh data"):
        assert word in printed
