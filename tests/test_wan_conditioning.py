"""Wan's conditioning: encoders equal Wan's code, and the codec's condition equals that of training."""

import math

import pytest
import released
import torch
import torch.nn.functional as F

from swiftvideo_fast.config import Model
from swiftvideo_fast.models.wan import encoders
from swiftvideo_fast.models.wan.codec import WanCodec
from swiftvideo_fast.models.wan.family import WanFamily
from swiftvideo_fast.models.wan.image import ImageEncoder
from swiftvideo_fast.models.wan.text import TextEncoder, clean
from swiftvideo_fast.models.wan.vae import WanVae

# --- the released names mean what they mean in Wan's code -------------------------------------------------


def linear(w: dict, name: str, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def attention(q, k, v, heads: int, bias=0.0, scale: float = 1.0):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (q, k, v))
    weights = (scale * q @ k.transpose(-1, -2) + bias).softmax(-1)
    return (weights @ v).transpose(-3, -2).flatten(-2)


def bucket(distance: int) -> int:
    """Returns the bucket, of 32, of a signed relative position: exact to 8, logarithmic to 128."""
    half, exact, far = (16 if distance > 0 else 0), 8, abs(distance)
    if far < exact:
        return half + far
    return half + min(15, exact + int(math.log(far / exact) / math.log(128 / exact) * (16 - exact)))


def umt5_by_released_names(w: dict, tokens, heads: int):
    """Wan's T5Encoder: a position bias per layer, no attention scale, gated tanh GELU."""
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
def test_umt5_computes_what_wans_code_does_with_the_released_names(encoder_folders):
    w = torch.load(encoder_folders / "original" / encoders.TEXT.file)
    tokens = torch.randint(len(released.WORDS), (300,), generator=torch.Generator().manual_seed(0))
    model = encoders.text_encoder(encoder_folders / "original", torch.float32)
    want = umt5_by_released_names(w, tokens, heads=4)
    assert torch.allclose(model(tokens[None]).last_hidden_state[0], want, atol=1e-4)


@torch.no_grad()
def test_clip_computes_what_wans_code_does_with_the_released_names(encoder_folders):
    w = torch.load(encoder_folders / "original" / encoders.IMAGE.file)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = encoders.image_encoder(encoder_folders / "original")
    got = model(pixels, output_hidden_states=True).hidden_states[-2]
    assert torch.allclose(got, clip_by_released_names(w, pixels, heads=2, layers=2), atol=1e-4)


# --- conditioning ----------------------------------------------------------------------------------------


def test_a_caption_is_cleaned():
    assert clean("  it's\n a   caf\u00c3\u00a9 ") == "it's a caf\u00e9"
    assert clean("<b> it&amp;#39;s") == "<b> it's"              # twice; next to a tag ftfy skips entities


def test_text_is_that_of_a_padded_and_masked_batch_with_zeros_after_it(encoder_folders):
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


def test_a_caption_longer_than_512_tokens_is_cut_with_its_end_kept(encoder_folders):
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


def test_the_condition_is_the_first_frame_then_mid_grey_and_a_mask_that_says_so(encoder_folders):
    codec = WanCodec(encoder_folders / "original", text_dtype=torch.float32)
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


def test_the_unconditional_text_can_be_a_negative_prompt(encoder_folders):
    codec = WanCodec(encoder_folders / "original", negative="a cat", text_dtype=torch.float32)
    assert torch.equal(codec.null_text, codec.text_encoder(["a cat"])[0])


def test_the_identity_tells_files_settings_and_versions_apart(encoder_folders, tmp_path):
    place = released.copy(encoder_folders / "original", tmp_path / "model")
    first = WanCodec(place).identity
    assert WanCodec(encoder_folders / "original").identity == first
    assert set(first["encoders"]) >= {"Wan2.1_VAE.pth", encoders.TEXT.file, encoders.IMAGE.file,
                                      "google/umt5-xxl/tokenizer.json"}
    assert WanCodec(place, negative="blurred").identity != first
    state = torch.load(place / "Wan2.1_VAE.pth")
    state["conv1.bias"] += 1
    torch.save(state, place / "Wan2.1_VAE.pth")
    assert WanCodec(place).identity != first


def test_the_familys_codec_is_the_folder_of_the_config(encoder_folders, tmp_path):
    family, base = WanFamily(), encoder_folders / "original"
    assert family.codec(Model(weights=str(base)), released.SIZES).folder == base
    assert family.codec(Model(weights="w.safetensors", codec=str(base)), released.SIZES).folder == base
    with pytest.raises(ValueError, match="model.codec is w.safetensors; want a folder with Wan's VAE"):
        family.codec(Model(weights="w.safetensors"), released.SIZES)


def test_a_freed_encoder_is_gone_and_loads_again(encoder_folders):
    codec = WanCodec(encoder_folders / "diffusers")
    first = codec.vae
    codec.free("vae")
    codec.free("vae")
    assert codec.vae is not first


@pytest.mark.parametrize("shape", [(1, 3, 4, 16, 16), (1, 3, 5, 12, 16), (1, 1, 5, 16, 16), (3, 5, 16, 16)])
def test_pixels_of_an_impossible_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"WanVae: pixels are \(.*\); want \(B, 3, 4n\+1, 8h, 8w\)"):
        WanVae(released.vae()).encode(torch.zeros(shape))
