"""Codecs for tests of the data pipeline: the toy's, and Wan's three encoders at a tiny size."""

import functools
from pathlib import Path

import torch
from torch import Tensor

from swiftvideo_fast.models.condition import first_frame_condition
from swiftvideo_fast.models.toy.codec import PcaCodec
from swiftvideo_fast.models.toy.family import ToyCodec
from swiftvideo_fast.models.toy.words import WordVectors

SHIPPED = Path(__file__).parents[1] / "configs/demo/codec.safetensors"


class Toy(ToyCodec):
    """A toy codec that records the captions it encodes."""

    def __init__(self, dim: int = 8):
        super().__init__(PcaCodec.load(SHIPPED), WordVectors(dim), {"codec": "toy", "dim": dim})
        self.asked: list[str] = []

    def encode_text(self, captions: list[str]) -> Tensor:
        self.asked += captions
        return super().encode_text(captions)


class TinyWan:
    """Wan's encoders (diffusers', transformers' classes) with random weights and few channels."""

    def __init__(self, length: int = 32):
        from diffusers import AutoencoderKLWan
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, UMT5Config, UMT5EncoderModel

        torch.manual_seed(0)
        self.vae = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
        self.t5 = UMT5EncoderModel(UMT5Config(vocab_size=256, d_model=16, d_kv=8, d_ff=32, num_layers=1,
                                              num_heads=2)).eval()
        self.clip = CLIPVisionModelWithProjection(CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28,
            patch_size=14, projection_dim=16)).eval()
        self.length, self.identity = length, {"codec": "tiny wan", "length": length}
        self.null_text = self.encode_text([""])[0]

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def latent(x: Tensor) -> Tensor:
            return self.vae.encode(x).latent_dist.mode()

        first = torch.nn.functional.interpolate(pixels[:, :, 0], (28, 28), mode="bicubic")
        image = self.clip(first, output_hidden_states=True).hidden_states[-2]
        return latent(pixels), first_frame_condition(pixels, latent, 4), image

    @torch.no_grad()
    def encode_text(self, captions: list[str]) -> Tensor:
        text = torch.zeros(len(captions), self.length, 16)
        for row, caption in zip(text, captions):
            tokens = torch.tensor([[*caption.encode()[:self.length - 1], 1]])
            row[:tokens.shape[1]] = self.t5(tokens).last_hidden_state[0]
        return text


@functools.cache
def toy() -> Toy:
    return Toy()


@functools.cache
def tiny_wan() -> TinyWan:
    return TinyWan()
