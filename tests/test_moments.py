"""Moments in batches, merged and gathered, against one pass; their files."""

import gathered
import launch
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftvideo_fast.metrics import moments
from swiftvideo_fast.metrics.frechet import estimate
from swiftvideo_fast.metrics.moments import GROUPS, Moments


def one_pass(x: torch.Tensor) -> Moments:
    seen = Moments(x.shape[1])
    seen.update(x)
    return seen


def features(clips: int, width: int, seed: int = 0, offset: float = 0.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(clips, width, generator=rng, dtype=torch.float64) + offset


def assert_same(a: Moments, b: Moments, rtol: float = 1e-12):
    assert torch.equal(a.counts, b.counts)
    torch.testing.assert_close(a.means, b.means, rtol=rtol, atol=rtol)
    torch.testing.assert_close(a.scatters, b.scatters, rtol=rtol, atol=rtol * max(1, a.count))


def test_are_the_mean_and_covariance_of_numpy():
    x = features(100, 5)
    found = one_pass(x).gaussian()
    np.testing.assert_allclose(found.mean, x.numpy().mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(x.numpy().T, ddof=0), rtol=1e-12, atol=1e-14)
    assert found.count == 100


def test_leave_out_one_group():
    x = features(70, 3)
    kept = x[torch.arange(70) % GROUPS != 5]
    found = one_pass(x).gaussian(without=5)
    np.testing.assert_allclose(found.covariance, np.cov(kept.numpy().T, ddof=0), rtol=1e-12, atol=1e-14)
    assert found.count == len(kept)


@given(st.data())
@settings(max_examples=25)
def test_any_split_into_ranks_and_batches_is_one_pass(data):
    x = features(data.draw(st.integers(1, 60)), data.draw(st.integers(1, 4)), data.draw(st.integers(0, 99)))
    owner = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=len(x), max_size=len(x))))
    whole = Moments(x.shape[1])
    for rank in data.draw(st.permutations(range(4))):
        mine, seen = (owner == rank).nonzero()[:, 0], Moments(x.shape[1])
        while len(mine):
            size = data.draw(st.integers(1, len(mine)))
            seen.update(x[mine[:size]], mine[:size])
            mine = mine[size:]
        whole.merge(seen)
    assert_same(whole, one_pass(x))


@given(st.lists(st.integers(0, 20), min_size=3, max_size=3))
@settings(max_examples=20)
def test_merging_is_associative_and_commutative(sizes):
    a, b, c = (one_pass(features(n, 3, seed)) for seed, n in enumerate(sizes))
    left, right = Moments(3), Moments(3)
    for part in (a, b, c):
        left.merge(part)
    inner = Moments(3)
    for part in (c, b):
        inner.merge(part)
    for part in (inner, a):
        right.merge(part)
    assert_same(left, right)


def test_a_large_offset_costs_no_digits_of_the_covariance():
    """A sum of squares would lose 1e12 of 1e16."""
    x, y, seen = features(200, 2), features(200, 2, offset=1e6), Moments(2)
    for part in y.split(7):
        seen.update(part)
    want = one_pass(x).gaussian().covariance
    torch.testing.assert_close(seen.gaussian().covariance, want, rtol=1e-8, atol=1e-8)


def test_of_batches_from_any_feature_function():
    x = features(50, 6)
    found = moments.moments(lambda clips: clips[:, :4], iter(x.split(9)))
    assert_same(found, one_pass(x[:, :4]))
    with pytest.raises(ValueError, match="no batch of clips"):
        moments.moments(lambda clips: clips, iter(()))


def test_bad_features_and_positions_are_refused_and_nothing_is_added():
    seen = one_pass(features(4, 3))
    broken = torch.zeros(5, 3)
    broken[1, 2], broken[3, 0] = float("nan"), float("inf")
    with pytest.raises(ValueError, match="2 of 5 clips"):
        seen.update(broken)
    with pytest.raises(ValueError, match=r"\(5, 2\); want \(clips, 3\)"):
        seen.update(torch.zeros(5, 2))
    for positions in ([0, 1], [0, -1, 2], [[0], [1], [2]]):
        with pytest.raises(ValueError, match=r"want one per clip, \(3,\), none negative"):
            seen.update(torch.zeros(3, 3), positions)
    with pytest.raises(ValueError, match="3 features, the other 2"):
        seen.merge(Moments(2))
    with pytest.raises(ValueError, match="1 clips were seen; want at least 2"):
        one_pass(features(1, 3)).gaussian()
    with pytest.raises(ValueError, match="features is 0"):
        Moments(0)
    assert_same(seen, one_pass(features(4, 3)), 0)


def test_a_file_gives_back_the_same_bits(tmp_path):
    seen = one_pass(features(90, 3))
    moments.save(seen, tmp_path / "m.safetensors")
    assert_same(moments.load(tmp_path / "m.safetensors"), seen, 0)


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "other"])
def test_a_damaged_file_is_one_error_that_names_it(tmp_path, damage):
    file = tmp_path / "m.safetensors"
    moments.save(one_pass(features(90, 3)), file)
    whole = bytearray(file.read_bytes())
    whole[-20] ^= 1
    file.write_bytes({"cut": whole[:-8], "empty": b"", "bit": whole, "other": b"not a file of ours"}[damage])
    with pytest.raises(ValueError, match=r"m\.safetensors.*remove it"):
        moments.load(file)
    file.unlink()
    with pytest.raises(ValueError, match=r"m\.safetensors"):
        moments.load(file)


def test_cached_moments_are_computed_once_for_each_thing_they_depend_on(tmp_path):
    calls = []

    def find(**what):
        return moments.cached(tmp_path, what, lambda: calls.append(what) or one_pass(features(40, 2)))

    first = find(net="i3d", frames=16)
    assert_same(find(net="i3d", frames=16), first, 0)
    find(net="i3d", frames=64)
    assert calls == [{"net": "i3d", "frames": 16}, {"net": "i3d", "frames": 64}]
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="remove it"):
        find(net="i3d", frames=16)
    assert len(calls) == 2


def test_ranks_gather_what_one_pass_finds_and_share_a_cache(tmp_path):
    x, world = features(100, 3), 3
    assert launch.Processes(launch.server(), world, gathered.gather, x, tmp_path).join(300) == [0] * world
    for name in ("gathered", "computed", "read"):
        found = [moments.load(tmp_path / f"{rank}-{name}.safetensors") for rank in range(world)]
        for seen in found:
            assert_same(seen, one_pass(x))
            assert_same(seen, found[0], 0)
        y = one_pass(features(100, 3, seed=1))
        assert estimate(found[0], y).high == pytest.approx(estimate(one_pass(x), y).high, rel=1e-9)
    for rank in range(world):
        widths, damaged = (tmp_path / f"{rank}.txt").read_text().splitlines()
        assert "the ranks have [2, 3, 4] features" in widths and "remove it" in damaged
