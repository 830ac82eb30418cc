"""Aliasing and lifetime of Duals: views, copies, buffers, caches, checkpoints; memory reads are refused."""

import ctypes
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from forward import D, assert_as_torch, draw
from torch import nn
from torch.utils.checkpoint import checkpoint

from swiftvideo_fast import NoTangent, jvp, ops
from swiftvideo_fast.layout import same_strides

W = draw(torch.Generator().manual_seed(5), 4, 4)
V = draw(torch.Generator().manual_seed(6), 4, 4)

# --- a Dual belongs to its jvp call ----------------------------------------------------------------------


class Cached(nn.Module):
    """Keeps its last features, a mean in a buffer, and activations in a list, as networks do."""

    def __init__(self):
        super().__init__()
        self.kept, self.seen = 0, []
        self.register_buffer("mean", torch.zeros(4, dtype=D))
        self.register_buffer("written", torch.zeros(4, dtype=D))

    def forward(self, x):
        y = 2 * x + self.kept + self.mean * x + self.written * x
        self.kept = x * 1
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        self.written.mul_(0.9).add_(0.1 * x.mean(0))
        self.seen.append(y)
        return y + self.mean + self.written


def by_hand(x, calls):
    """The same, its caches plain tensors between the calls."""
    kept, mean, written = 0, torch.zeros(4, dtype=D), torch.zeros(4, dtype=D)
    for _ in range(calls):
        def call(x, kept=kept, mean=mean, written=written):
            y = 2 * x + kept + mean * x + written * x
            return y + (0.9 * mean + 0.1 * x.mean(0)) + (0.9 * written + 0.1 * x.mean(0))
        result = torch.func.jvp(call, (x,), (V,))
        kept, mean, written = x * 1, 0.9 * mean + 0.1 * x.mean(0), 0.9 * written + 0.1 * x.mean(0)
    return result


def test_a_dual_of_an_earlier_call_is_a_constant():
    net = Cached()
    for calls in (1, 2, 3):
        torch.testing.assert_close(jvp(net, (W,), (V,)), by_hand(W, calls))


def test_outside_jvp_a_dual_is_its_primal():
    net = Cached()
    y, _ = jvp(net, (W,), (V,))
    kept = net.kept
    assert isinstance(kept, torch.Tensor) and torch.is_tensor(kept) and type(net.written) is torch.Tensor
    for plain in (net(W), kept + 1, kept.sum(), F.silu(kept), kept[0], torch.stack([kept, W]), kept.detach(),
        W @ kept,
                  ops.gelu(kept), net.state_dict()["mean"], pickle.loads(pickle.dumps(kept))):
        assert type(plain) is torch.Tensor
    torch.testing.assert_close(kept + 0, W)
    assert float(kept[0, 0]) == W[0, 0] and kept.numpy().shape == (4, 4)
    buffer = torch.zeros(4, 4, dtype=D)
    buffer[0] = kept[0]
    torch.testing.assert_close(buffer.copy_(kept), W)
    torch.testing.assert_close(jvp(lambda x: x * kept, (W,), (V,)), (W * W, V * W))
    torch.testing.assert_close(jvp(torch.sin, (kept,), (V,))[1], W.cos() * V)


def test_in_another_thread_a_dual_is_its_primal():
    kept, found = [], []
    jvp(lambda x: kept.append(x * 2) or x, (W,), (V,))
    thread = threading.Thread(target=lambda: found.append(jvp(lambda x: x * kept[0], (W,), (V,))))
    thread.start()
    thread.join()
    torch.testing.assert_close(found[0], (2 * W * W, 2 * V * W))


LAYER = nn.Linear(4, 4).double()


def buffered(x):
    buffer = torch.zeros(2, 4, 4, dtype=D)
    buffer[1] = LAYER(x).tanh()
    buffer[0] += x
    return buffer.sum(0) * x


def attended(x):
    q = LAYER(x)[None, None]
    return F.scaled_dot_product_attention(q, 2 * q, q)[0, 0]


def noisy(x):
    return F.dropout(LAYER(x), 0.5) * torch.rand_like(x)


def nested(x):
    return checkpoint(buffered, x, use_reentrant=False) * 2


@pytest.mark.parametrize("block", [buffered, attended, noisy, nested])
def test_a_recomputed_checkpoint_has_its_tangents(block):
    results = []
    for run in (block, lambda x: checkpoint(block, x, use_reentrant=False)):
        torch.manual_seed(0)
        LAYER.zero_grad()
        y, t = jvp(lambda x, run=run: run(x * 1).sin(), (W,), (V,))
        (y - t).square().sum().backward()
        results.append((t, LAYER.weight.grad.clone()))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_an_argument_modified_before_recomputation_raises():
    def net(x):
        h = x * 1
        y = checkpoint(buffered, h, use_reentrant=False)
        h.add_(1)
        return y + h
    y, _ = jvp(net, (W,), (V,))
    with pytest.raises(RuntimeError, match="modified in place"):
        y.sum().backward()


# --- layouts ---------------------------------------------------------------------------------------------

LAYOUTS = {
    "a slice": lambda rng: draw(rng, 4, 5)[:, 1:4], "a transpose": lambda rng: draw(rng, 3, 4).T,
    "every second": lambda rng: draw(rng, 8, 6)[::2, ::2],
    "expanded": lambda rng: draw(rng, 1, 3).expand(4, 3),
    "a plane of a permuted cube": lambda rng: draw(rng, 4, 3, 2).permute(2, 0, 1)[1],
    "channels last": lambda rng: draw(rng, 2, 3, 4, 5).to(memory_format=torch.channels_last),
}
TAKEN = [
    lambda x: x.contiguous(), lambda x: x.reshape(-1), lambda x: x.flatten(), lambda x: x.to(D),
    lambda x: x.double(),
    lambda x: x.clone(), lambda x: torch.cat([x]), lambda x: x.squeeze(),
    lambda x: torch.einsum("...->...", x),
    lambda x: x.as_strided(x.shape, x.stride()), lambda x: x.narrow(0, 0, 2), lambda x: torch.atleast_3d(x),
    lambda x: F.pad(x, (0, 0)), lambda x: x[[0, 1]], lambda x: x.diagonal(), lambda x: torch.abs(x),
    lambda x: x + 0,
    lambda x: F.dropout(x, 0.5, False), lambda x: x.as_strided(x.shape[:1], x.stride()[:1],
        x.storage_offset()),
]
WRITES = [lambda taken, x: taken.mul_(3), lambda taken, x: x.mul_(3), lambda taken, x: x.__setitem__(0, 5.0)]


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
def test_a_tangent_has_its_primals_layout_so_writes_reach_the_same_views(layout):
    for take in TAKEN:
        for write in WRITES:
            def net(x, take=take, write=write):
                taken = take(x)
                write(taken, x)
                return taken.sin(), x.cos()
            assert_as_torch(net, make=LAYOUTS[layout])


@pytest.mark.parametrize("copy", [
    lambda x: x.contiguous(), lambda x: x.reshape(12), lambda x: x.flatten(), lambda x: x.clone(),
    lambda x: x.ravel(),
    lambda x: x.to(memory_format=torch.contiguous_format, copy=True), lambda x: torch.cat([x]),
    lambda x: x + 0,
])
def test_a_copy_of_an_expanded_input_copies_its_tangent(copy):
    x, v = W[:1].expand(4, 4)[:, :3], V[:, :3]
    y, t = jvp(lambda x: copy(x).mul_(3).view(4, 3) + x, (x,), (v,))
    torch.testing.assert_close((y, t), (4 * x, 4 * v))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_and_zeros_have_the_primals_strides(layout):
    x = LAYOUTS[layout](torch.Generator().manual_seed(0))
    v = torch.ones(x.shape, dtype=D)
    constant = LAYOUTS[layout](torch.Generator().manual_seed(1))
    ys, ts = jvp(lambda x: (x, x * 1, x[1:], constant), (x,), (v,))
    for y, t in zip(ys, ts, strict=True):
        assert layout == "expanded" or same_strides(t, y)


# --- buffers ---------------------------------------------------------------------------------------------


def filled(x, dtype=D, shape=(4, 4)):
    buffer = torch.zeros(shape, dtype=dtype)
    buffer[:] = x.to(dtype).view(shape)
    return buffer


def detached_before(x):
    buffer = torch.zeros(4, 4, dtype=D)
    constant = buffer.detach()
    buffer[:] = x
    return constant * x + constant[0] + buffer


def complex_alias(x):
    buffer = torch.zeros(4, 4, dtype=D)
    alias = torch.view_as_complex(buffer.view(4, 2, 2))
    buffer[:] = x
    return alias.abs() + alias.T.imag.T + alias.conj().imag + alias.real


def views(x):
    buffer = torch.zeros(4, 4, dtype=D)
    turned, rows = buffer.T, buffer[1:]
    buffer.copy_(x)
    rows *= 2
    return turned + buffer, rows.sum(), buffer.shape[0] * x, buffer.T @ x, buffer.mT, [buffer, turned[0]]


def many_writes(x):
    y = torch.zeros(4, 4, dtype=D)
    y.view(-1).scatter_(0, torch.arange(4), x[0])
    y.put_(torch.tensor([15]), x[0, :1])
    y.addmm_(x, x).add_(x, alpha=2).lerp_(x, 0.5).addcmul_(x, x, value=2).clamp_(min=-0.5)
    y.masked_fill_(y > 1, x[0, 0]).index_copy_(0, torch.tensor([0]), x[1:2])
    return F.leaky_relu_(torch.relu_(y), 0.1)


@pytest.mark.parametrize("function", [
    lambda x: filled(x).detach() * x, lambda x: filled(x).data * x + filled(x).detach()[0], detached_before,
    complex_alias, views, many_writes, lambda x: torch.sparse.mm(torch.eye(4, dtype=D).to_sparse(),
        W) * filled(x),
    lambda x: filled(x, torch.complex128, (16,)).real.view(4, 4) + x,
])
def test_a_buffer_written_with_a_dual(function):
    assert_as_torch(function, (4, 4))


def test_a_buffer_in_inference_mode():
    def net(x):
        with torch.inference_mode():
            buffer = torch.zeros(4, 4, dtype=D)
            row = buffer[1]
            row += x[0]
            return buffer * 1
    torch.testing.assert_close(jvp(net, (W,), (V,))[1][1], V[0])


# --- memory behind the dispatcher ------------------------------------------------------------------------


class ReadsData(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.data * 2

    @staticmethod
    def backward(ctx, g):
        return 2 * g


@torch.library.custom_op("tests::double_into", mutates_args=("y",))
def double_into(x: torch.Tensor, y: torch.Tensor) -> None:
    y.copy_(x * 2)


def written_by(function, *, like=True):
    def net(x):
        y = torch.zeros_like(x) if like else torch.zeros(4, 4, dtype=D)
        function(x, y)
        return y * x
    return net


@pytest.mark.parametrize("function, name", [
    (written_by(lambda x, y: ctypes.memmove(y.data_ptr(), x.data_ptr(), 8)), "data_ptr"),
    (lambda x: x.untyped_storage() and x, "untyped_storage"), (lambda x: x.__dlpack__(), "dlpack"),
    (lambda x: x.__cuda_array_interface__, "cuda_array_interface"),
    (lambda x: torch.from_numpy(x.numpy()), "numpy"), (lambda x: torch.tensor([x.sum()]) * x, "tensor"),
    (ReadsData.apply, "detach"), (written_by(double_into), "double_into"),
    (written_by(double_into, like=False), "double_into"),
    (written_by(torch.ops.tests.double_into), "double_into"),
    (written_by(lambda x, y: double_into(W, y)), "double_into"),
    (lambda x: torch.ops.aten.mul_(x * 1, 2), "mul_"), (lambda x: x * filled(x).sum().item(), "item"),
    (lambda x: ctypes.memmove(filled(x).data_ptr(), W.data_ptr(), 8) and x, "data_ptr"),
    (lambda x: filled(x, torch.float32).view(torch.int32) * x, "view"),
    (lambda x: pickle.dumps(x) and x, "pickle"),
    (lambda x: torch._foreach_copy_([torch.zeros(4, 4, dtype=D)], [x]), "foreach_copy_"),
])
def test_undispatched_memory_access_raises_with_its_name(function, name):
    with pytest.raises(NoTangent, match=name):
        jvp(function, (W.clone(),), (V,))


def test_an_integer_alias_of_a_buffer_raises():
    def net(x):
        buffer = torch.zeros(4, 4, dtype=D)
        bits = buffer.view(torch.int64)
        buffer[:] = x
        return bits * x
    with pytest.raises(NoTangent, match="a buffer that holds a tangent, read as torch.int64"):
        jvp(net, (W,), (V,))


def test_functionalize_around_a_fused_op_raises(rng):
    q = draw(rng, 1, 2, 5, 8)
    attend = lambda q: ops.attention(q, q, q)                                              # noqa: E731
    with pytest.raises(NoTangent, match="attention: functionalize inside forward mode"):
        torch.func.jvp(torch.func.functionalize(attend), (q,), (q,))
    with pytest.raises(NoTangent, match="attention: vmap inside forward mode"):
        torch.func.jvp(torch.vmap(attend), (q[None],), (q[None],))
    torch.testing.assert_close(jvp(torch.func.functionalize(attend), (q,), (q,)), jvp(attend, (q,), (q,)))
