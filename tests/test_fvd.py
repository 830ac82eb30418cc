"""FVD with stubs of the published networks: preprocessing, weight files, ranks, the result.

The published architectures against cd-fvd's own pipeline: `python tests/compare_cdfvd.py`.
"""

import sys
from argparse import Namespace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from swiftvideo_fast.data.clips import decode, write_video
from swiftvideo_fast.data.decode import Framing
from swiftvideo_fast.metrics import fvd as module
from swiftvideo_fast.metrics.frechet import distance, fit
from swiftvideo_fast.metrics.fvd import fvd, measure, videos
from swiftvideo_fast.metrics.published_nets import Published, i3d_pixels, load, videomae_pixels

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
FRAMING = Framing(10, 16.0, 24, 16)


class SmallI3d(nn.Module):
    """A stub with cd-fvd's input; its features are linear in coarse pixels."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.net = nn.Conv3d(in_channels, num_classes, (1, 4, 4))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        coarse = nn.functional.adaptive_avg_pool3d(x, (2, 4, 4))
        return self.dropout(self.net(coarse)).mean((2, 3, 4))


class SmallVideoMae(nn.Module):
    def __init__(self, **told):
        super().__init__()
        assert told == {"img_size": 224, "pretrained": False, "num_classes": 174, "all_frames": 16,
                        "tubelet_size": 2, "drop_path_rate": 0.3, "use_mean_pooling": True}
        self.out = nn.Linear(6, 1408)

    def forward_features(self, x):
        return self.out(torch.cat([x.mean((2, 3, 4)), x.amax((2, 3, 4))], 1))


class StyleGanV(nn.Module):
    def forward(self, x, rescale: bool = False, resize: bool = False, return_features: bool = False):
        assert rescale and resize and return_features and x.dtype == torch.uint8
        return x.float().mean((2, 3, 4)).repeat(1, 134)[:, :400]


@pytest.fixture(autouse=True)
def package(monkeypatch):
    """Installs a stub of cd-fvd."""
    for name in ("cdfvd", "cdfvd.third_party", "cdfvd.third_party.i3d", "cdfvd.third_party.VideoMAEv2"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    i3d = ModuleType("cdfvd.third_party.i3d.pytorch_i3d")
    mae = ModuleType("cdfvd.third_party.VideoMAEv2.videomaev2_finetune")
    i3d.InceptionI3d, mae.vit_giant_patch14_224 = SmallI3d, SmallVideoMae
    monkeypatch.setitem(sys.modules, i3d.__name__, i3d)
    monkeypatch.setitem(sys.modules, mae.__name__, mae)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    torch.save(SmallI3d(400, 3).state_dict(), tmp_path / "i3d.pt")
    mae = SmallVideoMae(img_size=224, pretrained=False, num_classes=174, all_frames=16, tubelet_size=2,
                        drop_path_rate=0.3, use_mean_pooling=True)
    torch.save({"module": mae.state_dict()}, tmp_path / "mae.pth")
    torch.jit.script(StyleGanV()).save(tmp_path / "script.pt")
    return tmp_path


def clips(rng, count=6, frames=10, height=16, width=24):
    return torch.randint(256, (count, frames, height, width, 3), generator=rng, dtype=torch.uint8)


def colours():
    """Returns a net whose features are the mean colour."""
    return Published("fvd-i3d", "none", 3, lambda x: x.float().mean((1, 2, 3)), torch.device("cpu"))


def bilinear(x_HW, side=224):
    """Resizes with half-pixel centres, clamped edges, no antialias, in numpy float64."""
    def along(n):
        at = np.clip((np.arange(side) + 0.5) * n / side - 0.5, 0, None)
        low = at.astype(int)
        return low, np.minimum(low + 1, n - 1), at - low
    (t, b, y), (l, r, x) = map(along, x_HW.shape)
    top = x_HW[t][:, l] * (1 - x) + x_HW[t][:, r] * x
    return top * (1 - y[:, None]) + (x_HW[b][:, l] * (1 - x) + x_HW[b][:, r] * x) * y[:, None]


@pytest.mark.parametrize("height, width", [(16, 24), (224, 224), (300, 410)])
def test_pixels_are_bilinear_at_224_in_each_nets_range(rng, height, width):
    x = clips(rng, 2, 3, height, width)
    want = np.stack([[[bilinear(x[b, t, :, :, c].double().numpy()) for t in range(3)] for c in range(3)]
                     for b in range(2)])
    place = max(height, width) * 2 ** -23                    # error of a float32 coordinate
    np.testing.assert_allclose(i3d_pixels(x), 2 * want / 255 - 1, atol=2 * place)
    np.testing.assert_allclose(videomae_pixels(x), want / 255, atol=place)


@pytest.mark.parametrize("file", ["i3d.pt", "script.pt"])
def test_the_distance_is_that_of_the_nets_features(rng, weights, file):
    """In batches of any size, of tensors or arrays."""
    net = load("fvd-i3d", weights / file)
    real, made = clips(rng, 13), clips(rng, 7) // 2
    whole = [fit(net.extract(x)) for x in (real, made)]
    of_real = measure(net, real.split(4), FRAMING)
    found = fvd(net, of_real, measure(net, [made.numpy()], FRAMING), FRAMING)
    assert found.distance == pytest.approx(distance(*whole), rel=1e-6)
    assert (found.real, found.generated, found.net, found.estimate) == (13, 7, "fvd-i3d", None)
    kind = {"i3d.pt": "I3D of TATS", "script.pt": "I3D of StyleGAN-V"}[file]
    assert kind in str(found) and "10 frames at 16 fps, 24x16" in str(found)
    assert "no unbiased estimate from 7 clips, want 800 a side" in str(found)


def test_features_are_those_of_the_network_at_evaluation(rng, weights):
    """Dropout is off; a wrapped state dict is found; clips pass a few at a time."""
    x = clips(rng, 14)
    i3d, mae = load("fvd-i3d", weights / "i3d.pt"), load("fvd-videomae", weights / "mae.pth")
    alone = SmallI3d(400, 3).eval()
    alone.load_state_dict(torch.load(weights / "i3d.pt"))
    torch.testing.assert_close(i3d.extract(x), alone(i3d_pixels(x)).detach())
    linear = torch.load(weights / "mae.pth")["module"]
    pixels = videomae_pixels(x)
    pooled = torch.cat([pixels.mean((2, 3, 4)), pixels.amax((2, 3, 4))], 1)
    torch.testing.assert_close(mae.extract(x), pooled @ linear["out.weight"].T + linear["out.bias"])
    assert "VideoMAE-v2" in mae.about and mae.extract(x).shape == (14, mae.features)


def test_enough_clips_have_an_estimate_below_the_distance(rng):
    net = colours()
    real, made = (measure(net, clips(rng, 100).split(32), FRAMING) for _ in range(2))
    found = fvd(net, real, made, FRAMING)
    assert found.estimate.low < 0 < found.estimate.high and found.estimate.value < found.distance
    assert f"unbiased {found.estimate.value:.2f} [" in str(found)


def test_memory_holds_one_batch(rng):
    alive = []

    def batches():
        import weakref

        for _ in range(5):
            x = clips(rng, 2)
            assert not [ref for ref in alive[:-1] if ref() is not None]
            alive.append(weakref.ref(x))
            yield x

    assert measure(colours(), batches(), FRAMING).count == 10


def test_ranks_measure_what_one_does(rng):
    net, x = colours(), clips(rng, 40)
    whole, together = measure(net, x.split(40), FRAMING), measure(net, [], FRAMING)
    for rank in range(3):
        together.merge(measure(net, x[rank::3].split(4), FRAMING, rank, 3))
    assert torch.equal(together.counts, whole.counts)
    torch.testing.assert_close(together.means, whole.means, rtol=1e-6, atol=1e-7)


def test_a_wrong_file_is_one_error_that_says_what_is_wanted(weights, monkeypatch):
    torch.save({"weight": torch.zeros(3)}, weights / "other.pt")
    torch.save(SmallI3d(300, 3).state_dict(), weights / "narrow.pt")
    torch.save({"model": {}, "args": Namespace(lr=1)}, weights / "code.pt")
    torch.save(torch.zeros(2), weights / "tensor.pt")
    torch.save(SmallI3d(400, 3).state_dict() | {"head": torch.zeros(1)}, weights / "more.pt")
    torch.jit.script(nn.Linear(2, 2)).save(weights / "linear.pt")
    (weights / "bytes.pt").write_bytes(b"not a file of torch")
    cut = (weights / "i3d.pt").read_bytes()[:-200]
    (weights / "cut.pt").write_bytes(cut)
    for file, says in (("missing.pt", "no such file; fvd-i3d needs i3d_pretrained_400.pt"),
                       ("other.pt", "2 of its 2 .*, 1 are not its own, the first net.weight"),
                       ("narrow.pt", "2 of its 2 tensors are missing or of another shape, 0 are"),
                       ("more.pt", "0 of its 2 .*, 1 are not its own, the first head"),
                       ("mae.pth", "2 are not its own"), ("code.pt", "not a file of tensors only"),
                       ("tensor.pt", "holds a Tensor"), ("linear.pt", "not StyleGAN-V's"),
                       ("bytes.pt", "not a file of tensors only"),
                       ("cut.pt", "not a file of tensors only")):
        with pytest.raises(ValueError, match=says) as caught:
            load("fvd-i3d", weights / file)
        assert file in str(caught.value) and "\n" not in str(caught.value)
    for device in ("cuda:7", "nowhere"):
        with pytest.raises(ValueError, match=f"device is '{device}': "):
            load("fvd-i3d", weights / "i3d.pt", device)
    with pytest.raises(ValueError, match="want one of fvd-i3d, fvd-videomae"):
        load("i3d", weights / "i3d.pt")
    monkeypatch.setitem(sys.modules, "cdfvd", None)
    monkeypatch.delitem(sys.modules, "cdfvd.third_party.i3d.pytorch_i3d")
    monkeypatch.delitem(sys.modules, "cdfvd.third_party.i3d")
    monkeypatch.delitem(sys.modules, "cdfvd.third_party")
    with pytest.raises(ImportError, match=r"swiftvideo_fast\[eval\]"):
        load("fvd-i3d", weights / "i3d.pt")


def test_clips_that_a_net_cannot_see_are_refused(rng, weights):
    i3d, mae = load("fvd-i3d", weights / "i3d.pt"), load("fvd-videomae", weights / "mae.pth")
    with pytest.raises(ValueError, match="8 frames; want at least 9"):
        i3d.extract(clips(rng, frames=8))
    with pytest.raises(ValueError, match="15 frames; want an even number"):
        measure(mae, [], Framing(15, 16, 24, 16))
    with pytest.raises(ValueError, match=r"uint8 \(2, 10, 16, 22, 3\); want uint8 \(B, 10, 16, 24, 3\)"):
        measure(i3d, [clips(rng, 2, width=22)], FRAMING)
    with pytest.raises(ValueError, match="float32"):
        i3d.extract(clips(rng).float())
    with pytest.raises(ValueError, match="0 clips were seen"):
        fvd(i3d, measure(i3d, [], FRAMING), measure(i3d, [], FRAMING), FRAMING)


def test_the_command_measures_two_folders_and_caches_the_real_one(rng, weights, monkeypatch, capsys):
    for folder in ("real", "made"):
        for i in range(3):
            pixels = torch.rand(3, 12, 16, 24, generator=rng) * 2 - 1
            (weights / folder).mkdir(exist_ok=True)
            write_video(weights / folder / f"{i}.mp4", pixels, fps=16)
    framing = Framing(10, 16.0, 24, 16)
    seen = torch.cat([*videos(weights / "real", framing)])
    assert seen.shape == (3, 10, 16, 24, 3)
    assert torch.equal(torch.cat([*videos(weights / "real", framing, 1, 2)]), seen[1::2])
    from_start = torch.from_numpy(decode(weights / "real/0.mp4", height=16)[0][:10]).float()
    assert (seen[0].float() - from_start).abs().mean() < 3

    def call(*words):
        common = f"--net fvd-i3d --weights {weights / 'i3d.pt'} --size 24 16 --device cpu".split()
        folders = [str(weights / "real"), str(weights / "made")]
        monkeypatch.setattr(sys, "argv", ["fvd", *folders, *common, *words])
        code = module.main()
        said = capsys.readouterr()
        return code, said.out + "".join(line for line in said.err.splitlines(True) if line.startswith("fvd:"))

    cache = ["--cache", str(weights / "cache")]
    code, first = call("--frames", "10", *cache)
    assert code == 0 and "3 real and 3 generated clips of 10 frames at 16 fps, 24x16; I3D of TATS" in first
    assert call("--frames", "10", *cache) == call("--frames", "10") == (0, first)
    asked = []
    monkeypatch.setattr(module, "videos", lambda of, *rest: asked.append(of.name) or videos(of, *rest))
    assert call("--frames", "10", *cache) == (0, first) and asked == ["made"]
    assert len([*(weights / "cache").iterdir()]) == 1
    (weights / "real/2.mp4").unlink()                       # another set of real videos
    code, said = call("--frames", "10", *cache)
    assert code == 0 and said.splitlines()[1].startswith("2 real and 3 generated clips")
    code, said = call("--frames", "16")
    assert code == 2 and "real/0.mp4: 12 frames, 0.69 s; want 16 frames at 16 fps" in said
    (weights / "made/some.zip").write_bytes(b"no archive")
    code, said = call("--frames", "10")
    assert code == 2 and "made/some.zip: archive: " in said and said.count("\n") == 1
    for path in (weights / "made").iterdir():
        path.unlink()
    code, said = call("--frames", "10")
    assert code == 2 and "made: no videos in it" in said
    code, said = call("--frames", "8")
    assert code == 2 and said.count("\n") == 1
