"""Type tests of a Dual: correct or an error, in this Python and every other installed one."""

import subprocess
import weakref
from pathlib import Path

import pytest
import torch
import type_test_cases

from swiftvideo_fast import jvp

PYENV = Path.home() / ".pyenv" / "versions"
PYTHONS = [*Path("/usr/bin").glob("python3.1[1-9]"), *PYENV.glob("3.1[1-9]*/bin/python")]


def test_every_type_test_is_correct_or_refused():
    assert type_test_cases.wrong() == []


@pytest.mark.parametrize("python", PYTHONS, ids=str)
def test_in_another_python(python):
    script = Path(type_test_cases.__file__)
    found = subprocess.run([python, "-E", "-B", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_class_that_the_code_computes_is_refused_by_a_network():
    def net(x):
        return x * 2 if isinstance(x, tuple([int, torch.Tensor])) else x * 3
    x = torch.ones(2)
    with pytest.raises(TypeError, match="computed in the call; want names .*: assign them to a variable"):
        jvp(net, (x,), (x,))


def test_a_type_test_keeps_no_local_alive():
    """Activations of a layer that tests its input's type are freed where the layer drops them."""
    def net(x):
        y = x * 2
        z, alive = y * y, weakref.ref(y)
        z = z if isinstance(x, torch.Tensor) else x          # an assert rewritten by pytest tests a local
        del y
        dead.append(alive() is None)
        return z
    x, dead = torch.ones(2), []
    jvp(net, (x,), (x,))
    assert dead == [True]
