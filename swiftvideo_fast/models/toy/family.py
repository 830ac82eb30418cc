"""The demo's model family: a small Wan, a PCA codec, one random vector per word."""

from typing import Any

from torch import Tensor

from swiftvideo_fast.config import Model
from swiftvideo_fast.config.strict import want
from swiftvideo_fast.models import weights
from swiftvideo_fast.models.condition import Condition, first_frame_condition
from swiftvideo_fast.models.toy.codec import STRIDE_T, PcaCodec
from swiftvideo_fast.models.toy.words import WordVectors
from swiftvideo_fast.models.wan.family import WanFamily
from swiftvideo_fast.models.wan.sizes import PRESETS, WanConfig


class ToyFamily(WanFamily):
    """WanFamily with ToyCodec."""

    name = "toy"
    presets = {"tiny": PRESETS["tiny"]}

    def codec(self, model: Model, sizes: WanConfig) -> "ToyCodec":
        want(bool(model.codec), "model.codec", model.codec, "the file of a PCA codec (`swiftvideo codec`)")
        want(sizes is not None, "model.weights", None, "the network's, or model.preset: its text_dim is the "
             "width of the word vectors")
        return ToyCodec(PcaCodec.load(model.codec), WordVectors(sizes.text_dim),
                        {"codec": weights.digest(model.codec)})


class ToyCodec:
    """family.Codec from a PCA and word vectors."""

    def __init__(self, pca: PcaCodec, text: WordVectors, identity: dict[str, Any]):
        self.pca, self.text, self.identity = pca, text, identity
        self.null_text = text([""])[0]
        self.decode, self.decode_window = pca.decode, pca.decode_window

    def encode(self, pixels_BCTHW: Tensor, captions: list[str]) -> tuple[Tensor, Condition]:
        x0, frames, image = self.encode_pixels(pixels_BCTHW)
        return x0, Condition(frames, self.encode_text(captions), self.null_text, image)

    def encode_pixels(self, pixels_BCTHW: Tensor) -> tuple[Tensor, Tensor, None]:
        frames = first_frame_condition(pixels_BCTHW, self.pca.encode, STRIDE_T)
        return self.pca.encode(pixels_BCTHW), frames, None

    def encode_text(self, captions: list[str]) -> Tensor:
        return self.text(captions)
