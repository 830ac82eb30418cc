"""Clips, a codec, a network and a run that trains in a second."""

import functools
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # noqa: F401  (an optimizer's first step would, in every process)

from swiftvideo_fast.config import Config
from swiftvideo_fast.data.clips import Clip, demo_clips
from swiftvideo_fast.data.crops import CropSource, EncodedCrops, fit_codec
from swiftvideo_fast.models import weights
from swiftvideo_fast.models.wan.network import Wan, initialise
from swiftvideo_fast.models.wan.sizes import WanConfig
from swiftvideo_fast.objectives.ta import Ta
from swiftvideo_fast.train import recipe, rounds

FRAMES, SIZE, HEIGHT = 5, 16, 24
SIZES = WanConfig(dim=16, heads=2, layers=1, ffn_dim=32, text_dim=8, freq_dim=8, time_scale=10.0)
RUNS = {
    "flow": {"name": "flow", "drop_text": 0.3},
    "ccd": {"name": "ccd", "guidance": 3.0, "warmup": 4},
    "dcd": {"name": "dcd", "guidance": 3.0},
    "da": {"name": "ccd", "guidance": 3.0, "warmup": 4},
    "flowmap": {"name": "flowmap", "guidance": 3.0, "warmup": 4, "shares": [0.25, 0.25]},
    "lcm": {"name": "lcm", "grid": 8},
    "dmd2": {"name": "dmd2", "steps": 2, "every": 2, "fake_lr": 1e-3},
    "pcm": {"name": "pcm", "phases": 2, "grid": 8},
    "osv": {"name": "osv", "m": 2, "grid": 8},
    "ta": {"name": "ta", "steps": [2, 1], "count": 3, "rank": 0},
}


def noise_clip(name: str, frames: int = 40, height: int = HEIGHT, width: int = 32, seed: int = 0) -> Clip:
    """Returns slowly changing noise: no cuts, and variance in every direction."""
    rng = np.random.default_rng(seed)
    moving = rng.normal(0, 8, (frames, height, width, 3)).cumsum(0)
    return Clip(name, f"noise {name}", 25.0, (128 + 60 * np.sin(moving / 40)).astype(np.uint8))


@functools.cache
def clips() -> tuple[Clip, ...]:
    return noise_clip("a", seed=1), noise_clip("b", seed=2)


@functools.cache
def demo() -> list[Clip]:
    """The demo's three clips, decoded once."""
    return demo_clips()


class NoiseCrops(EncodedCrops):
    """The source `crops` of noise clips."""

    footage = staticmethod(lambda height: clips())


TABLES = replace(recipe.TABLES, sources=recipe.by_name(NoiseCrops))


def network(seed: int = 0, sizes: WanConfig = SIZES) -> Wan:
    """Returns an initialised network with a nonzero head."""
    net, rng = Wan(sizes), torch.Generator().manual_seed(seed)
    initialise(net, rng)
    torch.nn.init.normal_(net.head.head.weight, std=0.1, generator=rng)
    return net


def write_inputs(folder: Path, sizes: WanConfig = SIZES) -> None:
    """Writes teacher.safetensors and codec.safetensors."""
    weights.save(network(sizes=sizes), folder / "teacher.safetensors")
    fit_codec(CropSource(clips(), "train", frames=FRAMES, size=SIZE), seed=0, count=32).save(
        folder / "codec.safetensors")


def config(folder: Path, objective: str, run: str = "run", **changes: dict) -> Config:
    """Returns a config: six steps, a checkpoint at steps 2, 4 and 6.  changes: section -> values."""
    tree = {
        "run": {"dir": str(folder / run), "steps": 6, "save_every": 2, "log_every": 1, "keep": 1,
                "watch_every": 0},
        "model": {"family": "toy", "weights": str(folder / "teacher.safetensors"),
                  "codec": str(folder / "codec.safetensors")},
        "data": {"name": "crops", "frames": FRAMES, "size": SIZE, "height": HEIGHT, "pool": 8, "batch": 2},
        "objective": RUNS[objective],
        "optim": {"lr": 1e-3, "warmup": 2},
    }
    if objective in ("da", "osv"):
        tree["da"] = {"start": 3, "lr": 1e-3, "backbone": "filters", "crop": 16, "watch": 2,
                      "project": objective == "osv"}
    for section, values in changes.items():
        tree[section] = tree.get(section, {}) | values
    return TABLES.from_dict(tree)


def train(cfg: Config, kill_at: int | None = None, tables: recipe.Tables = TABLES) -> None:
    """Trains on tiny clips in its own process; killed before its kill_at-th disk access."""
    torch.set_num_threads(1)
    touches = 0

    def watch(event: str, args: tuple) -> None:         # an audit hook; rmtree's names lack their folder
        nonlocal touches
        removes = event in {"os.remove", "os.rmdir"}
        names = event in {"open", "os.mkdir", "os.rename"} and str(args[0]).startswith(cfg.run.dir)
        if removes or names and "tensorboard" not in str(args[0]):
            touches += 1
            if touches == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    if isinstance(cfg.objective, Ta):
        rounds.make_pairs(cfg, tables=tables)
    recipe.train(cfg, tables)
