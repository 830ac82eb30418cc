"""jvp over unmodified networks of diffusers and transformers, against torch.func.jvp with math attention."""

import networks
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from swiftvideo_fast import jvp


def relative(got, want):
    return ((got - want).norm() / want.norm()).item()


@pytest.mark.parametrize("dtype, bar", [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["64", "32"])
@pytest.mark.parametrize("network", networks.ALL, ids=lambda n: n.__name__)
def test_agrees_with_torch_to_the_last_digits(network, dtype, bar, monkeypatch):
    monkeypatch.setattr(networks, "D", dtype)
    torch.manual_seed(0)
    function, inputs = network()
    tangents = tuple(map(torch.randn_like, inputs))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        want, t_want = torch.func.jvp(function, inputs, tangents)
    with torch.no_grad():
        got, t_got = jvp(function, inputs, tangents)
    assert got.dtype == t_got.dtype == dtype
    assert relative(got, want) < bar
    assert relative(t_got, t_want) < bar
