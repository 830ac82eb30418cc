"""Sensitivity of the feature nets, on held-out real clips with and without corruption."""

import pytest
import torch

from swiftvideo_fast.data.clips import demo_clips
from swiftvideo_fast.data.crops import CropSource
from swiftvideo_fast.metrics.corrupt import KINDS, corrupt
from swiftvideo_fast.metrics.features import FEATURES, random_net, trained_net
from swiftvideo_fast.metrics.frechet import distance, fit

CLIPS = 96
NEAR, FAR = 2.0, 5.0    # minimum distance of half and gross corruption, relative to other real clips


@pytest.fixture(scope="module")
def held_out():
    """Returns two draws of held-out clips."""
    crops = CropSource(demo_clips(), "test", frames=17, size=64)
    return crops.draw(CLIPS, 1).pixels, crops.draw(CLIPS, 2).pixels


@pytest.fixture(scope="module", params=[trained_net, random_net], ids=["trained", "random"])
def ruler(request, held_out):
    """Returns (function: distance of clips to the first draw, distance of the second draw)."""
    net = request.param()
    first = fit(net.extract(held_out[0]))

    def measure(clips):
        return distance(first, fit(net.extract(clips)))

    return measure, measure(held_out[1])


@pytest.mark.parametrize("kind", KINDS)
def test_distance_grows_with_damage_and_is_small_between_real_sets(held_out, ruler, rng, kind):
    measure, between_real = ruler
    some, much = (measure(corrupt(held_out[1], kind, strength, rng)) for strength in (0.5, 1.0))
    assert NEAR * between_real < some < much and FAR * between_real < much


def test_the_random_net_is_its_seed():
    x = torch.linspace(-1, 1, 2 * 3 * 5 * 16 * 16).reshape(2, 3, 5, 16, 16)
    torch.testing.assert_close(random_net(3).extract(x), random_net(3).extract(x), rtol=0, atol=0)
    assert not torch.allclose(random_net(3).extract(x), random_net(4).extract(x))


@pytest.mark.parametrize("T, H, W", [(1, 8, 8), (17, 64, 64), (5, 48, 80)])
def test_clips_of_any_size_have_features(T, H, W):
    assert trained_net().extract(torch.zeros(2, 3, T, H, W)).shape == (2, FEATURES)


def test_batches_do_not_change_the_features(rng):
    x = torch.rand(5, 3, 5, 16, 16, generator=rng)
    net = trained_net()
    torch.testing.assert_close(net.extract(x, batch=2), net.extract(x, batch=5), rtol=1e-4, atol=1e-4)


def test_the_shipped_weights_are_small():
    assert sum(p.numel() for p in trained_net().parameters()) <= 300_000


def test_a_damaged_weights_file_says_how_to_make_it_again(tmp_path):
    (tmp_path / "features.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"not the feature net's weights .*metrics\.pretext"):
        trained_net(tmp_path / "features.safetensors")


def test_what_is_no_clip_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 17, 3, 64, 64\); want \(B, 3, T, H, W\)"):
        trained_net().extract(torch.zeros(2, 17, 3, 64, 64))


@pytest.mark.parametrize("kind", KINDS)
def test_damage_of_no_strength_changes_nothing_and_each_clip_has_its_own(rng, kind):
    x = torch.rand(2, 3, 9, 20, 12, generator=rng) - 0.5
    damaged = corrupt(x, kind, torch.tensor([0.0, 0.8]), rng)
    assert damaged.shape == x.shape and damaged.abs().max() <= 1
    assert torch.equal(damaged[0], x[0]) and not torch.allclose(damaged[1], x[1])


def test_an_unknown_damage_names_the_known():
    with pytest.raises(ValueError, match="kind is 'rust'; want one of blur, noise"):
        corrupt(torch.zeros(1, 3, 2, 8, 8), "rust", 1.0, torch.Generator())
