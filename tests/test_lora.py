"""Adapters: off is the base network, merged is equal, and jvp supports them."""

import builtins

import pytest
import tiny
import torch
from safetensors import safe_open
from torch import nn

from swiftvideo_fast import jvp
from swiftvideo_fast.models import lora
from swiftvideo_fast.models.wan.network import Wan, cast
from swiftvideo_fast.models.wan.sizes import WanConfig

RANK = 3


def inputs(dtype: torch.dtype = torch.float32) -> tuple:
    rng = torch.Generator().manual_seed(1)
    shapes = (2, 16, 2, 4, 4), (2,), (2, 5, 8), (2, 20, 2, 4, 4), (2, 3, 12)
    x, t, text, condition, image = (torch.rand(shape, generator=rng, dtype=dtype) for shape in shapes)
    return x, t, text, condition, image


def network() -> Wan:
    """Returns a network with image cross-attention and no zero parameters."""
    net, rng = Wan(WanConfig(**vars(tiny.SIZES) | {"image_dim": 12})), torch.Generator().manual_seed(0)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2, generator=rng)
    return net


def adapted(net: Wan, *, moved: bool = True) -> Wan:
    rng = torch.Generator().manual_seed(2)
    lora.attach(net, RANK, rng)
    for _, layer in lora.adapted(net) if moved else ():
        nn.init.normal_(layer.lora_B[lora.NAME].weight, std=0.1, generator=rng)
    return net


def test_every_linear_layer_is_adapted_and_nothing_else_is_trained():
    linear = {name for name, module in network().named_modules() if isinstance(module, nn.Linear)}
    net = adapted(network())
    assert {name for name, _ in lora.adapted(net)} == linear
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.lora_{f}.{lora.NAME}.weight" for name in linear for f in "AB"}
    shapes = [(layer.lora_A[lora.NAME].weight.shape[0], layer.lora_B[lora.NAME].weight.shape[1])
              for _, layer in lora.adapted(net)]
    assert set(shapes) == {(RANK, RANK)}


def test_new_adapters_change_nothing_and_are_the_seeds():
    plain = network()
    want = plain(*inputs())
    one, two = adapted(network(), moved=False), adapted(network(), moved=False)
    assert torch.equal(one(*inputs()), want)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_with_adapters_off_it_is_bitwise_the_base():
    want = network()(*inputs())
    net = adapted(network())
    assert not torch.equal(net(*inputs()), want)
    with_adapters = net(*inputs())
    assert torch.equal(lora.Base(net)(*inputs()), want)
    assert torch.equal(net(*inputs()), with_adapters)


def test_adapters_are_on_and_trained_again_even_after_an_error():
    net = adapted(network())
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    with pytest.raises(ValueError, match="Wan: image is missing"):
        lora.Base(net)(*inputs()[:-1])
    assert [name for name, p in net.named_parameters() if p.requires_grad] == trained
    assert not torch.equal(net(*inputs()), network()(*inputs()))


def test_the_base_keeps_no_graph_and_leaves_the_students_alone():
    net = adapted(network())
    v = net(*inputs())
    assert not lora.Base(net)(*inputs()).requires_grad
    v.sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_merged_equals_unmerged(dtype):
    """In float64 up to some hundred roundings of values near 1; in float32 up to float32's own error."""
    net = adapted(network()).to(dtype)
    want, got = net(*inputs(dtype)), lora.merged(net)(*inputs(dtype))
    assert (got - want).abs().max() <= 200 * torch.finfo(dtype).eps * want.abs().max()
    assert lora.merged(net).state_dict().keys() == network().state_dict().keys()


def test_merging_leaves_the_adapted_network_as_it_was():
    net = adapted(network())
    before = net(*inputs())
    lora.merged(net)
    assert torch.equal(net(*inputs()), before)


def test_forward_mode_passes_through_adapters():
    net = adapted(network()).double()
    plain = lora.merged(net)
    x, t, *told = inputs(torch.float64)
    v = torch.randn_like(x)

    def along(of):
        return jvp(lambda x, t: of(x, t, *told), (x, t), (v, torch.ones_like(t)))

    for got, want in zip(along(net), along(plain), strict=True):
        assert (got - want).abs().max() <= 1e-12 * want.abs().max()
    steps = [plain(x + h * v, t + h, *told) for h in (1e-5, -1e-5)]
    assert (along(net)[1] - (steps[0] - steps[1]) / 2e-5).abs().max() <= 1e-7 * along(net)[1].abs().max()


def test_a_network_stored_in_bfloat16_takes_adapters():
    net = adapted(cast(network(), torch.bfloat16))
    assert net.blocks[0].ffn[0].lora_A[lora.NAME].weight.dtype == torch.bfloat16
    assert net.time_embedding[0].lora_A[lora.NAME].weight.dtype == torch.float32
    want, got = net(*inputs()), lora.merged(net)(*inputs())
    assert (got - want).abs().max() <= 0.05 * want.abs().max()


def test_the_file_has_the_names_that_comfyui_and_diffusers_load(tmp_path):
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_wan_lora_to_diffusers

    net = adapted(network())
    lora.save(net, tmp_path / "lora.safetensors", sample={"sampler": "euler"})
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}         # noqa: SIM118  (no dict)
        assert '"sampler": "euler"' in file.metadata()["about"]
    names = {f"{name}.lora_{f}.weight" for name, _ in lora.adapted(net) for f in "AB"}
    assert tensors.keys() == {f"diffusion_model.{name}" for name in names}
    of_q = net.blocks[0].self_attn.q.lora_B[lora.NAME].weight
    assert torch.equal(tensors["diffusion_model.blocks.0.self_attn.q.lora_B.weight"], of_q)
    theirs = _convert_non_diffusers_wan_lora_to_diffusers(dict(tensors))
    assert len(theirs) == len(tensors) and "transformer.blocks.0.attn1.to_q.lora_A.weight" in theirs


def test_without_peft_the_error_names_the_extra(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "peft":
            raise ImportError("No module named 'peft'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ValueError, match=r"pip install 'swiftvideo_fast\[lora\]'; or set objective.rank=0"):
        lora.attach(network(), RANK, torch.Generator())
