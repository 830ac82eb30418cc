"""Wan's codec: encodes pixels and captions to latents and conditions, decodes latents.

Each encoder is loaded on first use and kept until `free`; umT5 alone takes 11 GB.
"""

from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swiftvideo_fast.models.condition import Condition, first_frame_condition
from swiftvideo_fast.models.wan import encoders
from swiftvideo_fast.models.wan.image import ImageEncoder
from swiftvideo_fast.models.wan.text import TextEncoder
from swiftvideo_fast.models.wan.vae import LATENT, WanVae

PACKAGES = "diffusers", "transformers", "ftfy"


class WanCodec:
    """Implements models/family.py's Codec.  folder: a model folder with all three encoders, in either layout.

    device: None for the current GPU, or the CPU without one.  negative: text of the unconditional branch;
    VideoX-Fun trained it with the empty string.  text_dtype: dtype of umT5 (released as bf16); the VAE and
    CLIP run in fp32.
    """

    def __init__(self, folder: Path | str, device: torch.device | str | None = None, negative: str = "",
                 text_dtype: torch.dtype = torch.bfloat16):
        self.folder, self.negative, self.text_dtype = Path(folder), negative, text_dtype
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """File digests and versions.  Reads every encoder file once: 14 GB as released."""
        return {"encoders": encoders.digest(self.folder), "negative": self.negative,
                "text_dtype": str(self.text_dtype).removeprefix("torch.")} | {p: version(p) for p in PACKAGES}

    @cached_property
    def vae(self) -> WanVae:
        return WanVae(encoders.vae(self.folder, device=self.device))

    @cached_property
    def text_encoder(self) -> TextEncoder:
        return TextEncoder(encoders.text_encoder(self.folder, self.text_dtype, self.device),
                           encoders.tokenizer(self.folder))

    @cached_property
    def image_encoder(self) -> ImageEncoder:
        return ImageEncoder(encoders.image_encoder(self.folder, device=self.device))

    def free(self, part: str) -> None:
        """Frees "vae", "text_encoder" or "image_encoder"."""
        self.__dict__.pop(part, None)
        empty_cache()

    @cached_property
    def null_text(self) -> Tensor:
        """Embedding of the unconditional text, (L, E)."""
        return self.text_encoder([self.negative])[0].cpu()

    def encode(self, pixels_BCTHW: Tensor, captions: list[str]) -> tuple[Tensor, Condition]:
        """Returns (x0, first-frame condition) of clips (B, 3, T, H, W) in [-1, 1], on their device."""
        x0, frames, image = self.encode_pixels(pixels_BCTHW)
        condition = Condition(frames, self.encode_text(captions), self.null_text, image)
        return x0, condition.to(pixels_BCTHW.device)

    def encode_pixels(self, pixels_BCTHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, count = pixels_BCTHW[:, :, 0], pixels_BCTHW.shape[2]
        return self.vae.encode(pixels_BCTHW), self.frames(first, count), self.image_encoder(first)

    def encode_text(self, captions: list[str]) -> Tensor:
        return self.text_encoder(captions)

    def frames(self, first_BCHW: Tensor, count: int) -> Tensor:
        """Returns [mask 4 | masked video's latent 16], (B, 20, T, H, W), with the first frame known."""
        pixels = first_BCHW.new_zeros(*first_BCHW.shape[:2], count, *first_BCHW.shape[2:])
        pixels[:, :, 0] = first_BCHW
        return first_frame_condition(pixels, self.vae.encode, LATENT.stride_t)

    def decode(self, z_BCTHW: Tensor) -> Tensor:
        return self.vae.decode(z_BCTHW)

    def decode_window(self, z_BCTHW: Tensor, start: int, count: int) -> Tensor:
        return self.vae.decode_window(z_BCTHW, start, count)


def empty_cache() -> None:
    """Returns cached GPU memory to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
