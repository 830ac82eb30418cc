"""jvp under torch.compile(fullgraph=True): one graph, equal to eager."""

import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from swiftvideo_fast import intercept, jvp
from swiftvideo_fast.dual import CURRENT
from swiftvideo_fast.models.wan.network import Wan
from swiftvideo_fast.models.wan.sizes import PRESETS


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

    def many(x):
        return F.group_norm(conv(x), 2).cumprod(-1) + torch.linalg.norm(x) - x.logsumexp(0).sum()
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


W = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)).double() + 0.1


class Cached(nn.Module):
    """Caches its last input."""

    kept = 0

    def forward(self, x):
        y = 2 * x + self.kept
        self.kept = x * 1
        return y


def every_operator(x):
    """Dual and plain in both orders, in place through a view too; type tests; attributes; calls by name."""
    y, z = x @ W + W @ x + x @ x.t(), x * 1
    whole, flat = z, z.view(-1)
    z += W
    z *= x
    z -= 0.5
    z /= W
    z @= W
    y = y + x - W + (W - x) * x / W + W / x + 2**x + x**2 + W**x + x**W - (3 - x) + 1 / x
    y = y + z + whole + flat.view(4, 4)
    y = torch.where(x < W, y, 2 * y) + torch.where(x >= W, y, x) + (x > 0.5) * x + x.T + x.mT
    y = y * 2 if isinstance(x, torch.Tensor) and isinstance(x, int | torch.Tensor) else y * 3
    y = y * 2 if torch.is_tensor(x) else y * 3
    y = y * 2 if isinstance(x, (list, nn.Parameter)) else y
    y = y + x.split(2, dim=1)[0].repeat(1, 2) + x.norm(dim=1) + x.unflatten(1, (2, 2)).flatten(1)
    y = y + x.softmax(axis=-1)
    return y + torch.einsum(x, [0, 1], W, [1, 2], [0, 2]) + torch.matmul(x, other=W) + torch.diff(
        x, prepend=x[:, :1]) + torch.where(x > 0, other=W, input=x) - x % W + x // W


def test_each_operator_equals_eager():
    assert_one_graph(every_operator, torch.rand(4, 4).double() + 0.2, backend="eager")


def test_jvp_over_a_compiled_network_is_compiled_once():
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.SiLU(), nn.Linear(4, 4)).double()
    x, v = torch.randn(2, 3, 4).double()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        torch.testing.assert_close(jvp(compiled, (x,), (v,)), jvp(net, (x,), (v,)))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    got, = torch.autograd.grad(jvp(compiled, (x,), (v,))[0].sum(), net[0].weight)
    torch.testing.assert_close(got, torch.autograd.grad(net(x).sum(), net[0].weight)[0])
    assert type(compiled(x)) is torch.Tensor


def test_a_fresh_process_supports_duals_in_a_compiled_network():
    """No jvp was traced before."""
    script = """
import torch
from swiftvideo_fast import jvp
W, x, v = torch.rand(3, 4, 4).double().unbind()
net = lambda x: x @ W * (2 if isinstance(x, torch.Tensor) else 3)
got = jvp(torch.compile(net, backend="eager", fullgraph=True), (x,), (v,))
torch.testing.assert_close(got, (2 * x @ W, 2 * v @ W))
"""
    in_a_fresh_process(script)


def test_a_fresh_process_compiles_one_jvp_after_another():
    """No jvp ran eagerly before."""
    in_a_fresh_process("""
import torch
from swiftvideo_fast import jvp
x, v = torch.rand(2, 4, 4).double().unbind()
for net in (torch.sin, torch.cos):
    torch._dynamo.reset()
    got = torch.compile(lambda x, v: jvp(net, (x,), (v,)), backend="eager")(x, v)
    torch.testing.assert_close(got, torch.func.jvp(net, (x,), (v,)))
""")


def in_a_fresh_process(script):
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("compiled", ["jvp", "network"])
def test_a_cache_holds_constants_when_compiled_too(compiled):
    net, one = Cached(), torch.ones(2)
    torch._dynamo.reset()
    called = torch.compile(net, backend="eager") if compiled == "network" else net
    run = lambda x, v: jvp(called, (x,), (v,))                                              # noqa: E731
    run = torch.compile(run, backend="eager") if compiled == "jvp" else run
    for value in (2.0, 3.0, 3.0):
        torch.testing.assert_close(run(one, one), (value * one, 2 * one))
    assert type(net(one)) is torch.Tensor


def of_memory(graph, inputs):
    """A backend whose code reads the memory of tensors, as inductor's, and asks no mode."""
    def run(*args):
        with torch._C.DisableTorchFunction():
            return graph(*args)
    return run


def filtered(x):
    torch._dynamo.graph_break()
    return [y for y in (x @ W, W @ x, 3) if isinstance(y, torch.Tensor)]


def nested(x):
    """The graph break is in the inner frame; the outer one continues as Python."""
    def inner(x):
        with nullcontext():
            torch._dynamo.graph_break()
            return x * 2 if isinstance(x.cumprod(0), int | torch.Tensor) else x * 3
    y = inner(x)
    return y @ W if torch.is_tensor(y) and len([*filter(lambda z: isinstance(z, torch.Tensor), [y])]) else y


def inside_a_context_manager(x):
    """Dynamo skips the whole function and traces its callees."""
    with warnings.catch_warnings():
        torch._dynamo.graph_break()
        y = sum(y for y in torch.tensor_split(x, 2) if isinstance(y * 1, torch.Tensor))
        match x.sin():
            case torch.Tensor():
                y = W[:2] @ y.mT - y @ W[:, :2]
    return y


def buffered_to_the_end(x):
    """Dynamo compiles what follows the write, in another frame."""
    kept = torch.zeros(4, 4, dtype=x.dtype)
    torch._dynamo.graph_break()
    kept[:2] = x[:2]
    torch._dynamo.graph_break()
    return kept.sin() + x


def recomputed(x):
    return checkpoint(nested, x, use_reentrant=False)


def buffered(x, block=recomputed):
    kept = torch.zeros(4, 4, dtype=x.dtype)
    torch._dynamo.graph_break()
    kept[:2] = x[:2] if isinstance(x, torch.Tensor) else 0
    torch._dynamo.graph_break()
    return W @ kept + torch.vmap(lambda row: row * 2)(x) + block(x)


def unchecked(x):
    """torch.func.jvp of a checkpoint fails in torch 2.11."""
    return buffered(x, nested)


@pytest.mark.parametrize("compiled", ["jvp", "network"])
@pytest.mark.parametrize("network", [filtered, nested, inside_a_context_manager, buffered,
                                     buffered_to_the_end], ids=lambda n: n.__name__)
def test_a_graph_break_changes_nothing(network, compiled):
    x, v = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    want = torch.func.jvp(unchecked if network is buffered else network, (x,), (v,))
    torch._dynamo.reset()
    called = torch.compile(network, backend=of_memory) if compiled == "network" else network
    run = lambda x, v: jvp(called, (x,), (v,))                                              # noqa: E731
    run = torch.compile(run, backend=of_memory) if compiled == "jvp" else run
    for _ in range(2):
        torch.testing.assert_close(run(x, v), want)
    assert CURRENT.level is None and intercept.running == 0


def test_compiled_code_does_not_drop_the_tangent_of_a_plain_buffer():
    """Also where Dynamo has compiled it before, for a plain tensor outside of jvp and in it."""
    def net(x, block):
        kept = torch.zeros(4, 4, dtype=x.dtype)
        before = block(kept) + block(x)
        kept[:2] = x[:2]
        return before + block(kept)
    block = lambda x: x.sin() * 2 + x                                                       # noqa: E731
    x, v = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    torch._dynamo.reset()
    compiled = torch.compile(block, backend=of_memory)
    compiled(x)
    for _ in range(2):
        torch.testing.assert_close(jvp(lambda x: net(x, compiled), (x,), (v,)),
                                   torch.func.jvp(lambda x: net(x, block), (x,), (v,)))


def test_a_type_test_works_in_code_generated_by_dynamo():
    """After a graph break the rest runs in a function without source positions."""
    def net(x):
        torch._dynamo.graph_break()
        return x * 2 if isinstance(x, torch.Tensor) else x * 3
    x, v = torch.randn(2, 3).double()
    torch._dynamo.reset()
    got = torch.compile(lambda x, v: jvp(net, (x,), (v,)), backend="eager")(x, v)
    torch.testing.assert_close(got, (2 * x, 2 * v))


def test_an_error_of_dynamo_does_not_change_torchs_state():
    """Printing a fake tensor fails inside torch.nanquantile's jvp: freeing torch's traceback must not change
    the dispatch keys."""
    in_a_fresh_process("""
import gc, logging, torch
from swiftvideo_fast import jvp
logging.disable(logging.CRITICAL)
x, v = torch.rand(2, 5).double()
local = (torch._C._dispatch_tls_local_exclude_set, torch._C._dispatch_tls_local_include_set)
keys = lambda: [str(these()) for these in local]
before, kept = keys(), None
try:
    torch.compile(lambda x, v: jvp(lambda x: x.nanquantile(0.5), (x,), (v,)), backend="eager")(x, v)
except torch._dynamo.exc.TorchRuntimeError as error:
    kept = error
assert keys() == before
del kept
gc.collect()
assert keys() == before
assert x.view(1, 5)._base is not None
""")


def test_a_thread_without_view_tracking_is_refused():
    """A plain tensor's views would not find its shadow, and its tangent would be lost silently."""
    def buffered(x):
        kept = torch.zeros(4)
        kept.view(2, 2)[0] = x[:2]
        return kept * x
    x = torch.ones(4)
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)):
        with pytest.raises(RuntimeError, match="dispatcher skips autograd and views.*call jvp outside"):
            jvp(buffered, (x,), (x,))
        assert CURRENT.level is None and intercept.running == 0
    torch.testing.assert_close(jvp(buffered, (x,), (x,))[1], torch.tensor([2.0, 2, 0, 0]))
