"""Low precision against float64, torch's dtypes and defaults, and draws shared by value and tangent."""

import copy

import pytest
import torch
import torch.nn.functional as F
from forward import D, draw
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from swiftvideo_fast import jvp

LAYERS = [
    nn.RMSNorm(64), nn.RMSNorm(64, eps=1e-6), nn.LayerNorm(64), nn.GroupNorm(4, 8), nn.Softmax(-1),
    nn.LogSoftmax(-1),
    nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Softplus(), nn.ELU(), nn.GLU(), nn.Tanh(),
    nn.Sigmoid(),
    nn.Hardswish(), nn.Linear(64, 64), nn.Conv1d(8, 8, 3),
]
FUNCTIONS = {
    "exp": torch.exp, "tan": torch.tan, "erf": torch.erf, "rsqrt": lambda x: (x.abs() + 0.1).rsqrt(),
    "a power": lambda x: (x.abs() + 0.1) ** 0.3, "norm": lambda x: x.norm(dim=-1), "var": lambda x: x.var(-1),
    "logsumexp": lambda x: x.logsumexp(-1), "a quotient": lambda x: 1 / (x.abs() + 0.1),
    "cumsum": lambda x: x.cumsum(-1),
    "a mean": lambda x: x.mean(-1), "lerp": lambda x: x.lerp(x * x, 0.3),
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True),
    "attention with a mask": lambda x: F.scaled_dot_product_attention(
        x[None, None, :, 0], x[None, None, :, 0], x[None, None, :, 0], torch.ones(4, 4).tril().bool()),
    "a product": lambda x: x @ x.mT, "an einsum": lambda x: torch.einsum("bij,bkj->bik", x, x),
}


def relative(got, exact):
    return ((got.double() - exact).norm() / exact.norm()).item()


def assert_errs_as_torch(function, x, v, autocast=False):
    """jvp errs at most twice as much as torch.func.jvp at the same precision, plus an ulp of the result."""
    wide = copy.deepcopy(function).double() if isinstance(function, nn.Module) else function
    with sdpa_kernel(SDPBackend.MATH):
        exact = torch.func.jvp(wide, (x.double(),), (v.double(),))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        try:
            with sdpa_kernel(SDPBackend.MATH):
                same = torch.func.jvp(function, (x,), (v,))
        except NotImplementedError:                              # GLU in bfloat16
            same = exact
        got, plain = jvp(function, (x,), (v,)), function(x)
    for ours, torchs, true in zip(got, same, exact, strict=True):
        assert ours.dtype == plain.dtype
        assert relative(ours, true) <= 2 * relative(torchs, true) + torch.finfo(ours.dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("layer", [*LAYERS, *FUNCTIONS], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_low_precision_error_is_at_most_twice_torchs(rng, layer, dtype):
    function = FUNCTIONS[layer] if isinstance(layer, str) else copy.deepcopy(layer).to(dtype)
    for scale in (1.0, 0.05):
        assert_errs_as_torch(function, (scale * draw(rng, 4, 8, 64)).to(dtype), draw(rng, 4, 8, 64).to(dtype))


@pytest.mark.parametrize("layer", [*LAYERS, *FUNCTIONS], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_autocast_gives_torchs_dtypes(rng, layer):
    function = FUNCTIONS[layer] if isinstance(layer, str) else layer
    assert_errs_as_torch(function, draw(rng, 4, 8, 64).float(), draw(rng, 4, 8, 64).float(), autocast=True)


@pytest.mark.parametrize("bias, mask", [
    (causal_lower_right(5, 7), torch.ones(5, 7).tril(2)), (causal_upper_left(5, 7), torch.ones(5, 7).tril())],
    ids=str)
def test_masks_that_are_tensor_classes(rng, bias, mask):
    q, k, t = draw(rng, 1, 2, 5, 8), draw(rng, 1, 2, 7, 8), draw(rng, 1, 2, 5, 8)

    def attend(mask):
        return jvp(lambda q: F.scaled_dot_product_attention(q, k, k, attn_mask=mask), (q,), (t,))
    torch.testing.assert_close(attend(bias), attend(mask.bool()))


class Shifting(torch.Tensor):
    """A tensor class that decides about products itself: they are one more."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs or {}) + (1 if func is torch.matmul else 0)


def test_a_tensor_subclass_keeps_its_own_behaviour(rng):
    x, w, v = draw(rng, 3, 4), draw(rng, 4, 4), draw(rng, 3, 4)
    got = jvp(lambda x: torch.matmul(x, w.as_subclass(Shifting)), (x,), (v,))
    torch.testing.assert_close(got, (x @ w + 1, v @ w))


# --- iMFVideo's tests: inputs that make a trainer's tangents overflow ------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scaled", ["q", "k", "v", "tq", "tk", "tv", "q k", "q k v", "tq tk tv",
    "q k v tq tk tv"])
def test_attention_stays_finite_and_right_when_scaled(rng, scaled, dtype):
    """Forward, tangent and backward; the limit is torch's math attention at the same precision."""
    names = ("q", "k", "v", "tq", "tk", "tv")
    drawn = {name: draw(rng, 1, 2, 33, 16) for name in names}
    for factor in (10, 100):
        given = {n: (x * (factor if n in scaled.split() else 1)).to(dtype) for n, x in drawn.items()}
        results = {}
        for name, transform, wide in (("exact", torch.func.jvp, D), ("torch", torch.func.jvp, dtype),
                                      ("ours", jvp, dtype)):
            q, k, v, *tangents = (x.detach().to(wide).requires_grad_(n in "qkv") for n, x in given.items())
            with sdpa_kernel(SDPBackend.MATH if transform is torch.func.jvp else SDPBackend.FLASH_ATTENTION):
                o, to = transform(F.scaled_dot_product_attention, (q, k, v), tuple(tangents))
                gradients = torch.autograd.grad(o.double().square().sum(), (q, k, v))
            results[name] = [o.detach(), to.detach(), *gradients]
        flash = [x.detach().to(dtype).requires_grad_() for x in (given["q"], given["k"], given["v"])]
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):         # torch's own backward cancels as ours does
            o = F.scaled_dot_product_attention(*flash)
            flash = torch.autograd.grad(o.double().square().sum(), flash)
        # rounded in float32, then exp
        logits = (given["q"].double() @ given["k"].double().mT).abs().max() / 4
        rounding = torch.finfo(dtype).eps + torch.finfo(torch.float32).eps * logits
        others = zip(results["torch"], [*results["torch"][:2], *flash], strict=True)
        for ours, exact, torchs in zip(results["ours"], results["exact"], others, strict=True):
            bar = 2 * max((t.double() - exact).norm() for t in torchs) + rounding * exact.norm()
            assert ours.isfinite().all() and (ours.double() - exact).norm() <= bar


# --- draws -----------------------------------------------------------------------------------------------


def in_place(function):
    def net(x):
        y = x * 1
        function(y)
        return y
    return net


LSTM = nn.LSTM(3, 4, 2, dropout=0.5, batch_first=True).double()
ATTEND = nn.MultiheadAttention(3, 1, dropout=0.5, batch_first=True).double()
DRAWS = {
    "feature_dropout_": in_place(lambda y: torch.feature_dropout_(y, 0.5, True)),
    "dropout_": in_place(lambda y: torch.dropout_(y, 0.5, True)),
    "alpha_dropout_": in_place(lambda y: torch.alpha_dropout_(y, 0.5, True)),
    "feature_alpha_dropout_": in_place(lambda y: torch.feature_alpha_dropout_(y, 0.5, True)),
    "F.dropout, in place": in_place(lambda y: F.dropout(y, 0.3, inplace=True)),
    "F.dropout1d, in place": in_place(lambda y: F.dropout1d(y, 0.3, inplace=True)),
    "F.alpha_dropout": lambda x: F.alpha_dropout(x, 0.3, training=True),
    "rrelu": lambda x: F.rrelu(x, training=True),
    "rrelu_": in_place(lambda y: torch.rrelu_(y, 0.1, 0.3, True)),
    "gumbel": lambda x: F.gumbel_softmax(x, dim=1),
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.5)[0],
    "a module": nn.Dropout(0.5), "noise": lambda x: torch.rand_like(x) * x + torch.empty_like(x).normal_(),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()) * x, "an LSTM": lambda x: LSTM(x)[0],
    "multi-head attention": lambda x: ATTEND(x, x, x)[0],
    "a seed set inside": lambda x: (torch.manual_seed(3), F.dropout(x, 0.5))[1],
    "a state set inside": lambda x: (torch.set_rng_state(STATE), F.dropout(x, 0.5))[1],
}
STATE = torch.Generator().manual_seed(7).get_state()


@pytest.mark.parametrize("taped", [True, False], ids=["taped", "no tape"])
@pytest.mark.parametrize("name", DRAWS)
def test_value_and_tangent_share_one_draw_and_the_random_stream_is_torchs(rng, name, taped):
    x, v = draw(rng, 2, 8, 3), draw(rng, 2, 8, 3)
    function, h = DRAWS[name], 1e-6
    with torch.set_grad_enabled(taped):
        runs = []
        for at in (x, x + h * v, x - h * v):
            torch.manual_seed(0)
            runs.append(function(at))
        state = torch.get_rng_state()
        torch.manual_seed(0)
        y, t = jvp(function, (x,), (v,))
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(y, runs[0])
    torch.testing.assert_close(t, ((runs[1] - runs[2]) / (2 * h)).detach(), rtol=1e-6, atol=1e-7)
