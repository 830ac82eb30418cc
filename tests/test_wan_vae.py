"""decode_window: equal to the full decode, with the gradient of the window's latents."""

import pytest
import tiny
import torch

from swiftvideo_fast.models.toy.codec import PcaCodec
from swiftvideo_fast.models.wan.vae import WanVae

T = 5


@pytest.fixture(scope="module")
def wan():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


@pytest.fixture(scope="module")
def pca(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    tiny.write_inputs(folder)
    return PcaCodec.load(folder / "codec.safetensors")


@pytest.fixture(scope="module")
def z():
    return torch.randn(2, 16, T, 4, 2, generator=torch.Generator().manual_seed(1))


def whole(wan, z):
    """Returns diffusers' full decode."""
    keys = "latents_mean", "latents_std"
    mean, std = (torch.tensor(wan.config[key])[:, None, None, None] for key in keys)
    return wan.decode(z * std + mean).sample


def pixel_frames(start, count):
    """Returns the pixel frames: one for the first latent frame, four for each other."""
    return slice(4 * start - 3 if start else 0, 4 * (start + count) - 3)


@pytest.mark.parametrize("start, count", [(0, 1), (0, 2), (1, 1), (1, 3), (3, 2), (4, 1), (0, T)])
def test_a_window_is_what_the_whole_shows_of_it(start, count, wan, pca, z):
    with torch.no_grad():
        got = WanVae(wan).decode_window(z, start, count)
        want = whole(wan, z)[:, :, pixel_frames(start, count)]
    assert got.shape == want.shape and want.std() > 0.01
    assert (got - want).abs().max() < 1e-5
    assert torch.equal(pca.decode_window(z, start, count), pca.decode(z)[:, :, pixel_frames(start, count)])


def test_frames_before_the_window_get_no_gradient_and_those_after_no_say(wan, z):
    latents = z.clone().requires_grad_()
    WanVae(wan).decode_window(latents, 1, 2).square().sum().backward()
    reached = latents.grad.abs().amax((0, 1, 3, 4)) > 0
    assert reached.tolist() == [False, True, True, False, False]
    assert not any(p.grad is not None for p in wan.parameters())


def test_a_recomputed_window_has_the_gradient_of_a_kept_one(wan, z):
    """For latent frames 0 to 2, diffusers' decode has the same gradient."""
    latents, plain = (z[:, :, :3].clone().requires_grad_() for _ in range(2))
    WanVae(wan).decode_window(latents, 0, 3).square().sum().backward()
    whole(wan, plain).square().sum().backward()
    assert torch.allclose(latents.grad, plain.grad, rtol=1e-4, atol=1e-5 * plain.grad.abs().max())


def test_what_a_window_keeps_for_its_backward_is_less_than_its_intermediates(wan, z):
    kept = []

    def keep(x):
        kept.append(x.numel())
        return x

    sizes = []
    for decode in (lambda x: WanVae(wan).decode_window(x, 0, 3), lambda x: whole(wan, x)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            decode(z[:, :, :3].clone().requires_grad_())
        sizes.append(sum(kept))
    assert sizes[0] < 0.3 * sizes[1]
