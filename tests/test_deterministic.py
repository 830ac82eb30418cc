"""engine.deterministic: what the engines switch on, and that nothing else does."""

from unittest.mock import patch

import pytest
import tiny
import torch

from swiftvideo_fast.train import single, zero3


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("engine", ["plain", "zero3"])
@pytest.mark.parametrize("asked", [False, True])
def test_an_engine_switches_deterministic_kernels_on_where_asked(tmp_path, engine, asked):
    cfg = tiny.config(tmp_path, "ccd", engine={"name": engine, "deterministic": asked})
    with patch.object(zero3, "_start"):
        {"plain": single.Single, "zero3": zero3.Zero3}[engine](cfg)
    assert torch.are_deterministic_algorithms_enabled() is asked
    assert torch.is_deterministic_algorithms_warn_only_enabled() is asked
    assert torch.utils.deterministic.fill_uninitialized_memory is not asked


def test_it_is_off_by_default(tmp_path):
    assert not tiny.config(tmp_path, "ccd").engine.deterministic
