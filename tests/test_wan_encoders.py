"""VAE, umT5 and CLIP: the published names, both layouts, and rejected files."""

import pickle

import pytest
import released
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from test_wan_folder import changed, md5
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    UMT5Config,
    UMT5EncoderModel,
)

from swiftvideo_fast.models import weights
from swiftvideo_fast.models.wan import encoders
from swiftvideo_fast.models.wan.codec import WanCodec
from swiftvideo_fast.models.wan.image import ImageEncoder
from swiftvideo_fast.models.wan.names import CLIP, UMT5, VAE, Names

KINDS = {"text": encoders.TEXT, "image": encoders.IMAGE, "vae": encoders.AUTOENCODER}
LOADERS = {"text": encoders.text_encoder, "image": encoders.image_encoder, "vae": encoders.vae}
MADE = {"text": released.text_encoder, "image": released.image_encoder, "vae": released.vae}


# --- the published files, by name and shape ---------------------------------------------------------------


def shapes(module) -> dict[str, tuple]:
    return weights.shapes(module.state_dict())


def published_umt5() -> UMT5EncoderModel:
    return UMT5EncoderModel(UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24,
                                       num_heads=64))


def published_clip() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=1280, intermediate_size=5120, projection_dim=1024, num_hidden_layers=32,
        num_attention_heads=16, image_size=224, patch_size=14, hidden_act="gelu"))


def released_clip_shapes() -> dict[str, tuple]:
    """Returns all 784: the image tower from transformers' class, the text tower from its architecture."""
    found = {CLIP.back(name): shape for name, shape in shapes(published_clip()).items()}
    listed = {"log_scale": ()}
    for name, shape in found.items():
        if ".attn.q." in name:
            listed[name.replace(".attn.q.", ".attn.to_qkv.")] = (3 * shape[0], *shape[1:])
        elif ".attn.k." not in name and ".attn.v." not in name:
            listed[name] = {"visual.cls_embedding": (1, 1, *shape), "visual.pos_embedding": (1, *shape),
                            "visual.head": shape[::-1]}.get(name, shape)
    E, text = 1024, {"token_embedding.weight": (250002, 1024), "type_embedding.weight": (1, 1024)}
    text |= {"pos_embedding.weight": (514, E), "head.0.weight": (E, E), "head.2.weight": (E, E)}
    layers = {"norm": (E,)}
    for n in range(24):
        layers |= {f"blocks.{n}.attn.{p}": (E, E) for p in "qkvo"}
        layers |= {f"blocks.{n}.norm1": (E,), f"blocks.{n}.norm2": (E,)}
        layers |= {f"blocks.{n}.ffn.0": (4 * E, E), f"blocks.{n}.ffn.2": (E, 4 * E)}
    for name, shape in layers.items():
        text |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return listed | {f"textual.{name}": shape for name, shape in text.items()}


def published_shapes(kind: str) -> dict[str, tuple]:
    with torch.device("meta"):
        if kind == "image":
            return released_clip_shapes()
        module, names = (published_umt5(), UMT5) if kind == "text" else (AutoencoderKLWan(), VAE)
        return {names.back(name): shape for name, shape in shapes(module).items()
                if "embed_tokens" not in name}


PUBLISHED = {                       # tensors, parameters, DiffSynth's md5, tensors of the class
    "text": (242, 5_680_910_336, "9c8818c2cbea55eca56c7b447df170da", 242),
    "vae": (194, 126_892_531, "ccc42284ea13e1ad04693284c7a09be6", 194),
    "image": (784, 1_193_014_785, "5941c53e207d62f20f9025686193c40b", 520),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_published_file_maps_onto_the_class_with_nothing_missing_or_left(kind):
    count, parameters, digest, converted = PUBLISHED[kind]
    listed = published_shapes(kind)
    assert (len(listed), md5(listed)) == (count, digest)
    assert sum(torch.Size(shape).numel() for shape in listed.values()) == parameters
    with torch.device("meta"):
        of, names = KINDS[kind], KINDS[kind].names
        tensors = of.prepare({name: torch.empty(shape) for name, shape in listed.items()})
        theirs = {names.of(name): tuple(x.shape) for name, x in tensors.items()}
        built = of.build(theirs)
        want = {"text": published_umt5, "image": published_clip, "vae": AutoencoderKLWan}[kind]()
    assert len(theirs) == converted
    assert theirs == {name: shape for name, shape in shapes(want).items() if "embed_tokens" not in name}
    for key in ("num_heads", "d_kv", "d_ff", "feed_forward_proj", "num_attention_heads", "hidden_act",
                "image_size", "patch_size", "layer_norm_eps", "layer_norm_epsilon", "base_dim", "z_dim",
                "dim_mult", "relative_attention_max_distance", "latents_mean"):
        assert getattr(built.config, key, None) == getattr(want.config, key, None), key


def test_the_vaes_names_are_those_of_diffusers_converter():
    names = [name for name, _ in published_shapes("vae").items()]
    theirs = convert_wan_vae_to_diffusers({name: torch.zeros(1) for name in names})
    assert {VAE.of(name) for name in names} == set(theirs)
    numbered = {name: torch.tensor(i) for i, name in enumerate(names)}
    assert all(x == numbered[VAE.back(name)] for name, x in convert_wan_vae_to_diffusers(numbered).items())


@pytest.mark.parametrize("names", [UMT5, CLIP, VAE], ids=["umT5", "CLIP", "VAE"])
def test_an_unknown_name_is_an_error(names: Names):
    with pytest.raises(ValueError, match="decoder.attic.weight: not a parameter of "):
        names.of("decoder.attic.weight")


# --- both layouts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_comes_back_to_the_bit(kind, layout, encoder_folders):
    got, want = LOADERS[kind](encoder_folders / layout, torch.float32), MADE[kind]()
    assert type(got) is type(want)
    assert got.state_dict().keys() == want.state_dict().keys()
    assert all(torch.equal(x, want.state_dict()[name]) for name, x in got.state_dict().items())
    assert not any(p.requires_grad for p in got.parameters()) and not got.training


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_the_token_embedding_is_one_tensor_and_not_zero(layout, encoder_folders):
    model = encoders.text_encoder(encoder_folders / layout)
    assert model.encoder.embed_tokens.weight is model.shared.weight
    assert model.shared.weight.abs().sum() > 0 and model.shared.weight.dtype == torch.bfloat16


def test_a_clip_without_prefix_or_projection_loads(encoder_folders, tmp_path):
    """transformers 4 saves CLIPVisionModel with a prefix, transformers 5 without."""
    place = released.copy(encoder_folders / "diffusers", tmp_path / "model")
    image = released.image_encoder()
    plain = CLIPVisionModel(image.config)
    own = {name: x for name, x in image.state_dict().items() if name.startswith("vision_model.")}
    bare = "vision_model.post_layernorm.bias" not in plain.state_dict()
    cut = "vision_model." if bare else ""
    plain.load_state_dict({name.removeprefix(cut): x for name, x in own.items()})
    plain.save_pretrained(place / "image_encoder")
    frame = torch.rand(1, 3, 32, 32)
    want = ImageEncoder(encoders.image_encoder(encoder_folders / "diffusers"))(frame)
    assert torch.equal(ImageEncoder(encoders.image_encoder(place))(frame), want)


# --- errors ----------------------------------------------------------------------------------------------


class Code:
    def __reduce__(self):
        return print, ("this ran",)


def cut(file):
    file.write_bytes(file.read_bytes()[:-5000])


def with_code(file):
    torch.save({"encoder.conv1.weight": Code()}, file)


BAD = {
    "code": ("original", "vae", with_code, "Wan2.1_VAE.pth: damaged, or contains code .*none of it was run"),
    "a pickle": ("original", "vae", lambda f: f.write_bytes(pickle.dumps(Code())), "contains code"),
    "truncated": ("original", "text", cut, "umt5-xxl-enc-bf16.pth: damaged"),
    "no table": ("original", "vae", lambda f: torch.save([torch.zeros(1)], f), "not a dict of tensors"),
    "another VAE": ("original", "vae", lambda f: torch.save({"decoder.conv_in.weight": torch.zeros(1)}, f),
                    "not the Wan 2.1 VAE .*it holds decoder.conv_in.weight"),
    "text for image": ("original", "image", lambda f: torch.save({"norm.weight": torch.zeros(2)}, f),
                       "not CLIP's image encoder"),
    "one more": ("original", "vae", lambda f: torch.save(torch.load(f) | {"conv9.weight": torch.ones(1)}, f),
                      r"read as the Wan 2.1 VAE: does not fit: conv9.weight: found \(1,\), want nothing"),
}


@pytest.mark.parametrize("layout, kind, damage, message", BAD.values(), ids=BAD)
def test_a_bad_file_is_named(layout, kind, damage, message, encoder_folders, tmp_path, capsys):
    place = released.copy(encoder_folders / layout, tmp_path / "model")
    damage(place / KINDS[kind].file)
    with pytest.raises(ValueError, match=message) as error:
        LOADERS[kind](place)
    assert "\n" not in str(error.value) and "this ran" not in capsys.readouterr().out


def test_a_vae_of_other_channels_or_another_class_is_named(encoder_folders, tmp_path):
    place = released.copy(encoder_folders / "diffusers", tmp_path / "model")
    wide = AutoencoderKLWan(base_dim=8, z_dim=48, latents_mean=[0.0] * 48, latents_std=[1.0] * 48)
    wide.save_pretrained(place / "vae")
    with pytest.raises(ValueError, match="the VAE has 48 latent channels; want 16: Wan 2.1's"):
        WanCodec(place).vae                                                     # noqa: B018
    changed(place / "vae", _class_name="AutoencoderKL")
    with pytest.raises(ValueError, match="vae/config.json: a AutoencoderKL; want AutoencoderKLWan"):
        WanCodec(place).vae                                                     # noqa: B018


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_encoder_is_named_with_where_it_was_looked_for(kind, tmp_path):
    with pytest.raises(ValueError, match=f"no {KINDS[kind].file} and no {KINDS[kind].subfolder}/; want "):
        LOADERS[kind](tmp_path)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer; want google/umt5-xxl or tokenizer in it"):
        encoders.tokenizer(tmp_path)
