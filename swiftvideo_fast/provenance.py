"""Provenance of a result: versions, commit, device, command."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = "swiftvideo_fast", "torch", "triton"


def provenance(device: torch.device) -> dict[str, str | None]:
    """Returns versions, commit, device and command as plain values.  None for packages not installed."""
    return {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES} | {
        "commit": commit(), "device": device_name(device), "command": shlex.join(sys.argv)}


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """Returns the commit of the repository around this package, with "-dirty" if modified; None outside."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10,
                              check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)         # fails in a repository around a venv
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}"


def device_memory(device: torch.device) -> int:
    """Returns the bytes a process may use: the GPU's memory, or the machine's or container's limit."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    held = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return held
    return min(held, int(limit)) if limit.isdecimal() else held
