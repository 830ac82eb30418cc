"""Selection and calls of the attention backends, without a GPU."""

import sys
from types import ModuleType

import pytest
import torch
from swiftvideo_kernels import attention as plain
from swiftvideo_kernels import attention_backends
from swiftvideo_kernels.attention_backends import BACKENDS

BF16, F16 = torch.bfloat16, torch.float16
LIBRARIES = {"flash-attn 2", "flash-attn 3", "flash-attn 4"}
TORCHS = "torch's flash-attn 2"


@pytest.fixture
def card(monkeypatch):
    """Fakes a GPU: of(major capability, *installed libraries, wrong=backends that are inaccurate)."""
    plain.select.cache_clear()

    def of(major, *libraries, wrong=()):
        plain.select.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
        monkeypatch.setattr(plain, "installed", lambda name: name not in LIBRARIES or name in libraries)
        monkeypatch.setattr(plain, "is_accurate", lambda name, *_: name not in wrong)

    yield of
    plain.select.cache_clear()


def heads(N=512, M=512, dtype=BF16, D=128):
    return [torch.empty(1, 2, n, D, dtype=dtype, device="meta") for n in (N, M)]


@pytest.mark.parametrize("major, libraries, wrong, forward, backward, deterministic", [
    (9, (), (), "cuDNN", "cuDNN", TORCHS),
    (9, ("flash-attn 3",), (), "cuDNN", "cuDNN", "flash-attn 3"),
    (9, ("flash-attn 2",), (), "cuDNN", "cuDNN", "flash-attn 2"),
    (9, ("flash-attn 3",), ("cuDNN",), "flash-attn 3", "flash-attn 3", "flash-attn 3"),
    (9, ("flash-attn 4",), ("cuDNN",), "flash-attn 4", TORCHS, TORCHS),
    (9, (), ("cuDNN",), TORCHS, TORCHS, TORCHS),
    (9, ("flash-attn 2",), ("cuDNN", "flash-attn 2"), TORCHS, TORCHS, TORCHS),
    (10, (), (), "cuDNN", "cuDNN", TORCHS),
    (8, ("flash-attn 2", "flash-attn 3"), (), "flash-attn 2", "flash-attn 2", "flash-attn 2"),
    (8, (), (), TORCHS, TORCHS, TORCHS),
    (12, (), (), TORCHS, TORCHS, TORCHS),
])
def test_the_first_installed_and_accurate_backend_runs(card, major, libraries, wrong, forward, backward,
                                                       deterministic):
    card(major, *libraries, wrong=wrong)
    for dtype in (BF16, F16):
        q, k = heads(dtype=dtype)
        found = [plain.backend(direction, q, k, False)
                 for direction in ("forward", "backward", "deterministic backward")]
        assert found == [forward, backward, deterministic]


def test_float32_and_ragged_masks_use_the_efficient_backend_and_short_clips_torchs(card):
    card(9, *LIBRARIES)
    for direction in ("forward", "backward", "deterministic backward"):
        assert plain.backend(direction, *heads(dtype=torch.float32), False) == "torch's efficient"
        assert plain.backend(direction, *heads(M=300), True) == "torch's efficient"
        assert plain.backend(direction, *heads(N=63), False) == TORCHS
    for args in ((*heads(M=300), False), (*heads(), True)):
        assert plain.backend("forward", *args) == "cuDNN"
    with pytest.raises(ValueError, match="attention: float64 on a GPU; want float32, bfloat16 or float16"):
        plain.backend("forward", *heads(dtype=torch.float64), False)


def test_deterministic_algorithms_select_the_reproducible_backward(card, monkeypatch):
    card(9)
    ran = []

    def backward(name):
        return lambda do, q, k, v, o, lse, scale, causal, deterministic: (
            ran.append((name, deterministic)) or (q, k, v))

    monkeypatch.setattr(plain, "BACKENDS", {name: (None, backward(name)) for name in BACKENDS})
    q, k = heads()
    for on, warn_only in ((False, False), (True, False), (True, True)):
        torch.use_deterministic_algorithms(on, warn_only=warn_only)
        plain.attention_backward(q, q, k, k, q, q[..., 0], 0.1, False)
    torch.use_deterministic_algorithms(False)
    assert ran == [("cuDNN", False), (TORCHS, True), (TORCHS, True)]


@pytest.mark.parametrize("enabled, warn_only", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_torchs_flash_backward_sets_determinism_and_restores_it(monkeypatch, enabled, warn_only,
                                                                deterministic, fails):
    """With warn_only=True, torch 2.11 to 2.13 warn and still use atomics (H100, 2026-11-27)."""
    def state():
        return (torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled())

    def op(do, q, k, v, *_, scale):
        seen.append(state())
        if fails:
            raise RuntimeError("no kernel")
        return q, k, v

    class Aten:
        _scaled_dot_product_flash_attention_backward = staticmethod(op)

    seen = []
    monkeypatch.setattr(attention_backends, "aten", Aten)
    q, k = heads()
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    try:
        attention_backends.torch_flash_backward(q, q, k, k, q, q[..., 0], 0.1, False, deterministic)
    except RuntimeError:
        assert fails
    finally:
        after = state()
        torch.use_deterministic_algorithms(False)
    assert seen == [(deterministic, False)] and after == (enabled, warn_only)


def test_the_selection_is_logged_once(card, caplog):
    card(9)
    with caplog.at_level("INFO"):
        for _ in range(3):
            plain.backend("forward", *heads(), False)
    assert [record.message for record in caplog.records] == [
        "attention, forward, bfloat16, head width 128: cuDNN"]


def shifted(x):
    return x + 0.1


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("wrong", [None, "o", "lse", "dq", "dk", "dv", "raises"])
def test_an_error_in_any_output_rejects_a_backend(monkeypatch, wrong, causal):
    """The accuracy check on the CPU, of float64 attention with one output shifted."""
    def forward(q, k, v, scale, causal):
        o, lse, *_ = plain.exact(q, q, k, v, scale, causal)
        return shifted(o) if wrong == "o" else o, shifted(lse) if wrong == "lse" else lse

    def backward(do, q, k, v, o, lse, scale, causal, deterministic):
        if wrong == "raises":
            raise RuntimeError("no engine")
        grads = plain.exact(do, q, k, v, scale, causal)[2:]
        return tuple(shifted(x) if name == wrong else x for name, x in zip(("dq", "dk", "dv"), grads))

    monkeypatch.setitem(BACKENDS, "cuDNN", (forward, backward))
    right = [plain.is_accurate("cuDNN", direction, torch.device("cpu"), BF16, 32, causal)
             for direction in ("forward", "backward")]
    assert right == [wrong not in ("o", "lse"), wrong not in ("dq", "dk", "dv", "raises")]


def test_the_reference_gradients_equal_autograds():
    q, do, k, v = (torch.randn(1, h, 20, 8, dtype=torch.float64) for h in (4, 4, 2, 2))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    o = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True, scale=0.3)
    want = o, *torch.autograd.grad(o, inputs, do)
    got = plain.exact(do, *(x.detach() for x in inputs), 0.3, True)
    torch.testing.assert_close((got[0], *got[2:]), want)


# Stubs with the signatures of each library's functions.
def _fa2_forward(q, k, v, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap,
                 alibi_slopes, return_softmax):
    return torch.empty_like(q), q.new_empty(q.shape[0], q.shape[2], q.shape[1]), None, None


def _fa2_backward(dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal,
                  window_size_left, window_size_right, softcap, alibi_slopes, deterministic, rng_state=None):
    assert dq.shape == q.shape and dk.shape == k.shape


def _fa3_forward(q, k, v, softmax_scale=None, causal=False):
    return _fa2_forward(q, k, v, *[None] * 8)


def _fa3_backward(dout, q, k, v, out, softmax_lse, dq=None, dk=None, dv=None, softmax_scale=None,
                  is_causal=False, deterministic=False):
    assert dq.shape == q.shape and dk.shape == k.shape


def _fa4_fwd(q, k, v, softmax_scale=None, causal=False, return_lse=False):
    assert return_lse
    return _fa2_forward(q, k, v, *[None] * 8)[:2]


def _fa4_bwd(q, k, v, out, dout, lse, softmax_scale=None, causal=False, deterministic=False):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


STUBS = {
    "flash_attn.flash_attn_interface": {"_flash_attn_forward": _fa2_forward,
                                        "_flash_attn_backward": _fa2_backward},
    "flash_attn_interface": {"_flash_attn_forward": _fa3_forward, "_flash_attn_backward": _fa3_backward},
    "flash_attn.cute.interface": {"_flash_attn_fwd": _fa4_fwd, "_flash_attn_bwd": _fa4_bwd},
}


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "torch's efficient"])
def test_every_backend_is_called_by_its_signature_and_returns_one_layout(monkeypatch, name):
    for path in ("flash_attn", "flash_attn.cute", *STUBS):
        module = ModuleType(path)
        vars(module).update(STUBS.get(path, {}))
        monkeypatch.setitem(sys.modules, path, module)
    forward, backward = BACKENDS[name]
    q, do = (torch.empty(2, 65, 4, 64, device="meta", dtype=BF16).transpose(1, 2) for _ in range(2))
    k, v = (torch.empty(2, 130, 2, 64, device="meta", dtype=BF16).transpose(1, 2) for _ in range(2))
    o, lse = forward(q, k, v, 0.1, False)
    assert o.shape == q.shape and lse.shape == (2, 4, 65)
    grads = backward(do, q, k, v, o, lse, 0.1, False, True)
    assert [x.shape for x in grads] == [x.shape for x in (q, k, v)]


def test_a_missing_library_is_detected(monkeypatch):
    monkeypatch.setattr(attention_backends, "find_spec", lambda module: None)
    found = [name for name in BACKENDS if attention_backends.installed(name)]
    assert found == ["cuDNN", TORCHS, "torch's efficient"]
