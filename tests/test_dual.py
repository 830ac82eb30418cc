"""Dual and jvp against torch.func.jvp."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from swiftvideo_fast import Dual, NoTangent, jvp, ops


def draw(rng, *shape):
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def assert_same(function, *inputs, rng):
    """value and tangent of function, as torch.func.jvp gives them."""
    tangents = tuple(draw(rng, *x.shape) for x in inputs)
    with sdpa_kernel(SDPBackend.MATH):
        want = torch.func.jvp(function, inputs, tangents)
    torch.testing.assert_close(jvp(function, inputs, tangents), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", [
    dict(), dict(is_causal=True), dict(scale=0.3), dict(enable_gqa=True), dict(mask="bool"),
    dict(mask="float"),
    dict(mask="bool", enable_gqa=True), dict(mask="row", scale=0.5),
], ids=lambda c: ", ".join(c) or "plain")
def test_attention_carries_tangents_of_query_key_and_value(rng, case, monkeypatch):
    monkeypatch.setattr("swiftvideo_fast.rules.attention.BLOCK_ELEMENTS", 64)      # several blocks of rows
    masks = {"bool": draw(rng, 2, 1, 7, 9) > -0.5, "float": draw(rng, 7, 9), "row": draw(rng, 2, 1, 1, 9)}
    case = dict(case)
    mask = masks.get(case.pop("mask", None))
    heads = 2 if case.get("enable_gqa") else 4
    q, k, v = draw(rng, 2, 4, 7, 8), draw(rng, 2, heads, 9, 8), draw(rng, 2, heads, 9, 8)
    assert_same(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask, **case), q, k, v, rng=rng)


def test_a_learned_mask_carries_its_tangent(rng):
    q, k, v, mask = draw(rng, 1, 2, 5, 4), draw(rng, 1, 2, 6, 4), draw(rng, 1, 2, 6, 4), draw(rng, 1, 2, 5, 6)
    assert_same(lambda q, mask: F.scaled_dot_product_attention(q, k, v, mask), q, mask, rng=rng)


def test_a_row_without_keys_is_zero_as_in_torch(rng):
    q, mask = draw(rng, 1, 1, 3, 4), torch.tensor([[True, False], [False, False], [True, True]])
    k = draw(rng, 1, 1, 2, 4)
    o, to = jvp(lambda q: F.scaled_dot_product_attention(q, k, k, mask), (q,), (q,))
    assert (o[0, 0, 1] == 0).all() and (to[0, 0, 1] == 0).all() and to.isfinite().all()


def test_dropout_in_attention_is_shared_by_value_and_tangent(rng):
    q, k, v = (draw(rng, 1, 2, 5, 4) for _ in range(3))
    run = lambda v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)         # noqa: E731  linear in v
    torch.manual_seed(0)
    o, to = jvp(run, (v,), (v,))
    torch.testing.assert_close(o, to)


def test_torchs_own_forward_mode_passes_through_the_fused_ops(rng):
    q, k, v, tq, tk, tv = (draw(rng, 2, 4, 6, 8) for _ in range(6))
    o, to = jvp(ops.attention, (q, k, v), (tq, tk, tv))
    torch.testing.assert_close(torch.func.jvp(ops.attention, (q, k, v), (tq, tk, tv)), (o, to))
    with torch.autograd.forward_ad.dual_level():
        make, unpack = torch.autograd.forward_ad.make_dual, torch.autograd.forward_ad.unpack_dual
        got = unpack(ops.attention(make(q, tq), make(k, tk), make(v, tv)))
        torch.testing.assert_close(tuple(got), (o, to))
    x, s, tx = draw(rng, 2, 3, 8), draw(rng, 2, 8), draw(rng, 2, 3, 8)
    block = lambda x: ops.gate(ops.gelu(x), ops.modulate(x, s, s), s)               # noqa: E731
    torch.testing.assert_close(torch.func.jvp(block, (x,), (tx,)), jvp(block, (x,), (tx,)))


@pytest.mark.parametrize("layer", [
    nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(5, 5), nn.BatchNorm1d(5, track_running_stats=False),
    nn.BatchNorm1d(5).eval(), nn.InstanceNorm1d(5), nn.Conv1d(5, 4, 3, padding="same"), nn.Softmax(-1),
    nn.ConvTranspose1d(5, 6, 3), nn.Bilinear(8, 8, 3), nn.GLU(), nn.PReLU(), nn.SELU(), nn.ReLU(inplace=True),
    nn.SiLU(inplace=True), nn.AdaptiveAvgPool1d(2), nn.MaxPool1d(2),
    nn.Upsample(scale_factor=2, mode="linear"),
], ids=str)
def test_layers_of_torch(rng, layer):
    layer, x = layer.double(), draw(rng, 3, 5, 8)
    assert_same(lambda x: layer(x * 1, x) if isinstance(layer, nn.Bilinear) else layer(x * 1), x, rng=rng)


@pytest.mark.parametrize("need_weights", [True, False])
def test_multi_head_attention_and_encoder_layers(rng, need_weights):
    attend = nn.MultiheadAttention(8, 2, batch_first=True).double()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    assert_same(lambda x: attend(x, x, x, key_padding_mask=padding, need_weights=need_weights)[0],
                draw(rng, 2, 5, 8), rng=rng)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True).double()
    assert_same(layer, draw(rng, 2, 5, 8), rng=rng)
    with torch.no_grad():                                   # torch's own fast path has no forward mode
        x = draw(rng, 2, 5, 8)
        torch.testing.assert_close(jvp(layer.eval(), (x,), (x,)), jvp(layer.train(), (x,), (x,)))


ONES = torch.ones(4, 4, dtype=torch.float64)
IN_PLACE = {
    "a rotary table written into empty_like": lambda x: _rotary(x),
    "a slice of a slice": lambda x: _written(x, lambda y: y[:, 1:][:, ::2].mul_(x[:, :1])),
    "a view taken before the write": lambda x: _seen_through_a_view(x),
    "augmented assignment": lambda x: _written(x, lambda y: y.__iadd__(x).__imul__(3)),
    "a buffer of the network's own": lambda x: _buffered(x),
    "a constant, then x, into new_zeros": lambda x: _filled(x, x.new_zeros(4, 4)),
    "a buffer as an argument": lambda x: _beside(x, torch.zeros(4, 4, dtype=x.dtype)),
    "masked_fill_": lambda x: _written(x, lambda y: y.masked_fill_(y > 0, 1.0)),
    "copy_ into new_zeros": lambda x: x.new_zeros(x.shape).copy_(x) * x,
    "index_add_": lambda x: _written(x, lambda y: y.index_add_(0, torch.tensor([0, 2]), x[:2])),
    "transpose_": lambda x: _written(x, lambda y: y.transpose_(0, 1)),
    "zero_ on a view": lambda x: _written(x, lambda y: y[0].zero_()),
    "an outer sum, then a write": lambda x: _written(x[:, :1] + ONES[:1], lambda y: y[:, 0].fill_(5.0)),
}


def _written(x, write):
    y = x * 1
    write(y)
    return y * y


def _seen_through_a_view(x):
    y = x * 2
    view = y.view(-1)
    y.add_(x)
    return view * 2


def _rotary(x):
    out = torch.empty_like(x)
    out[..., 0::2], out[..., 1::2] = x[..., 0::2] * 2 - x[..., 1::2], x[..., 1::2] * 3
    return out * x


def _buffered(x):
    buffer = torch.zeros(2, *x.shape, dtype=x.dtype)
    view = buffer[1]
    buffer[1, :, ::2] = x[:, ::2]
    view += x
    return (buffer.sum(0) * x, view)


def _filled(x, buffer):
    buffer[0] = ONES[0]
    buffer[1:] = x[1:]
    return buffer * x


def _beside(x, buffer):
    """A plain tensor that holds a tangent is the other argument of operators, methods and functions."""
    buffer[:, ::2] = x[:, ::2]
    y = (x * 1).copy_(buffer).add_(buffer)
    return x * buffer + x.mul(buffer) @ buffer + x.where(x > 0, buffer) + buffer * x, x.atan2(buffer + 2), y


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_writes_keep_the_tangent(rng, name):
    assert_same(IN_PLACE[name], draw(rng, 4, 4), rng=rng)


LINEAR = nn.Linear(4, 4).double()


@pytest.mark.parametrize("function", [
    lambda x: x.t() @ x.T + x.mT, lambda x: torch.einsum("ij,kj->ik", x, x),
    lambda x: 2 - x / 3 + 1 / (x * x + 1),
    lambda x: torch.ones(4, 4).double() - x @ torch.eye(4).double(), lambda x: 2**x + x.exp() ** 2,
    lambda x: torch.stack(list(x)).sum(0), lambda x: torch.where(x > 0, x, 0.0), lambda x: x[x > 0],
    lambda x: x.to(torch.float32).double(), lambda x: x.unflatten(1, (2, 2)).flatten(0, 1).movedim(0, 1),
    lambda x: torch.view_as_complex(x.view(4, 2, 2)).abs(), lambda x: torch.fft.rfft(x).real,
    lambda x: torch.polar(x.abs(), x).imag, lambda x: F.normalize(x).norm(dim=0),
    lambda x: x.softmax(0).topk(2).values,
    lambda x: {"a": (x, [x * 2])}, lambda x: F.cross_entropy(x, torch.arange(4)), lambda x: x.detach() * x,
    lambda x: torch.linalg.solve(x, x.T), lambda x: F.pad(x, (1, 2), value=3.0), lambda x: x.max(-1).values,
    lambda x: torch.func.functional_call(LINEAR, {"weight": x, "bias": x[0]}, x),
    lambda x: F.embedding(torch.tensor([1, 1, 3]), x), lambda x: torch.cat((x, torch.ones(4, 1).double()), 1),
])
def test_expressions(rng, function):
    assert_same(function, draw(rng, 4, 4), rng=rng)


def test_a_missing_tangent_is_exactly_zero(rng):
    x, y, tx = (draw(rng, 3, 4) for _ in range(3))
    function = lambda x, y, extra: (x * y["a"], y["a"] * 2)                        # noqa: E731
    got, t = jvp(function, (x, {"a": y}, None), (tx, None, None))
    torch.testing.assert_close((got, t), ((x * y, y * 2), (tx * y, torch.zeros_like(y))), rtol=0, atol=0)


def test_ops_without_any_tangent_give_plain_tensors(rng):
    x = draw(rng, 3, 3)
    seen = []
    jvp(lambda x, c: (seen.append(torch.linalg.inv(c @ c.T + 1)), x)[1], (x, x), (x, None))
    assert type(seen[0]) is torch.Tensor


def test_the_tangent_is_never_on_the_tape_and_the_primal_is(rng):
    net, x = nn.Linear(4, 4).double(), draw(rng, 3, 4).requires_grad_()
    y, t = jvp(lambda x: torch.linalg.norm(F.silu(net(x)), dim=1), (x,), (x.detach(),))
    assert y.requires_grad and not t.requires_grad
    with torch.no_grad():
        assert not jvp(net, (x,), (x,))[0].requires_grad


def test_inputs_and_tangents_are_not_modified(rng):
    x, v = draw(rng, 3, 4), draw(rng, 3, 4)
    kept = v.clone()
    jvp(lambda x: (x * 2).add_(1), (x,), (v,))
    assert torch.equal(v, kept)


def test_has_aux_and_strict(rng):
    x = draw(rng, 3)
    y, t, aux = jvp(lambda x: (x * 2, {"norm": x.norm()}), (x,), (x,), has_aux=True)
    torch.testing.assert_close((y, t, aux), (2 * x, 2 * x, {"norm": x.norm()}))
    with pytest.raises(RuntimeError, match="strict"):
        jvp(lambda x: torch.ones(2), (x,), (x,), strict=True)


@pytest.mark.parametrize("primals, tangents", [
    (lambda x: [x], lambda x: [x]), (lambda x: (x,), lambda x: [x]), (lambda x: (x, x), lambda x: (x,)),
    (lambda x: (x,), lambda x: (x[:2],)), (lambda x: (x,), lambda x: (x.float(),)),
    (lambda x: (), lambda x: ()),
    (lambda x: (x, 3), lambda x: (x, 3)), (lambda x: (x,), lambda x: (None,)),
    (lambda x: (x.long(),), lambda x: (x.long(),)), (lambda x: ({"a": x},), lambda x: (x,)),
])
def test_mismatched_inputs_raise(rng, primals, tangents):
    x = draw(rng, 3)
    with pytest.raises((RuntimeError, ValueError), match="jvp"):
        jvp(lambda *a: a[0], primals(x), tangents(x))


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x / 2

    @staticmethod
    def backward(ctx, g):
        return g / 2


@torch.library.custom_op("tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@pytest.mark.parametrize("function, name", [
    (lambda x: x * x.sum().item(), "item"), (lambda x: x * float(x.sum()), "float"),
    (lambda x: x.tolist(), "tolist"), (lambda x: x.numpy(), "numpy"),
    (lambda x: torch.add(x, x, out=torch.empty(3)), "add"), (Halved.apply, "div"),
    (lambda x: doubled(x), "doubled"), (lambda x: x.view(torch.int64), "view"),
])
def test_a_function_that_would_lose_a_tangent_raises_with_its_name(rng, function, name):
    x = draw(rng, 3)
    with pytest.raises(NoTangent, match=name):
        jvp(function, (x,), (x,))


def test_a_write_into_a_plain_tensor_outside_jvp_raises(rng):
    x, buffer = draw(rng, 3), torch.zeros(3).double()
    with pytest.raises(NoTangent, match="__setitem__"):
        buffer[1:] = Dual(x, x)[1:]


@pytest.mark.parametrize("nested", [
    lambda x, inner: inner(lambda y: x * y, (ONES[0, :3],), (ONES[0, :3],))[1],
    lambda x, inner: inner(lambda y: y**3, (x,), (ONES[0, :3],))[1],
    lambda x, inner: inner(lambda y: ops.attention(*[y.view(1, 1, 3, 1)] * 3), (x,), (ONES[0, :3],))[1],
])
@pytest.mark.parametrize("outer, inner", [(jvp, jvp), (torch.func.jvp, jvp), (jvp, torch.func.jvp)])
def test_forward_mode_inside_forward_mode_raises(rng, nested, outer, inner):
    x = draw(rng, 3)
    with pytest.raises(RuntimeError, match="jvp"):
        outer(lambda x: nested(x, inner), (x,), (x,))


def test_two_levels_of_torchs_forward_mode_raise_in_a_fused_op(rng):
    q = draw(rng, 1, 1, 3, 4)
    once = lambda q: torch.func.jvp(lambda k: ops.attention(k, k, k), (q,), (q,))[1]    # noqa: E731
    with pytest.raises(NoTangent, match="attention: forward mode inside forward mode"):
        torch.func.jvp(once, (q,), (q,))


def test_einops_accepts_a_dual(rng):
    einops = pytest.importorskip("einops")

    def heads(x):
        y = einops.repeat(einops.rearrange(x, "n (h d) -> h n d", h=2), "h n d -> (h r) n d", r=3)
        return einops.reduce(y, "h n d -> n d", "mean") + einops.einsum(x, x, "n c, m c -> n m").sum()
    assert_same(heads, draw(rng, 5, 8), rng=rng)


def test_group_norm_takes_channels_last_where_torchs_forward_mode_fails(rng):
    norm, x = nn.GroupNorm(2, 8).double(), draw(rng, 2, 8, 3, 4)
    assert_same(norm, x, rng=rng)
    got = jvp(norm, (x.to(memory_format=torch.channels_last),), (x,))
    torch.testing.assert_close(got, jvp(norm, (x,), (x,)))


def test_grouped_matmul_is_one_product_per_expert(rng):
    x, w, tx, tw = (draw(rng, *shape).float() for shape in ((16, 8), (2, 8, 8)) * 2)
    grouped = lambda x, w: F.grouped_mm(x, w, offs=torch.tensor([4, 16], dtype=torch.int32))     # noqa: E731
    by_hand = lambda x, w: torch.cat([x[:4] @ w[0], x[4:] @ w[1]])                               # noqa: E731
    torch.testing.assert_close(jvp(grouped, (x, w), (tx, tw)), torch.func.jvp(by_hand, (x, w), (tx, tw)))


def test_autocast_gives_value_and_tangent_one_dtype(rng):
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 4))
    x = draw(rng, 3, 8).float()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        y, t = jvp(net, (x,), (x,))
    with torch.no_grad():
        exact = jvp(net, (x,), (x,))[1]
    assert y.dtype == t.dtype == torch.bfloat16
    assert (t - exact).norm() < 0.05 * exact.norm()
