"""jvp under torch.compile(fullgraph=True): one graph, equal to eager."""

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from swiftvideo_fast import jvp
from swiftvideo_fast.models.wan.network import PRESETS, Wan


def assert_one_graph(function, *inputs, backend="aot_eager", tolerance=1e-12):
    tangents = tuple(map(torch.randn_like, inputs))
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, tx: jvp(function, x, tx), fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(inputs, tangents), jvp(function, inputs, tangents),
                               rtol=tolerance, atol=tolerance)


def test_our_wan_is_one_graph():
    torch.manual_seed(0)
    net, c = Wan(PRESETS["tiny"]).requires_grad_(False), PRESETS["tiny"]
    for p in net.parameters():
        p.data.add_(0.02 * torch.randn_like(p))
    text, condition = torch.randn(1, 3, c.text_dim), torch.randn(1, c.condition, 2, 4, 4)
    x, t = torch.randn(1, c.latent, 2, 4, 4), torch.rand(1)
    assert_one_graph(lambda x, t: net(x, t, text, condition), x, t, tolerance=1e-5)


def test_a_wan_block_of_diffusers_is_one_graph():
    from diffusers.models.transformers.transformer_wan import WanTransformerBlock

    torch.manual_seed(0)
    block = WanTransformerBlock(32, 64, 2, cross_attn_norm=True, added_kv_proj_dim=32)
    block = block.double().requires_grad_(False)
    text = torch.randn(1, 512 + 6, 32).double()
    rotary = [torch.randn(1, 5, 1, 16).double() for _ in range(2)]
    x, e = torch.randn(1, 5, 32).double(), torch.randn(1, 6, 32).double()
    assert_one_graph(lambda x, e: block(x, text, e, rotary), x, e)


@pytest.mark.parametrize("network", [networks.dinov2, networks.umt5, networks.sd3], ids=lambda n: n.__name__)
def test_whole_networks_are_one_graph(network):
    torch.manual_seed(0)
    function, inputs = network()
    with torch.no_grad():
        assert_one_graph(function, *inputs, backend="eager")


def test_functions_without_a_rule_stay_in_the_graph():
    conv = nn.Conv1d(4, 4, 3).double()
    many = lambda x: F.group_norm(conv(x), 2).cumprod(-1) + torch.linalg.norm(x) - x.logsumexp(0).sum()  # noqa: E731
    assert_one_graph(many, torch.randn(1, 4, 8).double())


def test_the_primal_trains_through_the_graph():
    net, x = nn.Linear(4, 4).double(), torch.randn(3, 4).double()
    torch._dynamo.reset()
    run = lambda x: jvp(lambda x: F.silu(net(x)), (x,), (x,))                       # noqa: E731
    y, t = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    assert not t.requires_grad
    got, = torch.autograd.grad((y * t).sum(), net.weight)
    y, t = run(x)
    want, = torch.autograd.grad((y * t).sum(), net.weight)
    torch.testing.assert_close(got, want)
