"""Many processes train as one: the same losses, the same average, whatever the engine and the split."""

from dataclasses import replace
from pathlib import Path

import fleet
import pytest
import tiny
import torch

pytest.importorskip("deepspeed")

from swiftvideo_fast.train import loop  # noqa: E402  (after the skip)
from swiftvideo_fast.train.report import read_log  # noqa: E402

STEPS = 50


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny.write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def processes():
    return fleet.server()


def config(inputs: Path, run: str, world: int, steps: int = STEPS, save_every: int = 25, **engine):
    """Steps of CCD, a batch of four in passes of one clip.  world 0: one process, without DeepSpeed."""
    cfg = tiny.config(inputs, "ccd", run=run, data={"batch": 4},
                      engine={"name": "zero3" if world else "plain", "micro": 1} | engine)
    return replace(cfg, run=replace(cfg.run, steps=steps, save_every=save_every))


def ended(processes, cfg, world: int) -> Path:
    """The folder of a run by so many processes; 0: one, without DeepSpeed."""
    assert fleet.Fleet(processes, max(1, world), tiny.train, cfg).join(300) == [0] * max(1, world)
    return Path(cfg.run.dir)


@pytest.fixture(scope="module")
def alone(inputs, processes) -> Path:
    return ended(processes, config(inputs, "alone", 0), 0)


def assert_same_run(got: Path, want: Path) -> None:
    """Losses and average within what summing in another order does to float32."""
    losses, wanted = ([line["loss"] for line in read_log(run)] for run in (got, want))
    assert losses == pytest.approx(wanted, rel=2e-5)
    for file in (loop.AVERAGE, loop.STUDENT):
        average, wanted = (loop.weights.read(run / file)[0] for run in (got, want))
        for name in wanted:
            torch.testing.assert_close(average[name], wanted[name], rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("world", [1, 2])
def test_zero3_is_the_same_run(world, inputs, processes, alone):
    assert_same_run(ended(processes, config(inputs, f"zero{world}", world), world), alone)
