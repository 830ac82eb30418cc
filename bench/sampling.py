"""Seconds and peak memory of each part of sampling a full-size clip, with random weights.

    python -m bench sampling [--preset 1.3b] [--size 832x480] [--frames 61] [--json FILE]

The student takes 4 steps, the teacher 25 guided ones on the same condition.  Nothing is read from disk: the
times are arithmetic and weight initialisation.  Needs the extra `wan`.
"""

import json
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from bench.options import Parser, count, output, size
from swiftvideo_fast.models.wan import encoders
from swiftvideo_fast.models.wan.codec import WanCodec
from swiftvideo_fast.models.wan.image import ImageEncoder
from swiftvideo_fast.models.wan.network import Wan, cast
from swiftvideo_fast.models.wan.sizes import PRESETS, WanConfig
from swiftvideo_fast.models.wan.text import LENGTH, TextEncoder
from swiftvideo_fast.models.wan.vae import WanVae
from swiftvideo_fast.release import sample
from swiftvideo_fast.release.find import Sampling

STUDENT = Sampling(shift=3.0)


@dataclass(frozen=True)
class Sizes:
    """Model sizes.  text, image: configs of transformers; vae: arguments of AutoencoderKLWan."""

    network: WanConfig
    text: dict
    image: dict
    vae: dict


UMT5 = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
        "num_heads": 64}
CLIP = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
        "image_size": 224, "patch_size": 14, "hidden_act": "gelu", "projection_dim": 1024}
SIZES = {
    "1.3b": Sizes(PRESETS["1.3b"], UMT5, CLIP, {}),
    "14b": Sizes(PRESETS["14b"], UMT5, CLIP, {}),
    "tiny": Sizes(replace(PRESETS["tiny"], image_dim=32),
                  {"vocab_size": 8, "d_model": 32, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 4},
                  {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2,
                   "num_attention_heads": 2, "image_size": 32, "patch_size": 16, "projection_dim": 8},
                  {"base_dim": 8}),
}


class Words:
    """Tokenizer stub: every caption has the full length."""

    def __call__(self, captions: list[str], **_) -> "Words":
        self.input_ids = torch.ones(len(captions), LENGTH, dtype=torch.long)
        self.attention_mask = torch.ones_like(self.input_ids)
        return self

    def to(self, device: torch.device) -> "Words":
        self.input_ids, self.attention_mask = self.input_ids.to(device), self.attention_mask.to(device)
        return self


class RandomCodec(WanCodec):
    """WanCodec with random weights instead of a folder's."""

    def __init__(self, sizes: Sizes, device: torch.device):
        super().__init__("random", device)
        self.sizes = sizes

    @cached_property
    def vae(self) -> WanVae:
        with torch.device(self.device):
            return WanVae(encoders.wanted("diffusers").AutoencoderKLWan(**self.sizes.vae))

    @cached_property
    def text_encoder(self) -> TextEncoder:
        t = encoders.wanted()
        with torch.device("meta"):
            model = t.UMT5EncoderModel(t.UMT5Config(**self.sizes.text)).to(self.text_dtype)
        model.encoder.embed_tokens = model.shared               # 2.1 GB, once
        return TextEncoder(drawn(model, self.device), Words())

    @cached_property
    def image_encoder(self) -> ImageEncoder:
        t = encoders.wanted()
        with torch.device(self.device):
            model = t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(**self.sizes.image))
        return ImageEncoder(model.eval().requires_grad_(False))


def drawn(module: nn.Module, device: torch.device) -> nn.Module:
    """Materialises a meta module with random weights in its own dtypes, without an fp32 copy."""
    module = module.to_empty(device=device).eval().requires_grad_(False)
    for p in module.parameters():
        p.normal_(std=0.02)
    return module


def measure(sizes: Sizes, shape: sample.Shape, device: torch.device) -> dict[str, tuple[float, float]]:
    """Returns {part: (seconds, peak GB)}.  ValueError for a clip of wrong shape or non-finite values."""
    codec, costs = RandomCodec(sizes, device), sample.Costs(device)
    encoders.wanted()                                           # its import is not the text encoder's time

    def network() -> nn.Module:
        with torch.device("meta"):
            net = cast(Wan(sizes.network), torch.bfloat16)
        return drawn(net, device)

    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "first.png"
        Image.new("RGB", (shape.width, shape.height), (90, 120, 60)).save(image)
        given = sample.conditions([sample.Row(image, "a prompt", image)], shape, codec, costs)
    made = sample.latents(given, shape, STUDENT, network, costs)
    costs.parts[f"{STUDENT.steps} steps"] = costs.parts.pop("network")
    clip, = sample.decoded(made, codec, costs)
    sample.latents(given, shape, sample.TEACHER, network, costs)
    costs.parts[f"{sample.TEACHER.steps} guided"] = costs.parts.pop("network")
    if clip.shape != (3, shape.frames, shape.height, shape.width) or not clip.isfinite().all():
        raise ValueError(f"sampling: the clip is {tuple(clip.shape)}, finite: {bool(clip.isfinite().all())}")
    print(costs.table())
    return costs.parts


def main(argv: list[str]) -> int:
    parser = Parser("sampling", __doc__)
    parser.add_argument("--preset", choices=SIZES, default="1.3b")
    parser.add_argument("--size", type=size, default=(832, 480))
    parser.add_argument("--frames", type=count, default=61)
    parser.add_argument("--json", type=output, help="also write the figures there")
    args = parser.parse_args(argv)
    shape = parser.built(sample.Shape, args.frames, args.size[1], args.size[0])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, {args.preset}, {shape.frames} frames of {shape.width}x{shape.height}, bf16")
    parts = measure(SIZES[args.preset], shape, device)
    if args.json:
        record = {"device": name, "preset": args.preset, "size": args.size, "frames": args.frames,
                  "parts": parts}
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0
