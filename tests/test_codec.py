"""The PCA codec: Wan's strides, unit variance, reconstruction quality, and its file."""

import os
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

from swiftvideo_fast.data.crops import CropSource
from swiftvideo_fast.models.toy import codec as module
from swiftvideo_fast.models.toy.codec import PcaCodec

SHIPPED = Path(__file__).parents[1] / "configs/demo/codec.safetensors"


def crops(part: str) -> Tensor:
    return CropSource(tiny.demo(), part, frames=17, size=64).draw(24, seed=0).pixels


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Returns crops of the demo's clips that the codec was not fitted to."""
    return crops("test")


@pytest.fixture(scope="module")
def codec() -> PcaCodec:
    return PcaCodec.load(SHIPPED)


@pytest.fixture(scope="module")
def small() -> PcaCodec:
    return PcaCodec.fit(noise(64))


def noise(clips: int, frames: int = 5, size: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(clips, 3, frames, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def psnr(a: Tensor, b: Tensor) -> float:
    return (10 * torch.log10(4 / (a - b).square().mean())).item()


@pytest.mark.parametrize("frames, height, width", [(5, 8, 8), (17, 16, 24), (61, 8, 16)])
def test_strides_are_wans(frames, height, width, small):
    z = small.encode(torch.zeros(2, 3, frames, height, width))
    assert z.shape == (2, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
    assert small.decode(z).shape == (2, 3, frames, height, width)


def test_a_latent_sees_its_own_block_of_pixels_only(small):
    x = noise(1, frames=9)
    for frame, latent in ((0, 0), (1, 1), (4, 1), (5, 2)):
        y = x.clone()
        y[:, :, frame, 8:, :8] += 1
        changed = (small.encode(y) != small.encode(x)).any(1)[0].nonzero()
        assert changed.tolist() == [[latent, 1, 0]]


def test_latents_of_the_demos_clips_have_about_unit_variance(codec):
    assert 0.8 < codec.encode(crops("train")).square().mean() < 1.25


def test_latents_of_the_fitted_clips_are_white():
    x = noise(256)
    z = PcaCodec.fit(x).encode(x)
    for part in (z[:, :, 0], z[:, :, 1]):
        flat = part.transpose(0, 1).flatten(1)
        assert flat.mean(1).abs().max() < 1e-4
        assert torch.allclose(flat @ flat.T / flat.shape[1], torch.eye(16), atol=1e-3)


def test_held_out_clips_come_back_above_25_db(codec, pixels):
    assert psnr(codec.decode(codec.encode(pixels)), pixels) > 25


def test_decoding_by_neighbours_beats_the_inverse_of_the_pca(codec, pixels):
    inverse = {}
    for kind in module.PIXELS:
        decode = torch.zeros(9, 16, module.PIXELS[kind])
        decode[4] = torch.linalg.pinv(codec.tensors[f"{kind}.encode"])         # the middle one of 3 x 3
        inverse[f"{kind}.decode"] = decode.transpose(0, 1).flatten(0, 1)       # unfold: channel, place
    plain = PcaCodec(codec.tensors | inverse)
    z = codec.encode(pixels)
    assert psnr(codec.decode(z), pixels) > psnr(plain.decode(z), pixels) + 0.5


def test_at_the_edge_a_block_sees_its_own_latents_again(small):
    z = torch.randn(1, 16, 2, 1, 1, generator=torch.Generator().manual_seed(0)).expand(1, 16, 2, 3, 3)
    blocks = small.decode(z).unflatten(4, (3, 8)).unflatten(3, (3, 8))
    assert torch.allclose(blocks, blocks[:, :, :, 1:2, :, 1:2].expand_as(blocks), atol=1e-6)


def test_decoding_is_differentiable_to_the_latents(small):
    small = PcaCodec({name: tensor.double() for name, tensor in small.tensors.items()})
    z = (0.1 * torch.randn(1, 16, 2, 1, 2, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: small.decode(z)[:, :, ::3, ::5, ::5], z)


def test_the_same_clips_fit_the_same_codec(small):
    again = PcaCodec.fit(noise(64))
    assert all(torch.equal(small.tensors[name], again.tensors[name]) for name in small.tensors)


def test_a_codec_comes_back_to_the_bit(small, tmp_path):
    small.save(tmp_path / "codec.safetensors")
    back = PcaCodec.load(tmp_path / "codec.safetensors")
    assert back.tensors.keys() == small.tensors.keys()
    assert all(torch.equal(small.tensors[name], back.tensors[name]) for name in small.tensors)


@pytest.mark.parametrize("shape", [(2, 3, 4, 16, 16), (2, 3, 1, 16, 16), (2, 3, 5, 12, 16), (2, 3, 5, 16, 12),
                                   (2, 1, 5, 16, 16), (3, 5, 16, 16)])
def test_pixels_of_an_impossible_shape_are_refused(shape, small):
    for use in (small.encode, PcaCodec.fit):
        with pytest.raises(ValueError, match=r"pixels are \(.*\); want \(B, 3, 4n\+1, 8h, 8w\)"):
            use(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 16, 1, 2, 2), (2, 12, 2, 2, 2), (16, 2, 2, 2)])
def test_latents_of_an_impossible_shape_are_refused(shape, small):
    with pytest.raises(ValueError, match=r"latents are \(.*\); want \(B, 16, n\+1, h, w\)"):
        small.decode(torch.zeros(shape))


def test_clips_too_plain_for_sixteen_channels_are_refused():
    with pytest.raises(ValueError, match="the blocks vary in 0 directions; want 16 or more"):
        PcaCodec.fit(torch.zeros(4, 3, 5, 16, 16))


def test_a_missing_a_damaged_and_a_foreign_file_are_named(small, tmp_path):
    path = tmp_path / "codec.safetensors"
    with pytest.raises(ValueError, match=f"{path}: no such file; .*`swiftvideo codec`"):
        PcaCodec.load(path)
    small.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{path}: damaged.*`swiftvideo codec`"):
        PcaCodec.load(path)
    save_file({"first.mean": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=f"{path}.*does not fit: .*144, 192.*and 3 more"):
        PcaCodec.load(path)


def test_a_save_that_fails_leaves_the_old_codec(small, tmp_path, monkeypatch):
    def fail(tensors, path, header):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "codec.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr(module.sealed, "save_file", fail)
    with pytest.raises(OSError, match="codec.safetensors: could not be written"):
        small.save(path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [path.name]
