"""Training steps with a detached tangent in the loss: parameter gradients against torch.func.jvp."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from swiftvideo_fast import NoTangent, jvp

C = 16


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(C), nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.up, self.down = nn.Linear(C, 2 * C), nn.Linear(2 * C, C)

    def forward(self, x, c):
        qkv = self.qkv(self.norm(x) * (1 + c)).chunk(3, -1)
        q, k, v = (y.unflatten(-1, (2, -1)).transpose(1, 2) for y in qkv)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + c * self.down(F.silu(self.up(x)))


class Net(nn.Module):
    """u(z, r, t): z (B, N, C); r, t (B,)."""

    def __init__(self, recompute: bool = False):
        super().__init__()
        self.blocks, self.time, self.recompute = nn.ModuleList([Block(), Block()]), nn.Linear(4, C), recompute

    def forward(self, z, r, t):
        c = self.time(torch.stack([r.sin(), r.cos(), t.sin(), t.cos()], 1))[:, None]
        for block in self.blocks:
            z = checkpoint(block, z, c, use_reentrant=False) if self.recompute else block(z, c)
        return z


def mean_flow(transform, net, z, v, r, t):
    """Geng et al. 2025: u regresses on v - (t - r) du/dt, the target stopped."""
    u, du = transform(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return (u - (v - (t - r)[:, None, None] * du).detach()).square().mean()


def consistency(transform, net, z, v, r, t):
    """sCM without an EMA network: one pass gives F and the tangent of its own target."""
    out, tangent = transform(lambda z, t: net(z, t, t), (z, t), (v, torch.ones_like(t)))
    g = t.cos()[:, None, None] * (v - out.detach()) - t.sin()[:, None, None] * tangent.detach()
    return (out - out.detach() - g / (g.flatten(1).norm(dim=1)[:, None, None] + 0.1)).square().mean()


def draw():
    torch.manual_seed(0)
    z, v = torch.randn(2, 3, 5, C, dtype=torch.float64)
    return z, v, *torch.rand(2, 3, dtype=torch.float64)


def gradients(step, transform, net, *inputs):
    net.zero_grad()
    with sdpa_kernel(SDPBackend.MATH):
        step(transform, net, *inputs).backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def hooked(net):
    for block in net.blocks:
        block.register_forward_hook(lambda module, args, out: out * 1.5)
        block.register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:]))
    return net


def lora(net):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["qkv", "up"], init_lora_weights=False)
    return peft.get_peft_model(net, config).double()


class Called(nn.Module):
    """The network by functional_call, on parameters that are functions of others."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, *args):
        return torch.func.functional_call(self.net, {n: 2 * p for n, p in self.net.named_parameters()}, args)


@pytest.mark.parametrize("step", [mean_flow, consistency])
@pytest.mark.parametrize("dress", [Net.double, hooked, lora, Called], ids=lambda f: f.__name__)
def test_the_gradients_are_torchs(step, dress):
    torch.manual_seed(1)
    net, inputs = dress(Net().double()), draw()
    want, got = gradients(step, torch.func.jvp, net, *inputs), gradients(step, jvp, net, *inputs)
    assert want.keys() == got.keys() and len(got) > 0
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("step", [mean_flow, consistency])
def test_recomputed_blocks_give_the_same_gradients(step):
    torch.manual_seed(1)
    plain, inputs = Net().double(), draw()
    recomputed = Net(recompute=True).double()
    recomputed.load_state_dict(plain.state_dict())
    want, got = gradients(step, jvp, plain, *inputs), gradients(step, jvp, recomputed, *inputs)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-9, atol=1e-12)


def test_a_reentrant_checkpoint_is_refused_with_advice():
    net, (z, v, *_) = Block().double(), draw()
    with pytest.raises(NoTangent, match="use_reentrant=False"):
        jvp(lambda z: checkpoint(net, z, z[:, :1], use_reentrant=True), (z.requires_grad_(),), (v,))
