"""jvp over unmodified networks of diffusers and transformers, against torch.func.jvp with math attention."""

import networks
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from swiftvideo_fast import jvp


def relative(got, want):
    return ((got - want).norm() / want.norm()).item()


@pytest.mark.parametrize("network", networks.ALL, ids=lambda n: n.__name__)
def test_agrees_with_torch_to_the_last_digits(network):
    torch.manual_seed(0)
    function, inputs = network()
    tangents = tuple(map(torch.randn_like, inputs))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        want, t_want = torch.func.jvp(function, inputs, tangents)
    with torch.no_grad():
        got, t_got = jvp(function, inputs, tangents)
    assert relative(got, want) < 1e-10
    assert relative(t_got, t_want) < 1e-10
