"""A report as one self-contained HTML file: text, figures, tables, curves and playing samples.

    write_report("report.html", "Four steps for 25", [samples, headline, table], About(environment()))
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.report.about import About


class Section(Protocol):
    """A section of a report: Text, Headline, Pending, tables.Table, charts.Curves, samples.Samples.

    title: its heading, or "".  html(): its body, with every string escaped.
    """

    title: str

    def html(self) -> str: ...


@dataclass(frozen=True)
class Text:
    """Paragraphs separated by blank lines; `code` between backticks."""

    title: str
    body: str

    def html(self) -> str:
        paragraphs = [escape(" ".join(p.split())) for p in self.body.split("\n\n") if p.strip()]
        marked = (re.sub("`([^`]+)`", r"<code>\1</code>", p) for p in paragraphs)
        return f'<div class="prose">{"".join(f"<p>{p}</p>" for p in marked)}</div>'


@dataclass(frozen=True)
class Headline:
    """The main result: a large figure ("12.5 times faster"), its meaning in one sentence, and a remark."""

    figure: str
    meaning: str
    remark: str = ""
    title: str = ""

    def html(self) -> str:
        remark = f'<p class="note">{escape(self.remark)}</p>' if self.remark else ""
        return (f'<div class="headline"><p class="figure">{escape(self.figure)}</p>'
                f'<p class="meaning">{escape(self.meaning)}</p>{remark}</div>')


@dataclass(frozen=True)
class Pending:
    """A placeholder of a section to come.  after: the event it waits for, as in "CCD is trained"."""

    title: str
    after: str

    def html(self) -> str:
        return f'<p class="pending">Pending: shown after {escape(self.after)}.</p>'


def write_report(path: Path | str, title: str, sections: Sequence[Section], about: About) -> Path:
    """Writes the page atomically; returns its path."""
    path = Path(path)
    page = render(title, sections, about)
    with atomic_write(path) as draft:
        draft.write_text(page, encoding="utf-8")
    return path


def render(title: str, sections: Sequence[Section], about: About) -> str:
    """Returns the page with inline style and script, and links to the sections with headings."""
    assets = files("swiftvideo_fast.report")
    style, script = ((assets / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    headed = [(f"s{i}", s) for i, s in enumerate([*sections, about])]
    links = "".join(f'<a href="#{i}">{escape(s.title)}</a>' for i, s in headed if s.title)
    body = "".join(_section(i, s) for i, s in headed)
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta name="color-scheme" content="light dark"><style>{style}</style></head><body>'
            f'<header><p class="brand">swiftvideo_fast</p><h1>{escape(title)}</h1>'
            f'<p class="about">{escape(about.line())}</p><details><summary>Contents</summary>'
            f'<nav aria-label="Sections">{links}</nav></details></header>'
            f"<main>{body}</main><script>{script}</script></body></html>\n")


def _section(anchor: str, section: Section) -> str:
    heading = f"<h2>{escape(section.title)}</h2>" if section.title else ""
    return f'<section id="{anchor}">{heading}{section.html()}</section>'
