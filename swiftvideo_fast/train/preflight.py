"""Checks before a network is built: packages, run folder, batch, memory."""

import os
from pathlib import Path

import torch
from torch import nn

from swiftvideo_fast.config import Config
from swiftvideo_fast.config.strict import want
from swiftvideo_fast.models.family import Family, sizes_of
from swiftvideo_fast.provenance import device_memory
from swiftvideo_fast.train.log import require_wandb
from swiftvideo_fast.train.optimizer import adamw
from swiftvideo_fast.train.ranks import Ranks, local_device, micro_batches, rank_and_world

KERNEL_FILESYSTEMS = ("proc",), ("sys",)        # access() reports them writable by root


def check(cfg: Config, family: Family) -> None:
    """Raises ValueError, OSError or ImportError for whatever would stop the run; writes nothing.

    Under ZeRO-3 without a launcher, assumes the smallest possible number of ranks.
    """
    rank, world = rank_and_world()
    zero3 = cfg.engine.name == "zero3"
    if world > 1 and not zero3:
        raise ValueError(f"engine.name is plain in {world} processes; want one, or engine.name=zero3")
    ranks = Ranks(rank, max(world, cfg.engine.sequence), cfg.engine.sequence)
    _, micro = micro_batches(cfg, ranks)
    own = Path(cfg.run.dir).resolve()
    want(own != Path.cwd() and own not in Path.cwd().parents, "run.dir", cfg.run.dir,
         "a folder for this run alone, such as runs/ccd")
    check_writable("run.dir", Path(cfg.run.dir))
    if cfg.run.wandb:
        require_wandb()
    if cfg.optim.moments == 8:
        adamw([nn.Parameter(torch.zeros(1))], cfg.optim)
    if zero3:
        from swiftvideo_fast.train.zero3 import require_deepspeed

        require_deepspeed(local_device())
    if not zero3 or torch.cuda.is_available():          # else zero3 will run on another machine
        check_memory(cfg, family, micro)


def check_writable(key: str, folder: Path) -> None:
    """Raises OSError unless `folder` is writable, or can be created."""
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        if not place.is_dir():
            raise NotADirectoryError(f"{place} is a file")
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError("no permission to write there")
        if place.resolve().parts[1:2] in KERNEL_FILESYSTEMS:
            raise PermissionError(f"{place} is a kernel file system")
        if os.statvfs(place).f_flag & os.ST_RDONLY:
            raise OSError("a read-only file system")
    except OSError as why:
        raise OSError(f"{key} is {folder}, which could not be written to ({why}); choose another") from why


def check_memory(cfg: Config, family: Family, micro: int) -> None:
    """Raises ValueError when the activations of one backward pass alone exceed the device's memory."""
    if not hasattr(family, "activations"):
        return
    T, H, W = cfg.data.shape(family.latent)
    stored = 2 if cfg.engine.dtype == "bfloat16" else 4
    tokens = T * H * W // family.latent.patch**2 // cfg.engine.sequence
    per_clip = family.activations(sizes_of(family, cfg.model), tokens, cfg.model.recompute, stored)
    held = device_memory(local_device())
    want(micro * per_clip <= held, "data.batch" if cfg.engine.micro is None else "engine.micro", micro,
         f"at most {held // per_clip} clips a backward pass (engine.micro): the activations of one are about "
         f"{per_clip / 1e9:.3g} GB, of all {micro * per_clip / 1e9:,.0f} GB, and this device has "
         f"{held / 1e9:.0f} GB")
