"""Work of the ranks of test_engine.py."""

import ctypes
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import tiny
import torch
from torch import nn

from swiftvideo_fast import jvp, ops, path
from swiftvideo_fast.config import Config
from swiftvideo_fast.data import pairs
from swiftvideo_fast.models import weights
from swiftvideo_fast.models.ulysses import Ulysses
from swiftvideo_fast.ops import reference
from swiftvideo_fast.train import checkpoint, recipe, rounds
from swiftvideo_fast.train.ranks import Ranks, rank_and_world
from swiftvideo_fast.train.recipe import Parts, start_engine
from swiftvideo_fast.train.single import Trained


def train_by_reference(cfg: Config) -> None:
    """Runs tiny.train with the reference ops."""
    meanings = {name: getattr(reference, name) for name in ops.__all__ if hasattr(reference, name)}
    with patch.multiple(ops, **meanings):
        tiny.train(cfg)


def train_judged(cfg: Config) -> None:
    """Runs tiny.train with an adversary.  Checks at each checkpoint that the heads' buffers agree on all
    ranks and that every sharded weight is sharded."""
    save = checkpoint.save

    def watched(run: Path, step: int, *, parts: dict, ranks: Ranks, **rest) -> Path:
        critic = parts["critic"]
        buffers = json.dumps([b.tolist() for b in critic.net.buffers()])
        assert set(ranks.gather(buffers)) == {buffers}
        if cfg.engine.name == "zero3":
            assert not sum(p.numel() for part in parts.values() for p in part.net.parameters())
        return save(run, step, parts=parts, ranks=ranks, **rest)

    with patch.object(checkpoint, "save", watched):
        tiny.train(cfg)


def train_shaken(cfg: Config, work: Callable, times: int) -> None:
    """Runs work(cfg), then repeats it in other folders with perturbed rounding: each pass's point and each
    step's gradients change by up to half the float spacing at their tensor's largest element."""
    work(cfg)
    draw, step = path.draw, Trained.step
    for seed in range(times):
        rng = torch.Generator().manual_seed(seed)

        def shaken(x: torch.Tensor) -> torch.Tensor:
            return x + torch.finfo(x.dtype).eps * x.abs().max() * (torch.rand(x.shape, generator=rng) - 0.5)  # noqa: B023

        def shaken_draw(*args, **kwargs):
            point = draw(*args, **kwargs)
            return replace(point, x1=shaken(point.x1), x_t=shaken(point.x_t))  # noqa: B023

        def shaken_step(self, lr: float) -> float:
            for p in self.named.values():
                p.grad = shaken(p.grad)  # noqa: B023
            return step(self, lr)

        with patch.object(path, "draw", shaken_draw), patch.object(Trained, "step", shaken_step):
            work(replace(cfg, run=replace(cfg.run, dir=f"{cfg.run.dir}-shaken-{seed}")))


def full_disk(cfg: Config) -> None:
    """Runs tiny.train with a disk that is full for rank 1 from its second checkpoint on."""
    real, written = checkpoint.save_file, []

    def fill(tensors, path):
        written.append(path)
        if path.name == checkpoint.rank_file(1) and len(written) > 1:
            raise OSError(28, "No space left on device")
        return real(tensors, path)

    with patch.object(checkpoint, "save_file", fill):
        tiny.train(cfg)


def read_only(cfg: Config, folder: Path) -> None:
    """Runs tiny.train in a folder that rank 0, its first writer, cannot write to."""
    rank = os.environ["RANK"]

    def refuse(self: Path, **options) -> None:
        raise OSError(30, "Read-only file system", str(self))

    with patch.object(Path, "mkdir", refuse):
        try:
            tiny.train(cfg)
        except OSError as why:
            (folder / f"said-{rank}").write_text(str(why))


def align(cfg: Config, folder: Path, refused: bool) -> None:
    """Runs rounds.run_ta_rounds with one round and rank 1 late with its pairs, or with a full disk; records
    what each rank wrote, and its error."""
    rank, write, made = int(os.environ["RANK"]), pairs.write, []

    def late(cfg: Config, codec: dict, numbers, make: Callable) -> None:
        def told(shard: int, size: int) -> pairs.Pairs:
            made.append(shard)
            if rank == 1 and refused:
                raise OSError(28, "No space left on device")
            time.sleep(rank)
            return make(shard, size)

        write(cfg, codec, numbers, told)

    def train(cfg: Config, tables) -> None:
        assert len(pairs.PairShards(cfg, Parts(cfg, tables).codec.identity)) == cfg.objective.count
        (folder / f"made-{rank}.json").write_text(json.dumps(made))

    with patch.object(pairs, "write", late), patch.object(recipe, "train", train):
        try:
            rounds.run_ta_rounds(cfg, [2, 1], tiny.TABLES)
        except OSError as why:
            (folder / f"said-{rank}").write_text(str(why))


def wait(folder: Path) -> None:
    """Gathers text from a rank that is later than the default group's timeout."""
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=1))
    ranks = Ranks(*rank_and_world())
    time.sleep(3 * ranks.rank)
    (folder / f"said-{ranks.rank}").write_text(" ".join(ranks.gather(f"from {ranks.rank}")))


def inputs(seed: int) -> tuple:
    """Returns x, t, text, condition of two clips."""
    rng = torch.Generator().manual_seed(seed)
    draw = [torch.randn(2, *shape, generator=rng) for shape in ((16, 2, 4, 4), (3, 8), (20, 2, 4, 4))]
    return draw[0], torch.rand(2, generator=rng), *draw[1:]


def start(cfg: Config, mapped: bool = False) -> nn.Module:
    return Parts(cfg, tiny.TABLES).start(mapped)


def follow(cfg: Config, folder: Path) -> None:
    """Takes three steps; checks the average and the tangent against an unsharded network's, and a resume."""
    import deepspeed

    engine = start_engine(cfg)

    def gathered(net) -> dict[str, torch.Tensor]:
        with deepspeed.zero.GatheredParameters(list(net.parameters())):
            return {name: p.detach().clone() for name, p in net.named_parameters()}

    def masters(student) -> dict[str, torch.Tensor]:
        return {name: deepspeed.utils.safe_get_full_fp32_param(p) for name, p in student.named.items()}

    student, ema = engine.averaged(start(cfg), cfg.optim, decay=0.75)
    student.net.train()
    kept = {name: p.double() for name, p in masters(student).items()}
    for step in range(3):
        x, t, text, condition = inputs(step)
        student.backward(student.net(x, t, text, condition).square().mean())
        student.step(1e-6)
        ema.update()
        kept = {name: 0.75 * kept[name] + 0.25 * p.double() for name, p in masters(student).items()}

    saved = checkpoint.Saved(checkpoint.save(folder, 3, parts={"student": student, "average": ema}, state={},
                                             keep=1, ranks=engine.ranks))
    parts = dict(zip(("student", "average"), engine.averaged(tiny.network(seed=1), cfg.optim, decay=0.75)))
    checkpoint.restore(saved, parts)
    stored = {name: p.to(getattr(torch, cfg.engine.dtype)) for name, p in kept.items()}
    whole = tiny.network()
    whole.load_state_dict(kept)
    x, t, text, condition = inputs(9)

    def derivative(net) -> torch.Tensor:
        with torch.no_grad():
            return jvp(lambda x, t: net(x, t, text, condition), (x, t), (x, torch.ones_like(t)))[1]

    tangents = derivative(parts["average"].net), derivative(whole)
    moved = torch.cat([(kept[name] - p).flatten() for name, p in start(cfg).named_parameters()])
    far = {name: max(float((of[name].double() - want[name].double()).abs().max()) for name in want)
           for name, (of, want) in {
               "average": (saved.tensors("average/weight/"), kept),
               "gathered": (gathered(ema.net), stored),
               "resumed": (gathered(parts["average"].net), gathered(ema.net)),
               "masters": (masters(parts["student"]), masters(student))}.items()}
    far |= {"moved": float(moved.abs().max()), "tangent": float((tangents[0] - tangents[1]).abs().max())}
    if engine.ranks.rank == 0:
        (folder / "far.json").write_text(json.dumps(far))


def heads() -> nn.Module:
    """A stub of a discriminator."""
    return nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 8))


def weigh(cfg: Config, folder: Path) -> None:
    """Measures the bytes of every storage that a rank holds, by part."""
    engine = start_engine(cfg)
    student, ema = engine.averaged(start(cfg), cfg.optim, cfg.ema)
    discriminator = engine.trained(heads(), cfg.optim)
    parts = {
        "parameters": [p.ds_tensor for p in student.named.values()],
        "masters": student.zero.fp32_partitioned_groups_flat,
        "optimizer": [x for state in student.optimizer.state.values() for x in state.values()],
        "average": [*ema.averages.values(), *(p.ds_tensor for p in ema.parameters.values())],
        "discriminator": [*(p.ds_tensor for p in discriminator.named.values()),
                          *discriminator.zero.fp32_partitioned_groups_flat,
                          *(x for state in discriminator.optimizer.state.values() for x in state.values())],
    }
    held = {name: sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
                       for x in tensors}.values()) for name, tensors in parts.items()}
    held["gathered"] = sum(p.untyped_storage().nbytes() for net in (student.net, ema.net)
                           for p in net.parameters())
    (folder / f"bytes-{engine.ranks.rank}.json").write_text(json.dumps(held))


def share(folder: Path) -> None:
    """Compares value, tangent and gradients under sequence parallelism with those of one process."""
    torch.distributed.init_process_group("gloo")
    net, alone = tiny.network().double(), tiny.network().double()
    net.share_tokens(Ulysses(torch.distributed.group.WORLD))
    x, t, text, condition = (a.double() for a in inputs(0))
    ends = []
    for model in (net, alone):
        y, ty = jvp(lambda x, t: model(x, t, text, condition), (x, t), (x, torch.ones_like(t)))  # noqa: B023
        (y * ty).sum().backward()
        ends.append([y, ty, *(p.grad for p in model.parameters())])
    for grad in ends[0][2:]:
        torch.distributed.all_reduce(grad)
        grad /= torch.distributed.get_world_size()
    far = [float((a - b).abs().max() / (1 + b.abs().max())) for a, b in zip(*ends)]
    (folder / f"far-{torch.distributed.get_rank()}.json").write_text(json.dumps(far))


M_MMAP_THRESHOLD = -3          # malloc.h
BIG = replace(tiny.SIZES, dim=512, heads=8, layers=4, ffn_dim=2048)


def set_up(cfg: Config, folder: Path) -> None:
    """Measures peak and final anonymous memory while a teacher and a student are sharded."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 17)    # freed memory is returned
    engine, peaks = start_engine(cfg), {}
    for name, make in {
            "teacher": lambda: engine.frozen(weights.load(cfg.model.start, mapped=engine.mapped)),
            "student": lambda: engine.averaged(start(cfg, engine.mapped), cfg.optim, 0.9)}.items():
        over, seen, before = threading.Event(), [], anonymous()

        def look() -> None:
            while not over.is_set():  # noqa: B023
                seen.append(anonymous())  # noqa: B023
                time.sleep(1e-4)

        watcher = threading.Thread(target=look)
        watcher.start()
        kept = make()
        over.set()
        watcher.join()
        peaks[name] = max(seen) - before, anonymous() - before
        del kept
    (folder / f"peaks-{engine.ranks.rank}.json").write_text(json.dumps(peaks))


def anonymous() -> int:
    """Returns this process's anonymous memory in bytes."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("RssAnon")) * 1024
