"""Every released layout loads to the same tensors; other checkpoints are rejected in one line."""

import hashlib
import json
import re
from dataclasses import replace

import pytest
import released
import torch
from safetensors.torch import save_file

from swiftvideo_fast.models import weights
from swiftvideo_fast.models.wan import folder
from swiftvideo_fast.models.wan.network import Wan, cast
from swiftvideo_fast.models.wan.sizes import PRESETS, WanConfig

RELEASED = {                    # DiffSynth's md5 over names and shapes of the published files; tensors
    "Fun-InP": (replace(PRESETS["1.3b"]), "6d6ccde6845b95ad9114ab993d917893", 983),
    "T2V": (replace(PRESETS["1.3b"], image_dim=None, condition=0), "9269f8db9040a9d860eaca435be61814", 825),
    "Fun-Control": (replace(PRESETS["1.3b"], condition=32), "349723183fc063b2bfc10bb2835cf677", 983),
}


def md5(shapes: dict[str, tuple]) -> str:
    """Returns the md5 of "name:s0_s1" and "name" for every tensor, sorted, joined by commas."""
    lines = [line for name, shape in shapes.items() for line in (f"{name}:{'_'.join(map(str, shape))}", name)]
    return hashlib.md5(",".join(sorted(lines)).encode()).hexdigest()


@pytest.mark.parametrize("config, digest, tensors", RELEASED.values(), ids=RELEASED)
def test_the_names_and_shapes_wanted_are_those_of_the_published_file(config: WanConfig, digest, tensors):
    with torch.device("meta"):
        shapes = weights.shapes(Wan(config).state_dict())
    assert (len(shapes), md5(shapes)) == (tensors, digest)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    base = tmp_path_factory.mktemp("layouts")
    for layout in released.LAYOUTS:
        released.write(base / layout, layout)
    return base


@pytest.mark.parametrize("layout", released.LAYOUTS)
def test_every_layout_loads_to_the_same_tensors(layout, layouts):
    net = weights.load(layouts / layout)
    want = released.network().state_dict()
    assert net.config == released.SIZES
    assert net.state_dict().keys() == want.keys()
    assert all(torch.equal(x, want[name]) for name, x in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("layout", ["original", "sharded", "diffusers"])
def test_mapped_weights_stay_in_the_files_dtype(layout, tmp_path):
    low = {name: x.bfloat16() for name, x in released.network().state_dict().items()}
    released.write(tmp_path / "low", layout, low)
    net = weights.load(tmp_path / "low", mapped=True)
    got = net.state_dict()
    assert all(torch.equal(got[name], x) and got[name].dtype == x.dtype for name, x in low.items())


def test_storage_is_what_cast_keeps(layouts):
    got = weights.load(layouts / "original", dtype=torch.bfloat16).state_dict()
    want = cast(released.network(), torch.bfloat16).state_dict()
    assert {name: x.dtype for name, x in got.items()} == {name: x.dtype for name, x in want.items()}
    assert all(torch.equal(x, want[name]) for name, x in got.items())


def test_beside_the_network_one_tensor_is_in_memory(layouts, monkeypatch):
    """Each tensor is read once, after the previous one is freed."""
    import weakref

    read, alive = [], []
    real = weights.Stored.__getitem__

    def watched(self, name):
        alive.append(sum(ref() is not None for ref in read))
        tensor = real(self, name)
        read.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(weights.Stored, "__getitem__", watched)
    net = weights.load(layouts / "original")
    assert len(read) == len(net.state_dict()) and max(alive) <= 1


def test_a_folders_digest_is_of_its_weights(layouts, tmp_path):
    place = released.copy(layouts / "sharded", tmp_path / "model")
    first = weights.digest(place)
    (place / "README.md").write_text("a card")
    assert weights.digest(layouts / "sharded") == first == weights.digest(place) != weights.digest(
        layouts / "original")
    changed(place, eps=1e-5)
    assert weights.digest(place) != first


def test_a_14b_config_makes_a_14b_network():
    config = released.TWELVE | {"dim": 5120, "num_heads": 40, "num_layers": 40, "ffn_dim": 13824}

    class Shapes(dict):
        def shape(self, name):
            return self[name]

    names = {"text_embedding.0.weight": (5120, 4096), "img_emb.proj.1.weight": (1280, 1280)}
    assert folder._config(config, Shapes(names), {name: name for name in names}, "x") == PRESETS["14b"]


# --- errors ----------------------------------------------------------------------------------------------


def changed(place, **config):
    file = place / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


def cut(place):
    file = place / folder.FILE
    file.write_bytes(file.read_bytes()[:-1000])


def drop_tensor(place):
    tensors = released.network().state_dict()
    del tensors["head.head.bias"]
    save_file(tensors, place / folder.FILE)


BAD = {
    "truncated": ("original", cut, r"diffusion_pytorch_model.safetensors: damaged.*; download it again"),
    "shard missing": ("sharded", lambda p: next(p.glob("*-00002-of-00003.safetensors")).unlink(),
                      r"00002-of-00003.safetensors: no such file; .*index.json lists it"),
    "no weights": ("original", lambda p: (p / folder.FILE).unlink(), r"model.safetensors: no such file"),
    "T2V": ("original", lambda p: changed(p, in_dim=16, model_type="t2v"),
            r"a text-to-video \(T2V\) checkpoint, of 16 input channels; want an image-to-video one, of 36"),
    "Control": ("videox", lambda p: changed(p, in_dim=48), r"a Control checkpoint, of 48 input channels"),
    "camera": ("videox", lambda p: changed(p, in_dim=32), r"a camera control checkpoint, of 32 input"),
    "other channels": ("original", lambda p: changed(p, in_dim=20), r"config.json: not a Wan.*20 input"),
    "no config": ("original", lambda p: (p / "config.json").unlink(), r"no config.json; want a Wan model"),
    "unknown class": ("original", lambda p: changed(p, _class_name="VaceWanModel"),
                      r"_class_name is 'VaceWanModel'; want one of WanModel, WanTransformer3DModel"),
    "no JSON": ("original", lambda p: (p / "config.json").write_text("{"), r"config.json: not JSON"),
    "a list": ("original", lambda p: (p / "config.json").write_text("[]"), r"config.json: holds a list"),
    "other norm": ("diffusers", lambda p: changed(p, qk_norm=None), r"qk_norm is None; want True"),
    "other sizes": ("original", lambda p: changed(p, ffn_dim=96),
                    r"does not fit: blocks.0.ffn.0.bias: found \(80,\)"),
    "other frequencies": ("original", lambda p: changed(p, freq_dim=128),
                          r"time_embedding.0.weight: found \(48, 256\), want \(48, 128\)"),
    "heads": ("original", lambda p: changed(p, num_heads=5), r"not a Wan network .*dim 48 over 5 heads"),
    "a tensor missing": ("original", drop_tensor, r"head.head.bias: found nothing, want \(64,\)"),
}


@pytest.mark.parametrize("layout, damage, message", BAD.values(), ids=BAD)
def test_what_does_not_load_is_named(layout, damage, message, layouts, tmp_path):
    place = released.copy(layouts / layout, tmp_path / "model")
    damage(place / "transformer" if layout == "diffusers" else place)
    with pytest.raises(ValueError, match=message) as error:
        weights.load(place)
    assert "\n" not in str(error.value)


def test_an_index_that_names_a_tensor_no_shard_has_is_an_error(layouts, tmp_path):
    place = released.copy(layouts / "sharded", tmp_path / "model")
    index = json.loads((place / f"{folder.FILE}.index.json").read_text())
    index["weight_map"]["blocks.9.norm3.weight"] = "diffusion_pytorch_model-00001-of-00003.safetensors"
    (place / f"{folder.FILE}.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=re.escape("blocks.9.norm3.weight (of 1) is in none of the shards")):
        weights.load(place)
