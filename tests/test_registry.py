"""Every registered op has all its files: reference, CPU, GPU, tests, bench, compile case, mutants."""

import importlib
import pkgutil
from pathlib import Path

import mutants
import pytest
import torch

import bench
from bench.arguments import arguments
from bench.harness import CASES
from swiftvideo_fast import ops
from swiftvideo_fast.ops import reference

ROOT = Path(__file__).parents[1]
KERNELS = {"attention": ("attention_jvp", "attention_tangent")}         # else the op's own name

for module in pkgutil.iter_modules(bench.__path__, "bench."):
    if module.name.startswith("bench.bench_"):
        importlib.import_module(module.name)


@pytest.mark.parametrize("name", ops.OPS)
def test_an_op_has_all_its_files(name):
    assert hasattr(reference, name), "no meaning in ops/reference.py"
    for place in (f"csrc/{name}.h", f"kernels/swiftvideo_kernels/{name}.py", f"tests/test_{name}.py"):
        assert (ROOT / place).is_file(), f"no {place}"
    assert any(case.startswith(name) for case in CASES), "no case in bench/"
    for kernel in KERNELS.get(name, (name,)):
        assert len(mutants.MUTANTS.get(kernel, ())) >= 3, f"{kernel} has fewer than three mutants"


@pytest.mark.parametrize("name", ops.OPS)
@pytest.mark.parametrize("place, said", [
    ("bench", "no case in bench/"), ("mutants", "fewer than three mutants"), ("reference", "no meaning"),
    ("csrc", "no csrc/")])
def test_an_op_with_a_missing_file_fails(monkeypatch, tmp_path, name, place, said):
    """The compile case: tests/test_compile_report.py samples names from the registry and fails for a name
    without a case."""
    if place == "bench":
        for case in [case for case in CASES if case.startswith(name)]:
            monkeypatch.delitem(CASES, case)
    elif place == "mutants":
        monkeypatch.delitem(mutants.MUTANTS, KERNELS.get(name, (name,))[0])
    elif place == "reference":
        monkeypatch.delattr(reference, name)
    else:
        monkeypatch.setitem(globals(), "ROOT", tmp_path)
    with pytest.raises(AssertionError, match=said):
        test_an_op_has_all_its_files(name)


@pytest.mark.parametrize("name", ops.OPS)
def test_arguments_are_generated_for_every_custom_op(name):
    """The arguments of the bench, the compile report and the tests of all ops."""
    forms = ops.custom_ops(name)
    assert forms and next(iter(forms)).rstrip("_") == name
    for op in forms.values():
        given = arguments(op, 1, 5, 96, torch.float32, torch.randn)
        op(*given.values())
        assert "cuda" in op._backend_fns, f"{op._name} has no kernel"


def test_every_file_of_ops_is_registered():
    files = {path.stem for path in (ROOT / "swiftvideo_fast/ops").glob("*.py")}
    assert files - {"__init__", "check", "cpu", "reference"} == set(ops.OPS)


def test_an_argument_without_a_shape_is_refused():
    @torch.library.custom_op("swiftvideo_fast::unheard", mutates_args=())
    def unheard(h: torch.Tensor) -> torch.Tensor:
        return h.clone()

    with pytest.raises(ValueError, match="arguments: unheard takes h, which has no shape"):
        arguments(unheard, 1, 5, 96, torch.float32, torch.randn)
