"""VAE, umT5 and CLIP: the published names, both layouts, and what Wan was conditioned on in training."""

import math
import pickle

import pytest
import released
import torch
import torch.nn.functional as F
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

from swiftvideo_fast.config import Model
from swiftvideo_fast.models import weights
from swiftvideo_fast.models.wan import encoders
from swiftvideo_fast.models.wan.codec import WanCodec
from swiftvideo_fast.models.wan.family import WanFamily
from swiftvideo_fast.models.wan.image import ImageEncoder
from swiftvideo_fast.models.wan.names import CLIP, UMT5, VAE, Names
from swiftvideo_fast.models.wan.text import TextEncoder, clean
from swiftvideo_fast.models.wan.vae import WanVae

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
    """All 784: the image half from transformers' class by our table, the text half from its architecture."""
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


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("encoders")
    for layout in ("original", "diffusers"):
        (base / layout).mkdir()
        released.write_encoders(base / layout, layout)
    return base


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_comes_back_to_the_bit(kind, layout, folders):
    got, want = LOADERS[kind](folders / layout, torch.float32), MADE[kind]()
    assert type(got) is type(want)
    assert got.state_dict().keys() == want.state_dict().keys()
    assert all(torch.equal(x, want.state_dict()[name]) for name, x in got.state_dict().items())
    assert not any(p.requires_grad for p in got.parameters()) and not got.training


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_the_token_embedding_is_one_tensor_and_not_zero(layout, folders):
    model = encoders.text_encoder(folders / layout)
    assert model.encoder.embed_tokens.weight is model.shared.weight
    assert model.shared.weight.abs().sum() > 0 and model.shared.weight.dtype == torch.bfloat16


def test_a_clip_without_prefix_or_projection_loads(folders, tmp_path):
    """CLIPVisionModel, which transformers 4 saves with a prefix and transformers 5 without."""
    place = released.copy(folders / "diffusers", tmp_path / "model")
    image = released.image_encoder()
    plain = CLIPVisionModel(image.config)
    own = {name: x for name, x in image.state_dict().items() if name.startswith("vision_model.")}
    bare = "vision_model.post_layernorm.bias" not in plain.state_dict()
    cut = "vision_model." if bare else ""
    plain.load_state_dict({name.removeprefix(cut): x for name, x in own.items()})
    plain.save_pretrained(place / "image_encoder")
    frame = torch.rand(1, 3, 32, 32)
    want = ImageEncoder(encoders.image_encoder(folders / "diffusers"))(frame)
    assert torch.equal(ImageEncoder(encoders.image_encoder(place))(frame), want)


# --- the released names mean what they mean in Wan's code -------------------------------------------------


def linear(w: dict, name: str, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def attention(q, k, v, heads: int, bias=0.0, scale: float = 1.0):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (q, k, v))
    weights = (scale * q @ k.transpose(-1, -2) + bias).softmax(-1)
    return (weights @ v).transpose(-3, -2).flatten(-2)


def bucket(distance: int) -> int:
    """Of 32 for relative positions both ways: exact to 8, then logarithmic to 128."""
    half, exact, far = (16 if distance > 0 else 0), 8, abs(distance)
    if far < exact:
        return half + far
    return half + min(15, exact + int(math.log(far / exact) / math.log(128 / exact) * (16 - exact)))


def umt5_by_released_names(w: dict, tokens, heads: int):
    """Wan's T5Encoder: every layer its own position bias, no scale, a gated tanh GELU."""
    def norm(name, x):
        return w[f"{name}.weight"] * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()

    x, count = w["token_embedding.weight"][tokens], len(tokens)
    buckets = torch.tensor([[bucket(key - query) for key in range(count)] for query in range(count)])
    for n in range(2):
        b, h = f"blocks.{n}.", norm(f"blocks.{n}.norm1", x)
        bias = w[f"{b}pos_embedding.embedding.weight"][buckets].permute(2, 0, 1)
        q, k, v = (linear(w, f"{b}attn.{p}", h) for p in "qkv")
        x = x + linear(w, f"{b}attn.o", attention(q, k, v, heads, bias))
        h = norm(f"{b}norm2", x)
        gated = linear(w, f"{b}ffn.fc1", h) * F.gelu(linear(w, f"{b}ffn.gate.0", h), approximate="tanh")
        x = x + linear(w, f"{b}ffn.fc2", gated)
    return norm("norm", x)


def clip_by_released_names(w: dict, pixels, heads: int, layers: int):
    """Wan's VisionTransformer, its first `layers` blocks."""
    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], w[f"visual.{name}.weight"], w[f"visual.{name}.bias"], 1e-5)

    patches = F.conv2d(pixels, w["visual.patch_embedding.weight"], stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([w["visual.cls_embedding"].expand(len(patches), 1, -1), patches], 1)
    x = norm("pre_norm", x + w["visual.pos_embedding"])
    for n in range(layers):
        b = f"transformer.{n}."
        q, k, v = linear(w, f"visual.{b}attn.to_qkv", norm(f"{b}norm1", x)).chunk(3, -1)
        scale = (q.shape[-1] // heads) ** -0.5
        x = x + linear(w, f"visual.{b}attn.proj", attention(q, k, v, heads, scale=scale))
        h = F.gelu(linear(w, f"visual.{b}mlp.0", norm(f"{b}norm2", x)))
        x = x + linear(w, f"visual.{b}mlp.2", h)
    return x


@torch.no_grad()
def test_umt5_computes_what_wans_code_does_with_the_released_names(folders):
    w = torch.load(folders / "original" / encoders.TEXT.file)
    tokens = torch.randint(len(released.WORDS), (300,), generator=torch.Generator().manual_seed(0))
    model = encoders.text_encoder(folders / "original", torch.float32)
    want = umt5_by_released_names(w, tokens, heads=4)
    assert torch.allclose(model(tokens[None]).last_hidden_state[0], want, atol=1e-4)


@torch.no_grad()
def test_clip_computes_what_wans_code_does_with_the_released_names(folders):
    w = torch.load(folders / "original" / encoders.IMAGE.file)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = encoders.image_encoder(folders / "original")
    got = model(pixels, output_hidden_states=True).hidden_states[-2]
    assert torch.allclose(got, clip_by_released_names(w, pixels, heads=2, layers=2), atol=1e-4)


# --- conditioning ----------------------------------------------------------------------------------------


def test_a_caption_is_cleaned():
    assert clean("  it's\n a   caf\u00c3\u00a9 ") == "it's a caf\u00e9"
    assert clean("<b> it&amp;#39;s") == "<b> it's"              # twice; next to a tag ftfy skips entities


def test_text_is_that_of_a_padded_and_masked_batch_with_zeros_after_it(folders):
    model, tokenizer = released.text_encoder(), released.tokenizer()
    encoder = TextEncoder(model, tokenizer)
    captions = ["a red ball rolls over the table", "a cat sleeps", ""]
    got = encoder(captions)
    assert got.shape == (3, 512, released.SIZES.text_dim)
    tokens = tokenizer(captions, padding="max_length", max_length=512, return_tensors="pt")
    with torch.no_grad():
        want = model(tokens.input_ids, tokens.attention_mask).last_hidden_state
    for i, count in enumerate((8, 4, 1)):                       # words, and the end of text
        assert (got[i, :count] - want[i, :count]).abs().max() < 1e-5
        assert not got[i, count:].any() and got[i, count - 1].any()
    assert torch.allclose(encoder(captions[1:2]), got[1:2], atol=1e-5)


def test_a_caption_longer_than_512_tokens_is_cut_with_its_end_kept(folders):
    assert TextEncoder(released.text_encoder(), released.tokenizer())(["ball " * 600]).shape[1] == 512


def test_the_image_is_the_whole_frame_squeezed_without_antialias():
    model = released.image_encoder()
    frame = torch.rand(2, 3, 48, 80, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    squeezed = F.interpolate(frame, (32, 32), mode="bicubic", antialias=False)
    with torch.no_grad():
        states = model((squeezed / 2 + 0.5 - mean) / std, output_hidden_states=True).hidden_states
    got = ImageEncoder(model)(frame)
    assert got.shape == (2, 17, 160) and len(states) == 4
    assert torch.allclose(got, states[2], atol=1e-5)


def test_latents_are_the_posteriors_mean_normalised():
    model = released.vae()
    pixels = torch.rand(1, 3, 5, 32, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        posterior = model.encode(pixels).latent_dist
    keys = "latents_mean", "latents_std"
    mean, std = (torch.tensor(model.config[key])[:, None, None, None] for key in keys)
    got = WanVae(model).encode(pixels)
    assert torch.allclose(got, (posterior.mean - mean) / std, atol=1e-5)
    decoded = model.decode(posterior.mean).sample.clamp(-1, 1)
    assert torch.allclose(WanVae(model).decode(got), decoded, atol=1e-4)


def test_the_condition_is_the_first_frame_then_mid_grey_and_a_mask_that_says_so(folders):
    codec = WanCodec(folders / "original", text_dtype=torch.float32)
    pixels = torch.rand(2, 3, 9, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x0, condition = codec.encode(pixels, ["a cat sleeps", "a red ball rolls"])
    assert torch.equal(x0, codec.vae.encode(pixels))
    assert condition.frames.shape == (2, 20, 3, 4, 4)
    mask, latent = condition.frames.split([4, 16], 1)
    assert mask[:, :, 0].eq(1).all() and mask[:, :, 1:].eq(0).all()
    grey = pixels.clone()
    grey[:, :, 1:] = 0
    assert torch.equal(latent, codec.vae.encode(grey))
    assert torch.equal(condition.image, codec.image_encoder(pixels[:, :, 0]))
    assert torch.allclose(condition.text, codec.text_encoder(["a cat sleeps", "a red ball rolls"]))
    assert torch.equal(codec.null_text, codec.text_encoder([""])[0])


def test_the_unconditional_text_can_be_a_negative_prompt(folders):
    codec = WanCodec(folders / "original", negative="a cat", text_dtype=torch.float32)
    assert torch.equal(codec.null_text, codec.text_encoder(["a cat"])[0])


def test_the_identity_tells_files_settings_and_versions_apart(folders, tmp_path):
    place = released.copy(folders / "original", tmp_path / "model")
    first = WanCodec(place).identity
    assert WanCodec(folders / "original").identity == first
    assert set(first["encoders"]) >= {"Wan2.1_VAE.pth", encoders.TEXT.file, encoders.IMAGE.file,
                                      "google/umt5-xxl/tokenizer.json"}
    assert WanCodec(place, negative="blurred").identity != first
    state = torch.load(place / "Wan2.1_VAE.pth")
    state["conv1.bias"] += 1
    torch.save(state, place / "Wan2.1_VAE.pth")
    assert WanCodec(place).identity != first


def test_the_familys_codec_is_the_folder_of_the_config(folders, tmp_path):
    family, base = WanFamily(), folders / "original"
    assert family.codec(Model(weights=str(base)), released.SIZES).folder == base
    assert family.codec(Model(weights="w.safetensors", codec=str(base)), released.SIZES).folder == base
    with pytest.raises(ValueError, match="model.codec is w.safetensors; want a folder with Wan's VAE"):
        family.codec(Model(weights="w.safetensors"), released.SIZES)


def test_a_freed_encoder_is_gone_and_loads_again(folders):
    codec = WanCodec(folders / "diffusers")
    first = codec.vae
    codec.free("vae")
    codec.free("vae")
    assert codec.vae is not first


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
def test_a_bad_file_is_named(layout, kind, damage, message, folders, tmp_path, capsys):
    place = released.copy(folders / layout, tmp_path / "model")
    damage(place / KINDS[kind].file)
    with pytest.raises(ValueError, match=message) as error:
        LOADERS[kind](place)
    assert "\n" not in str(error.value) and "this ran" not in capsys.readouterr().out


def test_a_vae_of_other_channels_or_another_class_is_named(folders, tmp_path):
    place = released.copy(folders / "diffusers", tmp_path / "model")
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


@pytest.mark.parametrize("shape", [(1, 3, 4, 16, 16), (1, 3, 5, 12, 16), (1, 1, 5, 16, 16), (3, 5, 16, 16)])
def test_pixels_of_an_impossible_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"WanVae: pixels are \(.*\); want \(B, 3, 4n\+1, 8h, 8w\)"):
        WanVae(released.vae()).encode(torch.zeros(shape))
