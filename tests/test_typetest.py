"""Questions for the type of a Dual: right or an error, in this Python and in each other that is installed."""

import subprocess
import weakref
from pathlib import Path

import pytest
import torch
import type_questions

from swiftvideo_fast import jvp

PYENV = Path.home() / ".pyenv" / "versions"
PYTHONS = [*Path("/usr/bin").glob("python3.1[1-9]"), *PYENV.glob("3.1[1-9]*/bin/python")]


def test_every_question_is_answered_right_or_refused():
    assert type_questions.wrong() == []


@pytest.mark.parametrize("python", PYTHONS, ids=str)
def test_in_another_python(python):
    script = Path(type_questions.__file__)
    found = subprocess.run([python, "-E", "-B", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_class_that_the_code_computes_is_refused_by_a_network():
    def net(x):
        return x * 2 if isinstance(x, tuple([int, torch.Tensor])) else x * 3
    x = torch.ones(2)
    with pytest.raises(TypeError, match="the classes must be names .* assign them to a variable first"):
        jvp(net, (x,), (x,))


def test_a_question_keeps_no_local_alive():
    """Activations of a layer that asks for the type of its input die where the layer drops them."""
    def net(x):
        y = x * 2
        z, alive = y * y, weakref.ref(y)
        z = z if isinstance(x, torch.Tensor) else x          # an assert, rewritten by pytest, asks by a local
        del y
        dead.append(alive() is None)
        return z
    x, dead = torch.ones(2), []
    jvp(net, (x,), (x,))
    assert dead == [True]
