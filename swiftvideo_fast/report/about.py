"""Provenance of a report: machine, software, commit, date and configs."""

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

import torch

from swiftvideo_fast.provenance import commit, device_name, installed


@dataclass(frozen=True)
class About:
    """The provenance section of a report, and the line under its title.

    facts: label -> value.  configs: name -> YAML text, collapsed.  About(environment() | {"seeds": "3"}, ...)
    """

    facts: Mapping[str, str]
    configs: Mapping[str, str] = field(default_factory=dict)
    title: str = "How this page was made"

    def line(self) -> str:
        """Returns the facts in one line."""
        return " · ".join(self.facts.values())

    def html(self) -> str:
        facts = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>"
                        for what, value in self.facts.items())
        configs = "".join(f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"
                          for name, text in self.configs.items())
        return f'<dl class="facts">{facts}</dl>{configs}'


def environment() -> dict[str, str]:
    """Returns machine, software, commit (or version, outside a checkout) and date of this process."""
    checkout, device = commit(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {"machine": device_name(device),
            "software": f"torch {torch.__version__}, Python {platform.python_version()}",
            "commit": f"commit {checkout}" if checkout else f"swiftvideo_fast {installed('swiftvideo_fast')}",
            "date": time.strftime("%d %B %Y, %H:%M %Z").lstrip("0")}
