"""Several processes train as one: equal losses and averages for any engine, split and kills.

python tests/endurance.py runs the long forms: 50 steps with every engine, 40 kills.
"""

import json
import math
import random
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import launch
import pytest
import tiny
import torch

pytest.importorskip("deepspeed")
import sharded  # noqa: E402  (after the skip)
from test_pairs import content  # noqa: E402
from test_train import everything  # noqa: E402

from swiftvideo_fast.data import pairs  # noqa: E402
from swiftvideo_fast.models import weights  # noqa: E402
from swiftvideo_fast.models.wan.sizes import PRESETS  # noqa: E402
from swiftvideo_fast.objectives.base import STUDENT  # noqa: E402
from swiftvideo_fast.plan import Plan  # noqa: E402
from swiftvideo_fast.train import checkpoint, recipe, rounds  # noqa: E402
from swiftvideo_fast.train.log import read_log  # noqa: E402

SPLITS = [(1, 1), (2, 1), (2, 2), (4, 2)]       # processes, processes per clip (sequence parallelism)
SHAKES, T = 4, 8.61                             # perturbed runs; Student's t of 1 - 0.001, two-sided


@pytest.fixture(scope="module")
def processes():
    return launch.server()


def config(inputs: Path, run: str, world: int, steps: int = 6, batch: int = 2, objective: str = "ccd",
           **engine):
    """Returns a config with passes of one clip and a checkpoint every second step.  world 0: no DeepSpeed."""
    cfg = tiny.config(inputs, objective, run=run, data={"batch": batch},
                      engine={"name": "zero3" if world else "plain", "micro": 1} | engine)
    if objective == "ta":
        cfg = replace(cfg, objective=replace(cfg.objective, rank=2, pairs=str(inputs / "pairs")))
    return replace(cfg, run=replace(cfg.run, steps=steps))


def ended(processes, cfg, world: int, work=tiny.train, *args) -> Path:
    """Runs a training on `world` processes; returns its folder."""
    assert launch.Processes(processes, max(1, world), work, cfg, *args).join(900) == [0] * max(1, world)
    return Path(cfg.run.dir)


def distance(a: Path, b: Path) -> list[float]:
    """Returns the largest difference of the losses (also a critic's and a fake score's), and the RMS
    difference of the average's weights, the critic's weights and buffers, and the fake score's weights.

    (Not the largest: where a gradient is zero up to rounding, Adam steps by its sign.)
    """
    lines = [*zip(read_log(a), read_log(b), strict=True)]
    losses = {key: [abs(x[key] - y[key]) for x, y in lines if key in x]
              for key in ("loss", "critic/loss", "fake/loss")}
    saved = [checkpoint.Saved(checkpoint.newest(run)) for run in (a, b)]
    far = [max(found) for found in losses.values() if found]
    for part in ("average/weight/", "critic/weight/", "critic/buffer/", "fake/weight/"):
        x, y = (of.tensors(part) for of in saved)
        if x or y:
            apart = torch.cat([(x[name] - y[name]).flatten() for name in x.keys() | y.keys()])
            far.append(float(apart.square().mean().sqrt()))
    return far


def alone(processes, cfg, work=tiny.train) -> tuple[Path, list[float]]:
    """Returns the folder of a one-process run without DeepSpeed, and the distances that rounding may cause.

    Runs that differ by rounding have, at each op of each step, an error of up to half the float spacing at
    the largest element, and errors grow over steps.  The run is therefore repeated SHAKES times with such
    errors added to the point and the gradients at every step.  A split's distance is one more draw from that
    distribution, or a narrower one: if normal, it exceeds T times their RMS once in a thousand runs
    (Student's t with SHAKES degrees of freedom).
    """
    run = ended(processes, cfg, 1, sharded.train_shaken, work, SHAKES)
    far = [distance(run, run.with_name(f"{run.name}-shaken-{seed}")) for seed in range(SHAKES)]
    return run, [T * math.sqrt(sum(x * x for x in kind) / SHAKES) for kind in zip(*far)]


def compare(inputs: Path, processes, splits, steps: int, work=tiny.train, **changes) -> dict:
    """Returns split -> (distances from one process without DeepSpeed, bounds from rounding)."""
    def named(world: int, **engine):
        run = f"{work.__name__}-{world}-{engine}-{changes}"
        return config(inputs, run, world, steps, **engine, **changes)

    run, allowed = alone(processes, named(0), work)
    return {(world, sequence): (distance(run, ended(processes, named(world, sequence=sequence), world, work)),
                                allowed) for world, sequence in splits}


def within(found: dict) -> bool:
    return all(a <= b for far, allowed in found.values() for a, b in zip(far, allowed, strict=True))


def test_zero3_and_ulysses_are_the_same_run(inputs, processes):
    assert within(found := compare(inputs, processes, SPLITS, steps=6)), found


def test_they_are_with_the_reference_ops_too(inputs, processes):
    found = compare(inputs, processes, [(2, 2)], steps=6, work=sharded.train_by_reference)
    assert within(found), found


@pytest.mark.parametrize("objective, work", [("da", sharded.train_judged), ("ta", tiny.train),
                                             ("flowmap", tiny.train), ("dmd2", tiny.train),
                                             ("pcm", tiny.train), ("lcm", tiny.train), ("osv", tiny.train)])
def test_every_kind_of_second_network_is_the_same_run_too(objective, work, inputs, processes):
    found = compare(inputs, processes, [(2, 1)], 5, work, objective=objective)
    assert within(found), found


def test_the_shared_tokens_have_the_value_tangent_and_gradients_of_the_whole(processes, tmp_path):
    assert launch.Processes(processes, 2, sharded.share, tmp_path).join(120) == [0, 0]
    far = [json.loads((tmp_path / f"far-{rank}.json").read_text()) for rank in (0, 1)]
    assert max(far[0] + far[1]) < 1e-13 and len(far[0]) > 20


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_average_follows_the_masters_through_a_gather_and_a_resume(dtype, inputs, processes, tmp_path):
    cfg = config(inputs, "followed", 2, dtype=dtype)
    assert launch.Processes(processes, 2, sharded.follow, cfg, tmp_path).join(120) == [0, 0]
    far = json.loads((tmp_path / "far.json").read_text())
    assert far["moved"] > 5e-7, "three steps of 1e-6"
    assert far["average"] < 0.1 * far["moved"]
    assert far["gathered"] < (0.1 * far["moved"] if dtype == "float32" else 2**-8), "half a spacing below 1"
    assert far["resumed"] == far["masters"] == 0
    assert far["tangent"] < (2e-5 if dtype == "float32" else 0.05)


def test_two_ranks_hold_half_of_what_one_holds_and_both_what_was_planned(inputs, processes, tmp_path,
                                                                         monkeypatch):
    held = {}
    for world in (1, 2):
        assert launch.Processes(processes, world, sharded.weigh, config(inputs, "weighed", world),
                           tmp_path).join(120) == [0] * world
        held[world] = [json.loads((tmp_path / f"bytes-{rank}.json").read_text()) for rank in range(world)]
    for part, whole in held[1][0].items():
        assert all(rank[part] <= 0.55 * whole for rank in held[2]), (part, held)
    assert held[2][0]["gathered"] == 0, "a parameter stayed whole"

    monkeypatch.setitem(PRESETS, "tests", tiny.SIZES)
    for world, ranks in held.items():
        planned = Plan("tests", world, 80, tiny.FRAMES, (tiny.SIZE, tiny.SIZE), dtype="float32").parts()
        for part in ("parameters", "masters", "optimizer", "average"):
            assert ranks[0][part] == pytest.approx(planned[part], rel=0.02), (world, part)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_rank_holds_a_whole_network_while_it_is_shared_out(dtype, processes, tmp_path):
    file = tmp_path / "teacher.safetensors"
    weights.save(tiny.network(sizes=sharded.BIG), file, getattr(torch, dtype))
    cfg = config(tmp_path, "never", 2, dtype=dtype)
    assert launch.Processes(processes, 2, sharded.set_up, cfg, tmp_path).join(120) == [0, 0]
    whole = file.stat().st_size
    for rank in (0, 1):
        peaks = json.loads((tmp_path / f"peaks-{rank}.json").read_text())
        assert peaks["teacher"][0] < 0.65 * whole, peaks
        assert peaks["student"][0] - peaks["student"][1] < 0.1 * whole, peaks


def undisturbed(processes, cfg, world: int) -> Path:
    """Returns an uninterrupted run's folder, moved away."""
    return ended(processes, cfg, world).rename(f"{cfg.run.dir}-undisturbed")


def kill(processes, cfg, world: int, want: Path, times: int, seed: int, seconds: float) -> list[str]:
    """Kills one rank or all, at a disk access or after some time, repeatedly; then lets the run finish.

    Returns the differences to the uninterrupted run.
    """
    draw = random.Random(seed)
    for _ in range(times):
        touch = draw.random() < 0.5
        runners = launch.Processes(processes, world, tiny.train, cfg, draw.randint(5, 60) if touch else None)
        if not touch:
            runners.kill(draw.uniform(0, seconds), draw.choice([[0], [world - 1], range(world)]))
        runners.join(300)
    run = ended(processes, cfg, world)
    files, wanted = everything(run), everything(want)
    assert len(wanted) >= 5 + world
    return [name for name in files.keys() | wanted.keys() if files.get(name) != wanted.get(name)]


def test_a_run_of_two_killed_at_any_moment_ends_with_the_same_bits(inputs, processes):
    cfg = config(inputs, "killed", 2)
    want = undisturbed(processes, cfg, 2)
    assert kill(processes, cfg, 2, want, times=3, seed=0, seconds=4) == []


def test_low_precision_and_offloading_resume_to_the_same_bits(inputs, processes):
    cfg = config(inputs, "low", 2, steps=4, dtype="bfloat16", offload=True)
    want = undisturbed(processes, cfg, 2)
    assert kill(processes, cfg, 2, want, times=1, seed=1, seconds=2) == []


@pytest.mark.parametrize("world", [0, 2])
def test_eight_bit_moments_resume_to_the_same_bits(world, processes, tmp_path):
    pytest.importorskip("bitsandbytes")
    tiny.write_inputs(tmp_path, replace(tiny.SIZES, ffn_dim=256))       # less than 4096 elements stay float32
    cfg = config(tmp_path, "eight", world, steps=4)
    cfg = replace(cfg, run=replace(cfg.run, keep=2), optim=replace(cfg.optim, moments=8))
    run = ended(processes, cfg, world)
    want, saved = everything(run), checkpoint.Saved(checkpoint.newest(run))
    kept = {saved.read(name, 0, 1).dtype for name in saved.shapes if name.startswith("student/state1/")}
    assert torch.uint8 in kept
    shutil.rmtree(saved.folder)
    for file in recipe.FILES.values():
        (run / file).unlink(missing_ok=True)
    assert everything(ended(processes, cfg, world)) == want


def test_two_ranks_are_gone_on_with_by_another_number(inputs, processes):
    """The distance to one process is within rounding: steps are equal for any number of ranks."""
    plain, allowed = alone(processes, config(inputs, "by-none", 0, batch=6))
    cfg = config(inputs, "by-two", 2, batch=6)
    cfg = replace(cfg, run=replace(cfg.run, keep=3))
    run = ended(processes, cfg, 2)
    by_two = read_log(run)
    for world in (1, 3):
        for name in ("step-00000004", "step-00000006"):
            shutil.rmtree(run / name)
        (run / recipe.FILES[STUDENT]).unlink()
        far, by_another = distance(plain, ended(processes, cfg, world)), read_log(run)
        assert all(x <= most for x, most in zip(far, allowed, strict=True)), (world, far, allowed)
        assert by_two[:2] == by_another[:2] and by_two != by_another, "not gone on with, or not run again"


def aligned(inputs: Path, run: str):
    """Returns the config of an alignment on two ranks with three shards of pairs."""
    cfg = config(inputs, run, 2, objective="ta")
    return replace(cfg, objective=replace(cfg.objective, count=2 * pairs.SHARD + 3, pairs=None))


def test_two_ranks_share_out_the_pairs_of_an_alignment_and_wait_for_the_last(inputs, processes, tmp_path):
    both, one = (next(rounds.rounds(aligned(inputs, run), [2, 1])) for run in ("shared-out", "not-shared"))
    assert launch.Processes(processes, 2, sharded.align, aligned(inputs, "shared-out"), tmp_path,
                       False).join(120) == [0, 0]
    assert [json.loads((tmp_path / f"made-{rank}.json").read_text()) for rank in (0, 1)] == [[0, 2], [1]]
    rounds.make_pairs(one, tables=tiny.TABLES)
    assert content(both) == content(one)


def test_pairs_that_one_rank_cannot_write_end_the_alignment_on_all(inputs, processes, tmp_path):
    cfg = aligned(inputs, "refused")
    assert launch.Processes(processes, 2, sharded.align, cfg, tmp_path, True).join(120) == [0, 0]
    said = [(tmp_path / f"said-{rank}").read_text() for rank in (0, 1)]
    assert said[0].startswith("rank 1: OSError(28") and "No space left on device" in said[1]


def test_a_rank_that_is_late_is_waited_for(processes, tmp_path):
    assert launch.Processes(processes, 2, sharded.wait, tmp_path).join(60) == [0, 0]
    assert {(tmp_path / f"said-{rank}").read_text() for rank in (0, 1)} == {"from 0 from 1"}


def test_a_disk_that_is_full_for_one_rank_ends_the_run_on_all_and_costs_no_checkpoint(inputs, processes):
    cfg = config(inputs, "full", 2, steps=4)
    assert launch.Processes(processes, 2, sharded.full_disk, cfg).join(120, grace=60) == [1, 1]
    assert checkpoint.last_good(Path(cfg.run.dir)).state["step"] == 2


def test_a_folder_that_is_read_only_ends_the_run_on_all_before_its_first_step(inputs, processes, tmp_path):
    cfg = config(inputs, "read-only", 2)
    assert launch.Processes(processes, 2, sharded.read_only, cfg, tmp_path).join(60) == [0, 0]
    for rank in (0, 1):
        said = (tmp_path / f"said-{rank}").read_text()
        assert f"{cfg.run.dir}: could not be created ([Errno 30] Read-only file system" in said
    assert not Path(cfg.run.dir).exists()


def test_processes_without_deepspeed_are_refused(inputs, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="plain in 2 processes; want one, or engine.name=zero3"):
        recipe.train(config(inputs, "never", 0), tiny.TABLES)


@pytest.mark.parametrize("engine, batch, why", [
    ({"sequence": 2}, 3, "engine.sequence is 2; want a divisor of the 3 processes"),
    ({"micro": 1}, 4, "data.batch is 4; want a multiple of 3: 1 clips a pass .engine.micro. on 3 replicas"),
])
def test_what_cannot_be_shared_out_is_refused(engine, batch, why, inputs, monkeypatch):
    from swiftvideo_fast.train.ranks import Ranks, micro_batches

    cfg = config(inputs, "never", 3, batch=batch, **engine)
    with pytest.raises(ValueError, match=why):
        micro_batches(cfg, Ranks(0, 3, cfg.engine.sequence))


def test_a_config_of_another_engine_is_the_same_run(inputs):
    from swiftvideo_fast.config import differences, to_dict

    old, new = (to_dict(config(inputs, "same", world)) for world in (0, 2))
    assert differences(old, new) == []
    del old["optim"]["max_skips"]
    assert differences(tiny.TABLES.fill_defaults(old), new) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert differences(new | {"ema": 0.5}, new) == ["ema: 0.5 -> 0.95"]
