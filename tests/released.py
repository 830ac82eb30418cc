"""A tiny Wan with its encoders, saved in every released layout."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from swiftvideo_fast.models.wan import encoders, folder
from swiftvideo_fast.models.wan.names import CLIP, DIT, UMT5, VAE
from swiftvideo_fast.models.wan.network import Wan
from swiftvideo_fast.models.wan.sizes import WanConfig

SIDE = 32                                           # side of CLIP's image and of the clips
SIZES = WanConfig(dim=48, heads=2, layers=2, ffn_dim=80, text_dim=24, image_dim=160)
WORDS = "<pad> </s> <unk> a red ball rolls over the table cat sleeps & it's".split()
LAYOUTS = "original", "sharded", "videox", "diffusers", "comfyui"
TWELVE = {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": 48, "eps": 1e-6, "ffn_dim": 80,
          "freq_dim": 256, "in_dim": 36, "model_type": "i2v", "num_heads": 2, "num_layers": 2, "out_dim": 16,
          "text_len": 512}
VIDEOX = TWELVE | {"_class_name": "WanTransformer3DModel", "in_channels": 36, "hidden_size": 48}
DIFFUSERS = {"_class_name": "WanTransformer3DModel", "_diffusers_version": "0.42.1", "num_attention_heads": 2,
             "attention_head_dim": 24, "in_channels": 36, "out_channels": 16, "text_dim": 24, "freq_dim": 256,
             "ffn_dim": 80, "num_layers": 2, "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads",
             "eps": 1e-6, "image_dim": 160, "added_kv_proj_dim": 48, "rope_max_seq_len": 1024,
             "patch_size": [1, 2, 2], "pos_embed_seq_len": None}


def randomised(module: nn.Module, seed: int, std: float = 0.1) -> nn.Module:
    """Returns the network with all parameters moved off their initial values."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += std * torch.randn(p.shape, generator=rng)
    return module.eval()


def network() -> Wan:
    torch.manual_seed(0)
    return randomised(Wan(SIZES), 1)


def text_encoder() -> nn.Module:
    torch.manual_seed(0)
    return randomised(UMT5EncoderModel(UMT5Config(
        vocab_size=len(WORDS), d_model=SIZES.text_dim, d_kv=6, d_ff=32, num_layers=2, num_heads=4)), 2)


def image_encoder() -> nn.Module:
    torch.manual_seed(0)
    return randomised(CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=SIZES.image_dim, intermediate_size=64, projection_dim=12, num_hidden_layers=3,
        num_attention_heads=2, image_size=SIDE, patch_size=8, hidden_act="gelu")), 3)


def vae() -> nn.Module:
    torch.manual_seed(0)
    return randomised(AutoencoderKLWan(base_dim=8), 4, 0.02)


def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>",
                                   unk_token="<unk>", model_max_length=512)


def write(place: Path, layout: str, tensors: dict[str, Tensor] | None = None) -> Path:
    """Writes the network in one of LAYOUTS."""
    tensors = network().state_dict() if tensors is None else tensors
    place = place / "transformer" if layout == "diffusers" else place
    place.mkdir(parents=True)
    config = {"diffusers": DIFFUSERS, "videox": VIDEOX}.get(layout, TWELVE)
    (place / "config.json").write_text(json.dumps(config))
    if layout == "diffusers":
        tensors = {DIT.of(name): x for name, x in tensors.items()}
    if layout == "comfyui":
        tensors = {f"diffusion_model.{name}": x for name, x in tensors.items()}
    if layout != "sharded":
        save_file(tensors, place / folder.FILE)
        return place
    names = sorted(tensors)
    where = {name: f"diffusion_pytorch_model-0000{1 + i % 3}-of-00003.safetensors"
             for i, name in enumerate(names)}
    for shard in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == shard}, place / shard)
    (place / f"{folder.FILE}.index.json").write_text(json.dumps({"weight_map": where}))
    return place


def write_encoders(place: Path, layout: str) -> None:
    """Writes VAE, umT5 with its tokenizer, and CLIP, as .pth or as diffusers saves them."""
    if layout == "diffusers":
        vae().save_pretrained(place / "vae")
        text_encoder().save_pretrained(place / "text_encoder")
        image_encoder().save_pretrained(place / "image_encoder")
        tokenizer().save_pretrained(place / "tokenizer")
        return
    place.mkdir(exist_ok=True)
    torch.save({VAE.back(k): x for k, x in vae().state_dict().items()}, place / encoders.AUTOENCODER.file)
    text = {k: x for k, x in text_encoder().state_dict().items() if "embed_tokens" not in k}
    torch.save({UMT5.back(k): x for k, x in text.items()}, place / encoders.TEXT.file)
    torch.save(released_clip(image_encoder().state_dict()), place / encoders.IMAGE.file)
    tokenizer().save_pretrained(place / "google/umt5-xxl")


def released_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the released file's image encoder from transformers' tensors, and one text tensor."""
    found = {CLIP.back(k): x for k, x in tensors.items()}
    reshaped = {"visual.cls_embedding": lambda x: x[None, None], "visual.pos_embedding": lambda x: x[None],
                "visual.head": lambda x: x.T}
    released = {"log_scale": torch.zeros(()), "textual.norm.weight": torch.zeros(4)}
    for name, tensor in found.items():
        if ".attn.q." in name:
            parts = [found[name.replace(".attn.q.", f".attn.{p}.")] for p in "qkv"]
            released[name.replace(".attn.q.", ".attn.to_qkv.")] = torch.cat(parts)
        elif ".attn.k." not in name and ".attn.v." not in name:
            released[name] = reshaped.get(name, lambda x: x)(tensor).contiguous()
    return released


def picture(width: int = SIDE, height: int = SIDE) -> Image.Image:
    rng = torch.Generator().manual_seed(5)
    return Image.fromarray(torch.randint(256, (height, width, 3), generator=rng).byte().numpy())


def copy(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))
