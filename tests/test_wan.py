"""Wan against diffusers' WanTransformer3DModel with the same random weights: value, tangent, gradient, names.

diffusers computes the angle 1000 t w of its time embedding in fp32: near t = 1 its error is 6e-5, and so the
network's.  The released code, ours and `ExactAngles` compute it in float64; the network's error is then 1e-5.
"""

import re
from dataclasses import replace

import pytest
import torch
from closeness import SLACK
from diffusers import WanTransformer3DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from swiftvideo_fast import jvp
from swiftvideo_fast.models.wan import blocks
from swiftvideo_fast.models.wan.blocks import rotary_tables
from swiftvideo_fast.models.wan.names import DIT
from swiftvideo_fast.models.wan.network import Wan, cast
from swiftvideo_fast.models.wan.sizes import PRESETS, WanConfig

SMALL = WanConfig(dim=48, heads=2, layers=2, ffn_dim=80, text_dim=24, image_dim=20)
CONFIGS = [SMALL, replace(SMALL, image_dim=None), replace(SMALL, eps=1e-2)]
IDS = ["with image tokens", "text only", "an eps that tells"]
TEXT = 512                      # diffusers splits image from text tokens by this length


class ExactAngles(nn.Module):
    def forward(self, time):
        angle = time.double()[:, None] * 1e4 ** (-torch.arange(128, dtype=torch.float64) / 128)
        return torch.cat([angle.cos(), angle.sin()], 1)


def diffusers_network(c: WanConfig) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=c.heads, attention_head_dim=c.dim // c.heads, num_layers=c.layers,
        ffn_dim=c.ffn_dim, in_channels=c.latent + c.condition, out_channels=c.latent, text_dim=c.text_dim,
        freq_dim=c.freq_dim, cross_attn_norm=True, qk_norm="rms_norm_across_heads", eps=c.eps,
        image_dim=c.image_dim, added_kv_proj_dim=c.dim if c.image_dim else None)


def to_diffusers(tensors: dict) -> dict:
    return {DIT.of(name): tensor for name, tensor in tensors.items()}


def pair(config: WanConfig) -> tuple[Wan, WanTransformer3DModel]:
    """Returns both networks with equal weights, none at its initial value."""
    torch.manual_seed(1)
    ours, theirs = Wan(config), diffusers_network(config)
    with torch.no_grad():
        for p in ours.parameters():
            p += 0.1 * torch.randn_like(p)
    theirs.load_state_dict(to_diffusers(ours.state_dict()))
    theirs.condition_embedder.timesteps_proj = ExactAngles()
    return ours, theirs


def inputs(config: WanConfig, B=2, T=3, H=4, W=10):
    """Returns x, t, and the constants text, condition, image."""
    torch.manual_seed(2)
    image = 0.01 * torch.randn(B, 7, config.image_dim) if config.image_dim else None    # small: eps matters
    constants = torch.randn(B, TEXT, config.text_dim), torch.randn(B, 20, T, H, W), image
    return torch.randn(B, 16, T, H, W), torch.rand(B), constants


def as_diffusers(theirs, x, t, constants):
    text, condition, image = constants
    return theirs(torch.cat([x, condition], 1), 1000 * t.double(), text, image, return_dict=False)[0]


def relative(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.sampled_from(CONFIGS))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_equals_diffusers_at_any_size(B, T, h, w, config):
    ours, theirs = pair(config)
    x, t, constants = inputs(config, B, T, 2 * h, 2 * w)
    with torch.no_grad():
        assert relative(ours(x, t, *constants), as_diffusers(theirs, x, t, constants)) < 1e-5


def test_equals_the_unmodified_class_where_fp32_angles_are_exact_enough():
    ours, theirs = pair(SMALL)
    x, _, constants = inputs(SMALL)
    t = torch.tensor([0.001, 0.01])
    theirs.condition_embedder.timesteps_proj = diffusers_network(SMALL).condition_embedder.timesteps_proj
    with torch.no_grad():
        assert relative(ours(x, t, *constants), as_diffusers(theirs, x, t, constants)) < 1e-5


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
@pytest.mark.parametrize("moving", ["x and t", "x", "t"])
def test_its_tangent_equals_torch_of_diffusers(config, moving):
    ours, theirs = pair(config)
    x, t, constants = inputs(config)
    tx = torch.randn_like(x) if "x" in moving else None
    tt = torch.ones_like(t) if "t" in moving else None          # 1 in t, so 1000 in model time
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        filled = tuple(torch.zeros_like(p) if d is None else d for p, d in ((x, tx), (t, tt)))
        F, dF = torch.func.jvp(lambda x, t: as_diffusers(theirs, x, t, constants), (x, t), filled)
    with torch.no_grad():
        got, t_got = jvp(lambda x, t: ours(x, t, *constants), (x, t), (tx, tt))
    assert relative(got, F) < 1e-5
    assert relative(t_got, dF) < 1e-5


@torch.no_grad()
def test_an_mlp_in_rows_gives_what_it_gives_whole(monkeypatch):
    net, _ = pair(SMALL)
    x, t, constants = inputs(SMALL)                             # 30 tokens
    tangents = torch.randn_like(x), torch.ones_like(t)
    whole = jvp(lambda x, t: net(x, t, *constants), (x, t), tangents)
    monkeypatch.setattr(blocks, "MLP_ROWS", 7)
    for rows, want in zip(jvp(lambda x, t: net(x, t, *constants), (x, t), tangents), whole, strict=True):
        assert relative(rows, want) < 1e-5


def test_its_gradient_equals_that_of_diffusers():
    ours, theirs = pair(SMALL)
    x, t, constants = inputs(SMALL)
    ours(x, t, *constants).square().mean().backward()
    as_diffusers(theirs, x, t, constants).square().mean().backward()
    want = {k: p.grad for k, p in theirs.named_parameters()}
    got = to_diffusers({k: p.grad for k, p in ours.named_parameters()})
    scale = max(g.norm() for g in want.values())
    assert got.keys() == want.keys()
    for name, gradient in got.items():                          # a key's bias has none: softmax ignores it
        assert (gradient - want[name]).norm() < 1e-5 * max(want[name].norm(), 1e-2 * scale), name


# --- sizes and names -------------------------------------------------------------------------------------


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_presets_have_the_published_sizes():
    with torch.device("meta"):
        ours = Wan(PRESETS["1.3b"])
        text_to_video = Wan(replace(PRESETS["1.3b"], image_dim=None, condition=0))
    assert count(ours) == 1_564_428_608
    assert count(ours.blocks[0]) == 51_163_904
    assert (ours.config.heads, ours.config.eps, ours.config.time_scale) == (12, 1e-6, 1000)
    assert count(text_to_video) == 1_418_996_800


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_parameters_of_diffusers(preset):
    with torch.device("meta"):
        ours = to_diffusers(Wan(PRESETS[preset]).state_dict())
        theirs = diffusers_network(PRESETS[preset]).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_names_come_back_from_diffusers():
    tensors = Wan(SMALL).state_dict()
    back = {DIT.back(name): x for name, x in to_diffusers(tensors).items()}
    assert list(back) == list(tensors)
    assert all(back[k] is tensors[k] for k in tensors)


@pytest.mark.parametrize("name", ["blocks.0.norm9.weight", "blocks.x.norm3.weight", "norm3.weight", "head"])
def test_an_unknown_name_is_an_error(name):
    with pytest.raises(ValueError, match=re.escape(f"{name}: not a parameter of Wan")):
        to_diffusers({name: torch.zeros(1)})


def test_heads_of_128_turn_44_42_42_channels_with_time_height_width():
    cos, sin = rotary_tables(3, 5, 4, 128, "cpu")
    moves = (cos.view(3, 5, 4, 64) + sin.view(3, 5, 4, 64))
    by_axis = [(moves != moves.narrow(axis, 0, 1)).flatten(0, 2).any(0) for axis in range(3)]
    assert [int(m.sum()) for m in by_axis] == [22, 21, 21]
    assert torch.stack(by_axis).sum(0).eq(1).all()


# --- storage ---------------------------------------------------------------------------------------------


KEPT = re.compile(r"time_|modulation|norm|img_emb\.proj\.[04]")


def test_time_norms_and_modulation_stay_as_they_were_in_bf16():
    net = Wan(SMALL)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for name, tensor in cast(net, torch.bfloat16).state_dict().items():
        kept = KEPT.search(name) is not None
        assert tensor.dtype == (torch.float32 if kept else torch.bfloat16), name
        assert torch.equal(tensor, before[name].to(tensor.dtype)), name


def bf16_as_published(theirs: WanTransformer3DModel) -> WanTransformer3DModel:
    kept = re.compile("|".join(theirs._keep_in_fp32_modules))
    for name, p in theirs.named_parameters():
        p.data = p.data if kept.search(name) else p.data.bfloat16()
    return theirs


@pytest.mark.parametrize("config", CONFIGS[:2], ids=IDS[:2])
def test_in_bf16_value_and_tangent_are_no_worse_than_those_of_diffusers(config):
    ours, theirs = pair(config)
    x, t, constants = inputs(config)
    tangents = torch.randn_like(x), torch.ones_like(t)
    low = tuple(None if c is None else c.bfloat16() for c in constants)
    with torch.no_grad():
        exact = jvp(lambda x, t: ours(x, t, *constants), (x, t), tangents)
        got = jvp(lambda x, t: cast(ours, torch.bfloat16)(x, t, *constants), (x, t), tangents)
        # by our jvp: torch.func.jvp of a bf16 Conv3d crashes (CPU, torch 2.13)
        published = jvp(lambda x, t: as_diffusers(bf16_as_published(theirs), x.bfloat16(), t, low),
                        (x, t), tangents)
    for mine, his, true in zip(got, published, exact, strict=True):
        assert mine.dtype == torch.float32                      # x's
        assert relative(mine, true) <= SLACK * relative(his, true)


@pytest.mark.parametrize("config", CONFIGS[:2], ids=IDS[:2])
def test_in_bf16_the_value_is_that_of_diffusers_within_two_ulps_of_its_scale(config):
    ours, theirs = pair(config)
    x, t, constants = inputs(config)
    low = x.bfloat16(), t, *(None if c is None else c.bfloat16() for c in constants)
    with torch.no_grad():
        exact = ours(x, t, *constants)
        got = cast(ours, torch.bfloat16)(*low).float()
        published = as_diffusers(bf16_as_published(theirs), *low[:2], low[2:]).float()
    ulp = 2.0 ** (exact.abs().max().log2().floor().item() - 7)
    assert (got - published).abs().max() <= 2 * ulp                 # found: 0.75 to 1.5
    assert (got - exact).abs().max() <= 2 * ulp


def test_in_bf16_every_parameter_gets_a_gradient():
    net = cast(pair(SMALL)[0], torch.bfloat16)
    x, t, constants = inputs(SMALL)
    net(x, t, *constants).square().mean().backward()
    assert all(p.grad.dtype == p.dtype and p.grad.isfinite().all() for p in net.parameters())


# --- errors ----------------------------------------------------------------------------------------------


X, T, TEXTS, CONDITION, IMAGE = (2, 16, 3, 4, 6), (2,), (2, 5, 24), (2, 20, 3, 4, 6), (2, 7, 20)


@pytest.mark.parametrize("shapes, found", [
    (((2, 16, 3, 5, 6), T, TEXTS, CONDITION, IMAGE), "x is (2, 16, 3, 5, 6); want (B, 16, T, H, W)"),
    (((2, 15, 3, 4, 6), T, TEXTS, CONDITION, IMAGE), "x is (2, 15, 3, 4, 6); want (B, 16, T, H, W)"),
    (((16, 3, 4, 6), T, TEXTS, CONDITION, IMAGE), "x is (16, 3, 4, 6); want (B, 16, T, H, W)"),
    ((X, (), TEXTS, CONDITION, IMAGE), "t is (); want (2,)"),
    ((X, (2, 1), TEXTS, CONDITION, IMAGE), "t is (2, 1); want (2,)"),
    ((X, T, (5, 24), CONDITION, IMAGE), "text is (5, 24); want (2, L, 24)"),
    ((X, T, (2, 5, 25), CONDITION, IMAGE), "text is (2, 5, 25); want (2, L, 24)"),
    ((X, T, TEXTS, (2, 20, 1, 4, 6), IMAGE), "condition is (2, 20, 1, 4, 6); want (2, 20, 3, 4, 6)"),
    ((X, T, TEXTS, CONDITION, (1, 7, 20)), "image is (1, 7, 20); want (2, M, 20)"),
    ((X, T, TEXTS, CONDITION, None), "image is missing and image_dim is 20"),
])
def test_a_wrong_input_is_named_with_what_was_wanted(shapes, found):
    with pytest.raises(ValueError, match=re.escape(f"Wan: {found}")):
        Wan(SMALL)(*(None if s is None else torch.zeros(s) for s in shapes))


def test_an_odd_head_width_is_an_error():
    with pytest.raises(ValueError, match="dim 30 over 2 heads"):
        replace(SMALL, dim=30)
