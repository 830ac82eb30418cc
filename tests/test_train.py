"""A run: the same bits however often it is killed, and one clear error for what stands in its way."""

import json
import multiprocessing
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import tiny

from swiftvideo_fast.train import loop

KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny.write_inputs(folder)
    return folder


@pytest.fixture(autouse=True)
def tiny_clips(monkeypatch):
    monkeypatch.setattr(loop, "demo_clips", lambda height: list(tiny.clips()))


@pytest.fixture(scope="module")
def processes():
    """Processes that start warm: forked from a server that has imported everything and run nothing."""
    with pytest.MonkeyPatch.context() as patch:
        path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tiny"])
        yield context


def attempt(processes, cfg, kill_at: int | None = None, seconds: float | None = None) -> int:
    """Exit code of one attempt at the run, killed at its kill_at-th touch of the disk or after some time."""
    process = processes.Process(target=tiny.train, args=(cfg, kill_at))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
    process.join()
    return process.exitcode


def everything(run: Path) -> dict[str, object]:
    """All that a run leaves, by name, to the bit; only TensorBoard's files, which tell the time, are not in it."""
    return {str(f.relative_to(run)): content(f.read_bytes()) for f in sorted(run.rglob("*"))
            if f.is_file() and f.parent.name != "tensorboard"}


def content(raw: bytes) -> object:
    """The bytes; of safetensors (header's length, header, numbers) with a header whose order does not matter."""
    end = 8 + int.from_bytes(raw[:8], "little")
    return (json.loads(raw[8:end]), raw[end:]) if raw[8:10] == b'{"' else raw


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(run / "tensorboard")).Reload()
    return {tag: [(e.step, e.value) for e in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def assert_same(files: dict, shown: dict, want_files: dict, want_shown: dict) -> None:
    assert files.keys() == want_files.keys()
    assert [name for name, value in want_files.items() if files[name] != value] == []
    assert shown == want_shown


@pytest.mark.parametrize("objective", tiny.RUNS)
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(objective, inputs, processes):
    cfg = tiny.config(inputs, objective, run=objective)
    run = Path(cfg.run.dir)
    assert attempt(processes, cfg) == 0
    want = everything(run), scalars(run)
    shutil.rmtree(run)

    draw = random.Random(objective)
    assert attempt(processes, cfg, kill_at=draw.randint(10, 60)) == KILLED
    for _ in range(2):
        attempt(processes, cfg, kill_at=draw.randint(10, 60))
        attempt(processes, cfg, seconds=draw.uniform(0.05, 0.5))
    assert attempt(processes, cfg) == 0
    got = everything(run), scalars(run)
    assert_same(*got, *want)
    shutil.rmtree(run)


def test_no_touch_of_the_disk_is_a_bad_moment_to_be_killed(inputs, processes):
    cfg = tiny.config(inputs, "flow")
    run = Path(cfg.run.dir)
    assert attempt(processes, cfg) == 0
    want = everything(run), scalars(run)
    shutil.rmtree(run)
    kill_at = 2
    while attempt(processes, cfg, kill_at) == KILLED:
        assert attempt(processes, cfg) == 0
        assert_same(everything(run), scalars(run), *want)
        assert not list(run.glob(".*")), f"killed at touch {kill_at}"
        shutil.rmtree(run)
        kill_at += 9
    assert kill_at > 80, "three checkpoints are more touches than that"
    shutil.rmtree(run)
