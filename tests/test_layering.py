"""The import order: a module imports from lines above its own, and from its own group.

Imports inside functions count too.  CONTRIBUTING.md has the same order.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = """
swiftvideo_kernels  swiftvideo_fast._C  swiftvideo_fast.config  swiftvideo_fast.seeds  swiftvideo_fast.atomic
swiftvideo_fast.sealed   swiftvideo_fast.provenance
swiftvideo_fast.binding swiftvideo_fast.layout      swiftvideo_fast.typetest
swiftvideo_fast.dual    swiftvideo_fast.ops.reference
swiftvideo_fast.ops
swiftvideo_fast.dispatch
swiftvideo_fast.protocol
swiftvideo_fast.rules
swiftvideo_fast.dynamo  swiftvideo_fast.intercept
swiftvideo_fast.jvp
swiftvideo_fast
swiftvideo_fast.models  swiftvideo_fast.path
swiftvideo_fast.adversary  swiftvideo_fast.sampler
swiftvideo_fast.data
swiftvideo_fast.objectives
swiftvideo_fast.metrics
swiftvideo_fast.train   swiftvideo_fast.doctor
swiftvideo_fast.plan    swiftvideo_fast.plan_recipe
swiftvideo_fast.reference
swiftvideo_fast.report
swiftvideo_fast.demo    swiftvideo_fast.release
swiftvideo_fast.evaluate
swiftvideo_fast.cli
swiftvideo_fast.__main__
"""
RANK = {name: line for line, names in enumerate(ORDER.splitlines()) for name in names.split()}
ONLY_IN = {                                     # package: the only place that imports it
    "deepspeed": "swiftvideo_fast.train.zero3",
    "nvidia": "swiftvideo_fast.data.dali",
    "pyarrow": "swiftvideo_fast.data.index",
    "peft": "swiftvideo_fast.models.lora",
    "triton": "swiftvideo_kernels",
    "flash_attn": "swiftvideo_kernels.attention_backends",
    "flash_attn_interface": "swiftvideo_kernels.attention_backends",
}
KERNELS_MAY_IMPORT = {"torch", "triton", "flash_attn", "flash_attn_interface", "swiftvideo_kernels",
                      *sys.stdlib_module_names}
MODULES = {".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__"): path
           for base in (ROOT, ROOT / "kernels") for path in base.glob("swiftvideo_*/**/*.py")}


def group(module: str) -> str | None:
    """Returns the longest name of ORDER that contains the module; "swiftvideo_fast" is its __init__.py."""
    held = [name for name in RANK if f"{module}.".startswith(f"{name}.") and name != "swiftvideo_fast"]
    return max(held, key=len, default=module if module in RANK else None)


def imports(module: str) -> Iterator[str]:
    """Returns full names; `from a import b` gives a.b if that is one of our modules, else a."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[:len(package.split(".")) + 1 - node.level] if node.level else []
            origin = ".".join([*parts, *filter(None, [node.module])])
            for alias in node.names:
                name = f"{origin}.{alias.name}"
                yield name if name in {*MODULES, "swiftvideo_fast._C"} else origin


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_upwards(module):
    here = group(module)
    assert here, f"{module} has no place in ORDER: give it one"
    for name in imports(module):
        there = group(name)
        assert there in {None, here} or RANK[there] < RANK[here], f"{module} imports {name}, not above it"


def test_the_loop_knows_no_plug():
    plugs = "objectives models data adversary metrics report demo".split()
    known = [name for name in imports("swiftvideo_fast.train.loop")
             if name.split(".")[1:2] and name.split(".")[1] in plugs]
    assert not known, f"train/loop.py imports {known}: pass it as an argument"


def test_the_recipe_alone_holds_the_tables():
    """Apart from it, only the command line and the demo name a plug, for its specific features."""
    plugs = {f"swiftvideo_fast.{name}" for name in (
        "objectives.ccd", "objectives.dcd", "objectives.flow", "objectives.da", "models.toy.family",
        "models.wan.family")}
    for module in MODULES:
        if module.startswith("swiftvideo_fast.train.") and module != "swiftvideo_fast.train.recipe":
            assert not plugs & {*imports(module)}, module


@pytest.mark.parametrize("package, home", ONLY_IN.items())
def test_one_place_knows(package, home):
    for module in MODULES:
        if not f"{module}.".startswith(f"{home}."):
            known = {name.split(".")[0] for name in imports(module)}
            assert package not in known, f"{module} imports {package}: only {home} may"


def test_kernels_stand_alone():
    for module in MODULES:
        if module.startswith("swiftvideo_kernels"):
            others = {name.split(".")[0] for name in imports(module)} - KERNELS_MAY_IMPORT
            assert not others, f"{module} imports {others}"


def test_kernels_is_not_a_package():
    assert not (ROOT / "kernels/__init__.py").exists(), "it would shadow HuggingFace's package `kernels`"


def test_two_files_of_csrc_know_torch():
    for path in (ROOT / "csrc").rglob("*.*"):
        included = re.findall(r"#include [<\"](torch|ATen|c10|pybind11)/", path.read_text())
        known = path.name in ("bindings.cpp", "tensors.h")
        assert known or not included, f"{path.name} includes {included[0]}"
