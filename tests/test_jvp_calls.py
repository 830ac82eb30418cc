"""Every call form of torch, and Python's tensor interface on a Dual, against torch.func.jvp."""

import collections
import copy
import functools
import inspect
import threading

import numpy
import pytest
import torch
import torch.nn.functional as F
from forward import D, assert_as_torch, draw
from torch import nn

from swiftvideo_fast import NoTangent, binding, dispatch, jvp

W = draw(torch.Generator().manual_seed(5), 4, 4)
MASK = torch.tensor([[True, False, True, True]] * 4)
FORMS = {
    "numpy's axis": lambda x: x.softmax(axis=-1) + torch.log_softmax(x, axis=0),
    "numpy's keepdims": lambda x: torch.sum(x, axis=0, keepdims=True) + x.mean(axis=1, keepdims=True),
    "numpy's x1, x2": lambda x: torch.mul(x1=x, x2=W) + torch.maximum(input=x, other=W),
    "a dtype by name": lambda x: F.softmax(input=x, dim=1, _stacklevel=3, dtype=torch.float32).double(),
    "softmax without an axis": lambda x: F.softmax(x[0]) + F.log_softmax(x[0], None),
    "operands and lists of axes": lambda x: torch.einsum(x, [0, 1], W, [1, 2], [0, 2]),
    "a list of operands": lambda x: torch.einsum("ij,jk->ik", [x, x]),
    "where, by name, in any order": lambda x: torch.where(x > 0, other=W, input=x) +
        x.where(other=W, condition=MASK),
    "where of scalars": lambda x: torch.where(x > 0, 1.0, x) + x[torch.where(MASK)].sum(),
    "an argument beside that moves": lambda x: torch.diff(x, prepend=x[:, :1]),
    "products by name": lambda x: torch.matmul(x, other=W) + torch.mm(mat2=x, input=W) + torch.addmm(
        mat2=W, mat1=x, input=x, beta=2, alpha=3) + torch.outer(x[0], vec2=x[1]),
    "batched products by name": lambda x: torch.baddbmm(
        input=x[None], batch1=x[None], batch2=W[None], beta=0.5, alpha=2) + torch.bmm(x[None], mat2=x[None]),
    "layers by name": lambda x: F.linear(weight=x, input=W, bias=x[0]) + F.conv1d(
        weight=W[:, :, None], input=x[None], bias=x[0])[0],
    "only the bias moves": lambda x: F.linear(W, W, x[0]) + F.layer_norm(W, (4, 4), W, x) + F.conv1d(
        W[None], W[:, :, None], x[0])[0] + F.linear(W[0], W, x[0]).mul_(2),
    "norms by name": lambda x: F.layer_norm(normalized_shape=(4,), input=x, bias=x[0], eps=1e-3) + F.rms_norm(
        x, normalized_shape=(4,), weight=x[0]) + F.group_norm(x[None], num_groups=2, weight=x[0],
        eps=1e-2)[0],
    "alpha and rounding": lambda x: torch.add(x, W, alpha=2) + torch.sub(input=x, other=W, alpha=3) +
        torch.rsub(
        x, W, alpha=2) + torch.div(x, W, rounding_mode="floor"),
    "an old form with the factor first": lambda x: torch.add(x, 2, W) + torch.addcmul(x, 0.5, x, W),
    "clamped by what moves": lambda x: x.clamp(min=x[0] - 1, max=W.abs()),
    "activations by name": lambda x: F.elu(x, alpha=0.2) + F.softplus(x, threshold=1.0, beta=2.0) +
        F.leaky_relu(
        negative_slope=0.2, input=x) + F.gelu(x, approximate="tanh") + F.glu(input=x, dim=1).repeat(1, 2),
    "joins by name": lambda x: torch.cat(tensors=(x, W), axis=1)[:, 2:6] +
        torch.stack([x, W], dim=-1)[..., 0],
    "shapes by name": lambda x: torch.permute(input=x, dims=(1, 0)) + torch.flatten(x, start_dim=0).view(
        size=(4, 4)) + x.unflatten(dim=1, sizes=(2, 2)).flatten(1) +
        x.to(dtype=torch.float32, copy=True).double(),
    "dropout by name": lambda x: F.dropout(input=x, p=0.5) + torch.dropout(x, p=0.5, train=True),
    "attention by name": lambda x: F.scaled_dot_product_attention(
        query=x[None, None], value=x[None, None], key=W[None, None], scale=0.3)[0, 0],
    "pad by name": lambda x: F.pad(input=x, pad=(1, 1), mode="reflect")[:, 1:5] +
        F.pad(x, (1, -1), "constant", 3.0),
}


@pytest.mark.parametrize("name", FORMS)
def test_calls_are_bound_to_torchs_schema(name):
    assert_as_torch(FORMS[name], (4, 4))


def test_rules_name_their_arguments_as_torch_does():
    """Parameters of the same name have the same position, so positional and keyword calls agree."""
    checked = 0
    for function, (apply, accepted) in dispatch.RULES.items():
        known = binding.SIGNATURES[function]
        if accepted.keywords is None or not known or getattr(apply, "func", None) is not dispatch.by_rule:
            continue
        parameters = list(inspect.signature(apply.args[1]).parameters.values())[1:]
        given = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        fits = [all(names.index(n) == given.index(n) for n in set(given) & set(names)) for names, _,
            _ in known]
        assert any(fits), function
        checked += 1
    assert checked > 100


Named = collections.namedtuple("Named", "a b")
NUMPY = numpy.ones((4, 4))


class Tuple(tuple):
    pass


@functools.singledispatch
def doubled(x):
    return x * 3


@doubled.register
def _(x: torch.Tensor):
    return x * 2


def matched(x):
    match x:
        case torch.Tensor():
            return x * 2
    return x * 3


def asked_often(x):
    """Tests isinstance repeatedly: Python specializes the call after some runs."""
    return x * sum([isinstance(x, torch.Tensor) for _ in range(50)])


def augmented(x):
    y = x * 1
    z, whole = y.view(-1), y
    y += W
    y *= x
    y /= 2
    y -= x
    y **= 2
    y @= W
    return y + z.view(4, 4) + whole


PYTHON = {
    "compared with a string": lambda x: x * 2 if x != "Rep" and x != None else x,           # noqa: E711
    "isinstance": lambda x: x * 2 if isinstance(x, torch.Tensor) else x * 3,
    "isinstance of several": lambda x: x * 2 if isinstance(x, (int, (list, torch.Tensor))) else x * 3,
    "isinstance of a union": lambda x: x * 2 if isinstance(x, int | torch.Tensor) else x * 3,
    "isinstance of another": lambda x: x * 2 if isinstance(x, nn.Parameter | nn.Module | list) else x * 3,
    "isinstance in a generator": lambda x: x * 2 if all(isinstance(a, torch.Tensor) for a in [x] * 9) else x,
    "isinstance, asked often": asked_often, "a class pattern": matched, "a generic function": doubled,
    "__class__": lambda x: x * 2 if x.__class__ is torch.Tensor and torch.is_tensor(x) else x * 3,
    "augmented assignment": augmented,
    "reflected": lambda x: 1 + x - 2 * x + 3 / x - (2 - x) + 2**x + W @ x + (W - x) / x + (x < W) * 1,
    "a numpy scalar": lambda x: numpy.float64(2) * x + x * numpy.float32(2),
    "a named tuple out": lambda x: Named(x * 2, x + 1), "a named tuple in": lambda x: torch.cat(Named(x, W)),
    "torch's named tuple": lambda x: torch.stack(torch.linalg.qr(x)) + torch.cat(torch.sort(x)[:1]).sum(),
    "a tuple subclass": lambda x: torch.stack(Tuple((x, W))),
    "an ordered dict": lambda x: collections.OrderedDict(a=x, b=x * 2),
    "nothing in it": lambda x: x[:, :0].softmax(-1).sum() + F.layer_norm(x[:0], (4,)).sum(0) +
        x[:, :0] @ W[:0],
    "t() with a tangent and without": lambda x: x.t() @ torch.ones_like(x).t(),
    "iterated both ways": lambda x: torch.stack(list(reversed(x))) + torch.stack([*x]),
    "attributes of one's own": lambda x: x * (setattr(x, "marked", 3) or x.marked),
    "shape and the like": lambda x: x * x.ndim * x.shape[0] * x.size(1) * len(x) * x.itemsize,
    "in": lambda x: x * (2 if 3.0 in x else 3),
    "views by attribute": lambda x: x.T + x.mT + x.H + x.real +
        torch.view_as_complex(x.view(4, 2, 2)).imag.sum(),
}


@pytest.mark.parametrize("name", PYTHON)
@pytest.mark.filterwarnings("ignore")
def test_python_sees_a_tensor(name):
    assert_as_torch(PYTHON[name], (4, 4))


def test_every_special_method_of_a_tensor_is_one_of_a_dual():
    left = {"__cuda_array_interface__", "__dict__", "__module__", "__slots__", "__annotations__",
        "__annotate__",
            "__setstate__", "__dlpack__", "__dlpack_device__", "__array_wrap__", "__nonzero__", "__div__",
            "__rdiv__",
            "__idiv__", "__long__", "__annotations_cache__", "__annotate_func__", "__torch_dispatch__",
            "__delitem__",
            "__dlpack_c_exchange_api__", "__slotnames__"}
    missing = [n for n in dir(torch.Tensor) if n.startswith("__") and n not in left and
               getattr(type(dual()), n, None) is None]
    assert missing == []


def dual():
    kept = []
    x = torch.ones(2)
    jvp(lambda x: kept.append(x) or x, (x,), (x,))
    return kept[0]


def test_a_dual_is_formatted_as_its_value():
    seen = []
    jvp(lambda x: seen.append(f"{x.mean():.2f} {x[0, 0]:>8.3f} {x[0].numel()}") or x, (W,), (W,))
    assert seen == [f"{W.mean():.2f} {W[0, 0]:>8.3f} 4"]


def test_copy_and_deepcopy():
    y, t = jvp(lambda x: copy.deepcopy(x).mul_(2) + copy.copy(x), (W,), (W,))
    torch.testing.assert_close((y, t), (3 * W, 3 * W))


def test_a_legacy_tensor_type_is_refused():
    with pytest.raises(TypeError, match=r"want a test of x\.dtype"):
        jvp(lambda x: x if isinstance(x, torch.DoubleTensor) else x * 2, (W,), (W,))


def test_torch_is_restored_after_jvp():
    before = torch.is_tensor, torch.utils.checkpoint.__dict__.copy(), torch._functorch.apis.vmap_impl
    jvp(lambda x: x * 2, (W,), (W,))
    with pytest.raises(ZeroDivisionError):
        jvp(lambda x: 1 // 0, (W,), (W,))
    assert before == (torch.is_tensor, torch.utils.checkpoint.__dict__, torch._functorch.apis.vmap_impl)
    assert torch.is_tensor.__module__ == "torch"


def test_threads_have_separate_jvp_calls():
    inside, out, results = threading.Event(), threading.Event(), {}

    def slow(x):
        inside.set()
        out.wait(10)
        return x.sin()
    other = threading.Thread(target=lambda: results.update(slow=jvp(slow, (W,), (W,))))
    other.start()
    inside.wait(10)
    results["fast"] = jvp(lambda x: x.cos(), (W,), (W,))
    out.set()
    other.join()
    torch.testing.assert_close(results["slow"], (W.sin(), W.cos() * W))
    torch.testing.assert_close(results["fast"], (W.cos(), -W.sin() * W))


def test_an_integer_primal_is_reported_by_name():
    two = torch.tensor(2)
    with pytest.raises(ValueError, match=r"primals\[1\] is torch.int64, which has no tangent; "
                                         r"want None as tangents\[1\], or a floating-point"):
        jvp(lambda x, i: x * i, (W, two), (W, two))
    with pytest.raises(ValueError, match=r"primals\[0\]\['labels'\]\[1\] is torch.bool, which has"):
        jvp(lambda x: x["x"], ({"x": W, "labels": [W, two > 0]},), ({"x": W, "labels": [W, two > 0]},))
    with pytest.raises(RuntimeError, match=r"primals\[1\] is a int, its tangent a int; want two"):
        jvp(lambda x, i: x * i, (W, 2), (W, 1))
    with pytest.raises(RuntimeError, match=r"tangents\[0\] is \(4, 4\) torch.int64 .* torch.float64"):
        jvp(torch.sin, (W,), (W.long(),))
    with pytest.raises(RuntimeError, match="differ in structure.*want one tangent, or None, for each primal"):
        jvp(lambda x, i: x * i, (W, two), (W,))
    torch.testing.assert_close(jvp(lambda x, i: x * i, (W, two), (W, None)), (2 * W, 2 * W))


@pytest.mark.parametrize("function", [
    lambda x: torch.vmap(lambda row: row.sin() * row.sum())(x),
    lambda x: torch.vmap(lambda row, y: (row * y + W[0], y), in_dims=(1, None), out_dims=1)(x, x[0]),
    lambda x: torch.vmap(lambda row: row @ x)(W),
])
def test_vmap_inside(function):
    assert_as_torch(function, (4, 4))


def test_vmap_outside(rng):
    xs, vs = draw(rng, 3, 4, 4), draw(rng, 3, 4, 4)

    def net(x):
        y = F.layer_norm(F.silu(x @ W).softmax(-1), (4,)) * x.norm()
        y[0] = x[1]
        return y
    got, want = (torch.vmap(lambda x, v, f=f: f(net, (x,), (v,)))(xs, vs) for f in (jvp, torch.func.jvp))
    torch.testing.assert_close(got, want)


def test_functional_jvp_matches_torch(rng):
    from swiftvideo_fast import functional_jvp

    x, y, v = draw(rng, 4), draw(rng, 4), draw(rng, 4)
    oracle = torch.autograd.functional.jvp
    torch.testing.assert_close(functional_jvp(torch.sin, x, v), oracle(torch.sin, x, v))
    torch.testing.assert_close(functional_jvp(torch.mul, (x, y), (v, v)), oracle(torch.mul, (x, y), (v, v)))
    torch.testing.assert_close(functional_jvp(torch.sin, x[:1]), oracle(torch.sin, x[:1]))
    with pytest.raises(NoTangent, match="create_graph"):
        functional_jvp(torch.sin, x, v, create_graph=True)
    with pytest.raises(RuntimeError, match="strict"):
        functional_jvp(lambda x: torch.ones(2, dtype=D), x, v, strict=True)
    with pytest.raises(RuntimeError, match="v is None"):
        functional_jvp(torch.sin, x)


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx, tx):
        return 3 * ctx.saved_tensors[0]**2 * tx


class InC:
    """A class method with no Python function in it."""

    def __init__(self, method):
        self.method = method

    def __get__(self, instance, owner):
        return self.method.__get__(None, owner)


def test_apply_of_autograd_functions_may_be_written_in_c(monkeypatch):
    """Function.apply as torch 2.14 and later define it."""
    monkeypatch.setattr(torch.autograd.Function, "apply", InC(torch.autograd.Function.__dict__["apply"]))
    assert_as_torch(lambda x: Cubed.apply(x) + 1, (4, 4))
