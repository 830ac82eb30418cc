"""Training runs: bit-identical after kills, and one clear error per problem."""

import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from swiftvideo_fast.config import Optim
from swiftvideo_fast.models import weights
from swiftvideo_fast.models.wan.blocks import Block
from swiftvideo_fast.objectives.base import STUDENT
from swiftvideo_fast.objectives.flow import FlowMatching
from swiftvideo_fast.train import checkpoint, loop, recipe, run_folder
from swiftvideo_fast.train.ema import Ema
from swiftvideo_fast.train.log import SPEED, read_log
from swiftvideo_fast.train.single import Trained

KILLED = -signal.SIGKILL
STUDENT_FILE = recipe.FILES[STUDENT]


@pytest.fixture(scope="module")
def processes():
    """Returns a forkserver context with all imports done."""
    with pytest.MonkeyPatch.context() as patch:
        path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tiny"])
        yield context


def train(cfg) -> Path:
    return recipe.train(cfg, tiny.TABLES)


def attempt(processes, cfg, kill_at: int | None = None, seconds: float | None = None) -> int:
    """Runs one attempt, killed at its kill_at-th disk access or after some time; returns the exit code."""
    process = processes.Process(target=tiny.train, args=(cfg, kill_at))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
    process.join()
    return process.exitcode


def everything(run: Path) -> dict[str, object]:
    """Returns a run's files by name, bit for bit, except files with times."""
    return {str(f.relative_to(run)): content(f.read_bytes()) for f in sorted(run.rglob("*"))
            if f.is_file() and f.parent.name != "tensorboard" and f.name not in (SPEED, run_folder.STARTS)}


def content(raw: bytes) -> object:
    """Returns the bytes; for safetensors, the parsed header (order varies) and the rest."""
    end = 8 + int.from_bytes(raw[:8], "little")
    return (json.loads(raw[8:end]), raw[end:]) if raw[8:10] == b'{"' else raw


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Returns a run's TensorBoard scalars, except speed."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(run / "tensorboard")).Reload()
    return {tag: [(e.step, e.value) for e in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]
            if not tag.startswith("speed/")}


def assert_same(files: dict, shown: dict, want_files: dict, want_shown: dict) -> None:
    assert files.keys() == want_files.keys()
    assert [name for name, value in want_files.items() if files[name] != value] == []
    assert shown == want_shown


def test_a_run_interrupted_between_checkpoints_ends_with_the_same_bits(inputs, monkeypatch):
    cfg = tiny.config(inputs, "flow", run="interrupted")
    run = train(cfg)
    want = everything(run), scalars(run)
    shutil.rmtree(run)

    def interrupt(average):
        update(average)
        if len(read_log(run)) == 3:             # one more than the checkpoint counts
            raise KeyboardInterrupt

    update = Ema.update
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Ema, "update", interrupt)
        train(cfg)
    time.sleep(1)               # TensorBoard sorts a process's event files by second
    train(cfg)
    assert_same(everything(run), scalars(run), *want)


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


class Unreadable(tiny.NoiseCrops):
    """A source that must not be used."""

    def clips(self, split, count, seed):
        raise AssertionError("the data was opened")


def test_a_finished_run_ends_at_once_and_changes_nothing(inputs):
    cfg = tiny.config(inputs, "flow", run="finished")
    run = train(cfg)
    before = {f: f.stat().st_mtime_ns for f in run.rglob("*")}
    unreadable = replace(tiny.TABLES, sources=recipe.by_name(Unreadable))
    assert recipe.train(cfg, unreadable) == run
    assert {f: f.stat().st_mtime_ns for f in run.rglob("*")} == before


def test_a_folder_that_another_process_trains_in_is_left_alone(inputs):
    cfg = tiny.config(inputs, "flow", run="held")
    other = tiny.config(inputs, "flow", run="held", optim={"lr": 2e-3})
    held = run_folder.Lock(cfg)
    assert held.acquire() == "" and held.handle is None and not Path(cfg.run.dir).exists()
    held.acquire(create=True)
    for one in (cfg, other):
        with pytest.raises(ValueError, match="held: another process trains here; wait for its end"):
            train(one)
    assert not [*Path(cfg.run.dir).iterdir()]
    held.close()
    assert train(cfg) == Path(cfg.run.dir)


def test_a_run_without_its_weights_writes_them_again(inputs):
    cfg = tiny.config(inputs, "flow", run="again")
    want = everything(train(cfg))
    (Path(cfg.run.dir) / STUDENT_FILE).unlink()
    assert everything(train(cfg)) == want


def test_a_folder_of_another_config_is_left_alone(inputs):
    cfg = tiny.config(inputs, "flow", run="taken")
    want = everything(train(cfg))
    other = tiny.config(inputs, "flow", run="taken", optim={"lr": 2e-3}, data={"batch": 3})
    with pytest.raises(ValueError) as error:
        train(other)
    changed = "(optim.lr: 0.001 -> 0.002; data.batch: 2 -> 3)"
    assert f"taken holds a run of another config {changed}; choose another run.dir" in str(error.value)

    assert everything(Path(cfg.run.dir)) == want

    (Path(cfg.run.dir) / run_folder.CONFIG).unlink()          # checkpoints record the config too
    with pytest.raises(ValueError, match="step-00000006 holds a run of another config .optim.lr: 0.001"):
        train(other)


@pytest.mark.parametrize("text, why", [
    ("", ".it is empty.; restore it, or move it away"), ("run: {", ".while parsing a flow"),
    ("just words", ".it holds 'just words'"), ("\x00", ".unacceptable character"),
    ("b: \xe9", "decode byte")])
def test_a_damaged_config_in_the_folder_is_named(text, why, inputs, tmp_path):
    (tmp_path / run_folder.CONFIG).write_text(text, encoding="latin1")
    cfg = tiny.config(inputs, "flow", run=str(tmp_path))
    with pytest.raises(ValueError, match=f"{tmp_path}/config.yaml: not the config of a run .*{why}"):
        train(cfg)


@pytest.mark.parametrize("changes, why", [
    ({"model": {"codec": "none.safetensors"}}, "none.safetensors: no such file"),
    ({"model": {"weights": "none.safetensors"}}, "none.safetensors: no such file"),
    ({"data": {"size": 32, "height": 32}}, "no clip fits the window"),
    ({"data": {"frames": 45}}, "no clip fits the window"),
])
def test_bad_input_is_found_before_anything_is_written(changes, why, inputs):
    cfg = tiny.config(inputs, "ccd", run="never", **changes)
    with pytest.raises(ValueError, match=why):
        train(cfg)
    assert not Path(cfg.run.dir).exists()


def test_an_unknown_preset_lists_the_known_ones(inputs):
    with pytest.raises(ValueError, match="model.preset is 'tyni'; want one of .*, perhaps 'tiny'"):
        tiny.config(inputs, "flow", run="never", model={"weights": None, "preset": "tyni"})


def diverging(steps: set[int]) -> recipe.Tables:
    """Returns flow matching with a NaN loss in these steps."""
    class Diverging(FlowMatching):
        def loss(self, turn, nets, batch, rng, step, carry=None):
            out = super().loss(turn, nets, batch, rng, step, carry)
            return replace(out, value=out.value * float("nan")) if step in steps else out

    return replace(tiny.TABLES, objectives=recipe.by_name(Diverging))


def test_a_loss_that_stays_no_number_ends_the_run_before_it_spoils_a_checkpoint(inputs):
    cfg = tiny.config(inputs, "flow", run="diverged", optim={"max_skips": 1})
    with pytest.raises(FloatingPointError,
                       match="student: at step 3 the loss is nan.*1 steps .*step-00000002; lower"):
        recipe.train(cfg, diverging({2, 3, 4}))
    assert checkpoint.newest(Path(cfg.run.dir)).name == "step-00000002"


def test_a_step_without_a_finite_gradient_is_skipped_and_counted(inputs, monkeypatch):
    update, updates = Ema.update, []
    monkeypatch.setattr(Ema, "update", lambda average: updates.append(update(average)))
    cfg = tiny.config(inputs, "flow", run="skipping", optim={"max_skips": 2})
    log = read_log(recipe.train(cfg, diverging({0, 2, 3})))
    assert len(updates) == 3, "the average stays where the student stays"
    assert [line.get("skipped", 0) for line in log] == [1, 0, 1, 2, 0, 0]
    saved = checkpoint.last_good(Path(cfg.run.dir))
    assert int(saved.read("student/steps", 0, 1)) == 3
    assert all(x.isfinite().all() for x in saved.tensors("average/weight/").values())


def test_skipped_steps_are_counted_on_over_a_resume(inputs):
    cfg = tiny.config(inputs, "flow", run="counted-on", optim={"max_skips": 2})
    for _ in range(2):              # the second time from the checkpoint of step 4, one skipped before it
        with pytest.raises(FloatingPointError, match="at step 5 the loss is nan.* 2 steps before it"):
            recipe.train(cfg, diverging({3, 4, 5}))


def test_a_full_disk_leaves_a_run_to_go_on_with(inputs, monkeypatch):
    cfg = tiny.config(inputs, "flow", run="full")
    real, steps = checkpoint.save_file, []

    def fill(tensors, path):
        steps.append(path)
        if len(steps) > 1:
            raise OSError(28, "No space left on device")
        return real(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", fill)
        with pytest.raises(OSError, match="step-00000004: could not be written .*No space left.*free disk"):
            train(cfg)
    run = Path(cfg.run.dir)
    assert checkpoint.newest(run).name == "step-00000002" and not list(run.glob(".*"))
    cut = everything(train(cfg))
    shutil.rmtree(run)
    assert cut == everything(train(cfg))


@pytest.mark.parametrize("schedule, want", [
    ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ("cosine", [(1 + math.cos(math.pi * k / 6)) / 2 * min(1, (k + 1) / 2) for k in range(6)]),
])
def test_the_rate_rises_then_follows_its_schedule(schedule, want, inputs):
    cfg = tiny.config(inputs, "flow", optim={"lr": 1.0, "schedule": schedule})
    assert [loop.learning_rate(cfg.optim, step, cfg.run.steps) for step in range(6)] == pytest.approx(want)


def test_the_average_follows_the_student():
    student = torch.nn.Linear(2, 1)
    start = student.weight.detach().clone()
    ema = Ema(Trained(student, Optim(1e-3), 1), decay=0.75)
    with torch.no_grad():
        student.weight += 1
    ema.update()
    assert torch.allclose(ema.net.weight, start + 0.25)
    assert not any(p.requires_grad for p in ema.net.parameters())


def test_adapters_begin_alike_whatever_the_file_is_stored_in(inputs, tmp_path):
    """Engines that load weights in the file's dtype, or not, train the same adapters."""
    pytest.importorskip("peft")
    weights.save(tiny.network(), tmp_path / "half.safetensors", torch.bfloat16)
    cfg = tiny.config(inputs, "ta", model={"student": str(tmp_path / "half.safetensors")})
    cfg = replace(cfg, objective=replace(cfg.objective, rank=2))
    whole, mapped = ({name: p for name, p in recipe.Parts(cfg, tiny.TABLES).start(mapped).named_parameters()
                      if p.requires_grad} for mapped in (False, True))
    assert whole.keys() == mapped.keys() and len(whole) > 10
    assert all(p.dtype == torch.float32 and torch.equal(p, mapped[name]) for name, p in whole.items())


def test_a_student_may_start_where_the_teacher_is_not(inputs):
    run = train(tiny.config(inputs, "flow", run="first"))
    cfg = tiny.config(inputs, "ccd", model={"student": str(run / STUDENT_FILE)})
    started = recipe.Parts(cfg, tiny.TABLES).start()
    assert torch.equal(started.head.head.weight, weights.load(run / STUDENT_FILE).head.head.weight)
    assert not torch.equal(started.head.head.weight, tiny.network().head.head.weight)


def test_a_student_that_recomputes_ends_with_the_same_bits(inputs, monkeypatch):
    forward, entered = Block.forward, []
    monkeypatch.setattr(Block, "forward", lambda block, *args: entered.append(block.training) or
                        forward(block, *args))
    found = []
    for recompute in ("nothing", "blocks", "blocks but attention"):
        entered.clear()
        run = train(tiny.config(inputs, "ccd", run=f"recompute {recompute}",
                                     model={"recompute": recompute}))
        found.append((weights.load(run / STUDENT_FILE).state_dict(), sum(entered)))
    (kept, once), *others = found
    for recomputed, twice in others:
        assert all(torch.equal(x, recomputed[name]) for name, x in kept.items()) and twice == 2 * once


def test_bfloat16_on_one_device_has_fp32_masters_and_resumes_to_the_same_bits(inputs, monkeypatch):
    cfg = tiny.config(inputs, "ccd", run="halved", engine={"dtype": "bfloat16"}, optim={"lr": 1e-6})
    built = recipe.build(cfg, tiny.TABLES)
    mover, average = built.movers[STUDENT], built.averages["average"]
    block = "blocks.0.self_attn.q.weight"
    assert mover.trained.named[block].dtype == average.net.get_parameter(block).dtype == torch.bfloat16
    assert mover.trained.masters[block].dtype == average.averages[block].dtype == torch.float32
    start = mover.trained.masters[block].detach().clone()
    run = loop.train(built)
    moved = (mover.trained.masters[block] - start).abs()
    assert 0 < moved.max() < 1e-5 < 2**-9 * start.abs().max(), "steps that the stored weight cannot show"
    assert torch.equal(mover.trained.named[block], mover.trained.masters[block].bfloat16())
    assert torch.equal(average.net.get_parameter(block), average.averages[block].bfloat16())
    want = everything(run)
    shutil.rmtree(run)
    update, updates = Ema.update, []

    def interrupt(average):
        update(average)
        updates.append(average)
        if len(updates) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Ema, "update", interrupt)
        train(cfg)
    assert everything(train(cfg)) == want


def test_stored_weights_follow_the_masters_and_averages_that_are_restored():
    net = torch.nn.Linear(4, 4).bfloat16()
    trained = Trained(net, Optim(1e-3), 1)
    average = Ema(trained, decay=0.5)
    for value, part, stored in ((2.0, trained, net), (3.0, average, average.net)):
        for name, shard in part.shards().items():
            if name.startswith("weight/"):
                shard.data.fill_(value)
        part.after_restore()
        assert all((p == value).all() for p in stored.parameters())
