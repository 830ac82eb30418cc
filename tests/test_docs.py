"""The documents: quoted messages are in the source, links have targets, commands parse."""

import ast
import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from swiftvideo_fast import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")),
         ROOT / "kernels/README.md"]
MESSAGES = re.findall(r"^`(.*)`$", (ROOT / "docs/faq.md").read_text(), re.M)
COMMANDS = sorted({(page.name, " ".join(line.split("  #")[0].split()))
                   for page in PAGES for line in re.sub(r"\\\n\s*", "", page.read_text()).splitlines()
                   if line.startswith("    swiftvideo ")})


def written(node: ast.AST) -> str:
    """Returns a string of the source with ... for its values, or the message of a config.strict.want call."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(written, node.values))
    if isinstance(node, ast.Call) and len(node.args) == 4 and ast.unparse(node.func).endswith("want"):
        return "{} is {}; want {}".format(*map(written, node.args[1:]))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "..."


@cache
def literals() -> list[str]:
    """Returns every string and message of the source, without back quotes."""
    sources = [*(ROOT / "swiftvideo_fast").rglob("*.py"), ROOT / "bootstrap.py", ROOT / "setup.py"]
    trees = [ast.parse(path.read_text()) for path in sources]
    return [written(node).replace("`", "") for tree in trees for node in ast.walk(tree)]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_is_one_of_the_programs(message):
    parts = [part for part in message.split("...") if len(part) > 3]
    assert parts and any(all(part in literal for part in parts) for literal in literals()), message


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert link.startswith("http") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page, command", COMMANDS)
def test_a_command_parses(page, command):
    """Checks arguments and options only."""
    words = [re.sub(r"^FILE$|^RUN$|^OUT$|^MODEL$|^BASE$", "x", word) for word in shlex.split(command)[1:]]
    assert cli.parser().parse_args(words).name == words[0]


def test_the_picture_is_what_the_record_says():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs/figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    assert figures.SVG.read_text() == figures.svg(), "run `python docs/figures.py`"
    assert len(figures.svg()) < 150_000


def test_the_readme_fits_two_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110
