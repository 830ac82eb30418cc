"""How a page came to be: machine, software, commit, date and configs."""

import os
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from importlib.metadata import version
from pathlib import Path

import torch


@dataclass(frozen=True)
class About:
    """The last section of a report, and the line under its title.

    facts: what -> value.  configs: name -> YAML text, shown on demand.  About(here() | {"seeds": "3"}, ...)
    """

    facts: Mapping[str, str]
    configs: Mapping[str, str] = field(default_factory=dict)
    title: str = "How this page was made"

    def line(self) -> str:
        """The facts in one line."""
        return " · ".join(self.facts.values())

    def html(self) -> str:
        facts = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>"
                        for what, value in self.facts.items())
        configs = "".join(f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"
                          for name, text in self.configs.items())
        return f'<dl class="facts">{facts}</dl>{configs}'


def here() -> dict[str, str]:
    """Machine, software, commit and date of this process."""
    return {"machine": machine(),
            "software": f"torch {torch.__version__}, Python {platform.python_version()}",
            "commit": commit(), "date": time.strftime("%d %B %Y, %H:%M %Z").lstrip("0")}


def machine() -> str:
    """The GPUs, or the CPU by its model's name."""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2] for line in info.read_text().splitlines()
              if line.startswith("model name")] if info.exists() else []
    model = models[0].strip() if models else platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} processors"


def commit() -> str:
    """The commit of the checkout that this package is imported from, or the version that is installed."""
    package, git = Path(__file__).parents[1], ["git", "-C", str(Path(__file__).parents[1])]

    def said(*words: str) -> str:
        try:
            return subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    if said("ls-files", str(package / "__init__.py")):      # not a .venv inside somebody's repository
        return f"commit {said('describe', '--always', '--dirty', '--abbrev=10', '--exclude=*')}"
    return f"swiftvideo_fast {version('swiftvideo_fast')}"
