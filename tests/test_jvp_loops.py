"""Published training loops, reimplemented at a small size: one step by torch.func.jvp and by ours.

Each keeps its characteristics: how the network is wrapped, what the function returns, how it draws.
The repositories themselves: python tests/loops_of_others.py.
"""

import copy
import math
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from forward import D, draw
from torch import distributed as dist
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from swiftvideo_fast import NoTangent, jvp, ops

C, SIDE, BATCH = 16, 4, 3


class Rope(nn.Module):
    """Rotary embedding by complex numbers, its table cached in the module on first use."""

    def __init__(self):
        super().__init__()
        self.table = None

    def forward(self, x):
        if self.table is None:
            angles = torch.outer(torch.arange(x.shape[-2], dtype=x.dtype), 0.1 ** torch.arange(
                x.shape[-1] // 2, dtype=x.dtype))
            self.table = torch.polar(torch.ones_like(angles), angles)
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.table).flatten(-2)


class Block(nn.Module):
    def __init__(self, fused: bool):
        super().__init__()
        self.norm, self.q_norm, self.qkv = nn.LayerNorm(C,
            elementwise_affine=False), nn.RMSNorm(C // 2), nn.Linear(C, 3 * C)
        self.out, self.gate, self.up, self.down = nn.Linear(C, C), nn.Linear(C, 6 * C), nn.Linear(C,
            4 * C), nn.Linear(2 * C, C)
        self.rope, self.drop, self.fused = Rope(), nn.Dropout(0.1), fused

    def forward(self, x, c):
        shift, scale, gate, shift_2, scale_2, gate_2 = self.gate(F.silu(c))[:, None].chunk(6, dim=-1)
        q, k, v = self.qkv(self.norm(x) * (1 + scale) + shift).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1,
            4)
        q, k = self.rope(self.q_norm(q)), self.rope(self.q_norm(k))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1) @ v
        x = x + gate * self.drop(self.out(y.transpose(1, 2).flatten(2)))
        a, b = self.up(self.norm(x) * (1 + scale_2) + shift_2).chunk(2, -1)
        return x + gate_2 * self.down(F.silu(a) * b)


class Transformer(nn.Module):
    """(B, 4, H, W), times -> the same, and what else a loop asks for."""

    def __init__(self, times: int = 2, fused: bool = False, heads: int = 1):
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(4, C, 2, 2), nn.ModuleList([Block(fused), Block(fused)])
        self.embed, self.final = nn.ModuleList([nn.Linear(8, C) for _ in range(times)]), nn.ModuleList(
            [nn.Linear(C, 16) for _ in range(heads)])
        self.logvar, self.labels = nn.Linear(C, 1), nn.Embedding(11, C)

    def forward(self, x, *times, y=None, return_logvar=False):
        waves = 10.0 ** -torch.arange(4, dtype=x.dtype)
        c = sum(e(torch.cat([(t[:, None] * waves).cos(), (t[:, None] * waves).sin()], -1))
                for e, t in zip(self.embed, times, strict=True))
        c = c if y is None else c + self.labels(y)
        h = self.patch(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            h = block(h, c)
        outs = [torch.einsum("nhwpqc->nchpwq", f(h).reshape(len(x), SIDE // 2, SIDE // 2, 2, 2,
            4)).reshape(x.shape)
                for f in self.final]
        out = outs[0] if len(outs) == 1 else tuple(outs)
        return (out, self.logvar(c)) if return_logvar else out


class MPConv(nn.Module):
    """EDM2: weights normalised in the forward pass, and written back while training."""

    def __init__(self, inputs: int, outputs: int, *kernel: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *kernel))

    def forward(self, x, gain=1):
        w = self.weight.to(torch.float64)
        if self.training:
            with torch.no_grad():
                self.weight.copy_(unit(w))
        w = unit(w) * (gain / math.sqrt(w[0].numel()))
        return x @ w.t() if w.ndim == 2 else F.conv2d(x, w.to(x.dtype), padding=(w.shape[-1] // 2,))


def unit(x):
    norm = torch.linalg.vector_norm(x, dim=list(range(1, x.ndim)), keepdim=True, dtype=torch.float64)
    return x / torch.add(1e-4, norm, alpha=math.sqrt(norm.numel() / x.numel())).to(x.dtype)


class UNet(nn.Module):
    """EDM2's pieces: magnitude-preserving sums, SiLU, pixel norm, attention by einsum, up and down, skips."""

    def __init__(self):
        super().__init__()
        self.into, self.down, self.up, self.out = MPConv(5, C, 3, 3), MPConv(C, C, 3, 3), MPConv(2 * C, C, 3,
            3), MPConv(
            C, 4, 3, 3)
        self.noise, self.emb, self.qkv = MPConv(8, C), MPConv(C, C), MPConv(C, 3 * C, 1, 1)
        self.gain = nn.Parameter(torch.full([], 0.5))
        self.register_buffer("frequencies", torch.randn(4))

    def forward(self, x, t, r):
        emb = torch.cat([(t.ger(self.frequencies.to(t.dtype))).cos(),
            (r.ger(self.frequencies.to(t.dtype))).sin()], 1)
        emb = F.silu(self.noise(emb * math.sqrt(2))) / 0.596
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        x = skip = self.into(x)
        x = self.down(F.silu(F.interpolate(x, scale_factor=0.5, mode="area")) / 0.596)
        x = x * (self.emb(emb, gain=self.gain) + 1).unsqueeze(2).unsqueeze(3)
        q, k, v = F.normalize(self.qkv(x).reshape(len(x), 2, -1, 3, x.shape[2] * x.shape[3]), dim=2).unbind(3)
        w = torch.einsum("nhcq,nhck->nhqk", q, k / math.sqrt(q.shape[2])).softmax(dim=3)
        x = torch.lerp(x, torch.einsum("nhqk,nhck->nhcq", w, v).reshape(x.shape),
            0.3) / math.sqrt(0.7**2 + 0.3**2)
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.out(self.up(F.silu(torch.cat([x, skip], 1)).clip_(-256, 256)), gain=self.gain)


def tim(transform, net, x, v, t, r):
    """TiM: the transition target with a derivative in t alone, r far below; autocast is set inside the
    function."""
    def call(x, t, r):
        with torch.autocast("cpu", enabled=False):
            return net(x, t, r)
    z = (1 - t.view(-1, 1, 1, 1)) * x + t.view(-1, 1, 1, 1) * v
    out, tangent = transform(call, (z, t, r), (v - x, torch.ones_like(t), torch.zeros_like(r)))
    target = v - x - (t - r).view(-1, 1, 1, 1) * tangent
    return (out - target.detach()).square().flatten(1).mean(1).mean()


def dmf(transform, net, x, v, t, r):
    """Decoupled MeanFlow: keyword arguments bound, two heads, the second not differentiated further."""
    y = torch.tensor([1, 4, 10])
    z = torch.lerp(x, v, t.view(-1, 1, 1, 1))
    (u, w), (du, dw) = transform(lambda z, t, r: net(z, t, r, y=y), (z, t, r),
                                 (v - x, torch.ones_like(t), torch.zeros_like(r)))
    error = u - (v - x - (t - r).view(-1, 1, 1, 1) * du).detach()
    weight = 1 / (error.detach().square().flatten(1).sum(1) + 1e-3)
    return (weight * error.square().flatten(1).sum(1)).mean() + (w - (v - x) +
        0.1 * dw.detach()).square().mean()


def re_meanflow(transform, net, x, v, t, r):
    """Re-MeanFlow on the UNet of EDM2, in eval mode: torch cannot write weights back inside its jvp."""
    z = torch.lerp(x, v, t.view(-1, 1, 1, 1))
    out, tangent = transform(net, (z, t, r), (v - x, torch.ones_like(t), torch.zeros_like(r)))
    return (out - (v - x - (t - r).view(-1, 1, 1, 1) * tangent).detach()).abs().mean()


def imf(transform, net, x, v, t, r):
    """iMFVideo: the state of the random numbers set inside, has_aux, a log variance, the tangent clipped."""
    state = torch.get_rng_state()

    def call(x, t, r):
        torch.set_rng_state(state)
        return net(x, t, r, return_logvar=True)
    z = torch.lerp(x, v, t.view(-1, 1, 1, 1))
    out, tangent, logvar = transform(call, (z, t, r), (v - x, torch.ones_like(t), torch.zeros_like(r)),
        has_aux=True)
    g = (v - x - (t - r).view(-1, 1, 1, 1) * tangent).clamp(-3, 3)
    return ((out - g.detach()).square().flatten(1).mean(1) / logvar.exp() + logvar).mean()


LOOPS = {"TiM": (tim, Transformer), "dmf": (dmf, lambda: Transformer(heads=2)),
    "Re-MeanFlow": (re_meanflow, lambda: UNet().eval()),
         "iMFVideo": (imf, lambda: Transformer(fused=True))}


def step(loss, transform, net):
    rng = torch.Generator().manual_seed(0)
    x, v = draw(rng, BATCH, 4, SIDE, SIDE), draw(rng, BATCH, 4, SIDE, SIDE)
    r, t = torch.rand(2, BATCH, generator=rng, dtype=D).sort(0).values
    torch.manual_seed(1)
    net.zero_grad()
    with sdpa_kernel(SDPBackend.MATH if transform is torch.func.jvp else SDPBackend.FLASH_ATTENTION):
        value = loss(transform, net, x, v, t, r)
    value.backward()
    return value.detach(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def network(build):
    torch.manual_seed(0)
    return build().double()


@pytest.mark.parametrize("name", LOOPS)
def test_the_loss_and_the_gradients_are_torchs(name):
    loss, build = LOOPS[name]
    net = network(build)
    other = copy.deepcopy(net)
    torch.testing.assert_close(step(loss, jvp, net), step(loss, torch.func.jvp, other), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(net.state_dict(), other.state_dict())


@pytest.mark.parametrize("name", LOOPS)
def test_the_same_inside_ddp(name, process_group):
    loss, build = LOOPS[name]
    net = network(build)
    value, gradients = step(loss, jvp, DistributedDataParallel(copy.deepcopy(net)))
    want, wanted = step(loss, torch.func.jvp, net)
    torch.testing.assert_close(value, want, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close({k.removeprefix("module."): g for k, g in gradients.items()}, wanted,
        rtol=1e-9, atol=1e-11)


def test_under_autocast_the_loss_is_torchs_to_its_precision():
    values = {}
    for transform, wide in ((jvp, False), (torch.func.jvp, False), (torch.func.jvp, True)):
        net = network(Transformer).to(D if wide else torch.float32).eval()
        rng = torch.Generator().manual_seed(0)
        x, v = (draw(rng, BATCH, 4, SIDE, SIDE).to(D if wide else torch.float32) for _ in range(2))
        t = torch.tensor([0.2, 0.5, 0.8], dtype=x.dtype)
        with torch.autocast("cpu", torch.bfloat16,
            enabled=not wide), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            values[transform, wide] = transform(net, (x, t, t / 2),
                (v, torch.ones_like(t), torch.zeros_like(t)))[1].double()
    exact = values[torch.func.jvp, True]
    ours, theirs = ((values[transform, False] - exact).norm() for transform in (jvp, torch.func.jvp))
    assert ours <= 2 * theirs


# --- flash attention's own functions ---------------------------------------------------------------------


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1),
    softcap=0.0,
                    alibi_slopes=None, deterministic=False, return_attn_probs=False):
    """Stub of the package's function, which networks import by name."""
    return Attend.apply(q, k, v, softmax_scale, causal)


def flash_attn_qkvpacked_func(qkv, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
    return Attend.apply(*qkv.unbind(2), softmax_scale, causal)


class Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, scale, causal):
        mask = torch.ones(q.shape[1], k.shape[1],
            dtype=torch.bool).tril(k.shape[1] - q.shape[1]) if causal else None
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), mask, scale=scale,
                                              enable_gqa=True).transpose(1, 2)


@pytest.fixture
def flash_package(monkeypatch):
    module = types.ModuleType("flash_attn")
    module.flash_attn_func, module.flash_attn_qkvpacked_func = flash_attn_func, flash_attn_qkvpacked_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)


@pytest.mark.parametrize("causal, keys, heads", [(False, 5, 4), (True, 5, 4), (True, 7, 4), (False, 7, 2)])
def test_flash_attention_in_a_network_goes_to_the_fused_rule(rng, flash_package, causal, keys, heads):
    q, tq = draw(rng, 2, 5, 4, 8), draw(rng, 2, 5, 4, 8)
    (k, tk), (v, tv) = ((draw(rng, 2, keys, heads, 8), draw(rng, 2, keys, heads, 8)) for _ in range(2))

    def meaning(q, k, v):
        s = torch.einsum("bnhd,bmhd->bhnm", q, k.repeat_interleave(4 // heads, 2)) * 0.3
        if causal:
            s = s.masked_fill(torch.ones(5, keys).tril(keys - 5) == 0, -torch.inf)
        return torch.einsum("bhnm,bmhd->bnhd", s.softmax(-1), v.repeat_interleave(4 // heads, 2))
    code = flash_attn_func.__code__
    got = jvp(lambda q, k, v: flash_attn_func(q, k, v, softmax_scale=0.3, causal=causal), (q, k, v),
        (tq, tk, tv))
    torch.testing.assert_close(got, torch.func.jvp(meaning, (q, k, v), (tq, tk, tv)))
    assert flash_attn_func.__code__ is code and type(flash_attn_func(q, k, v)) is torch.Tensor


def test_packed_and_refused_forms_of_flash_attention(rng, flash_package):
    qkv, t = draw(rng, 2, 5, 3, 4, 8), draw(rng, 2, 5, 3, 4, 8)

    def apart(qkv):
        return ops.attention(*(x.transpose(1, 2) for x in qkv.unbind(2))).transpose(1, 2)
    torch.testing.assert_close(jvp(flash_attn_qkvpacked_func, (qkv,), (t,)), jvp(apart, (qkv,), (t,)))
    with pytest.raises(NoTangent, match=r"flash_attn_func: no tangent with window_size=\(2, 0\)"):
        jvp(lambda q: flash_attn_func(q, q, q, window_size=(2, 0)), (qkv[:, :, 0],), (t[:, :, 0],))
