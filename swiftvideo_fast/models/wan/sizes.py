"""Sizes of the Wan transformer: its config, the presets, and the activation memory of a pass."""

from dataclasses import dataclass


@dataclass(frozen=True)
class WanConfig:
    """Network sizes.  latent: channels of the codec; condition: 4 mask channels + the masked video's latent.

    time_scale: model time is time_scale * t, t in [0, 1]: 1000 for Wan.  A network trained for minutes needs
    about 10: with 1000 its time derivative explodes.
    image_dim: width of the image encoder's tokens, None for a network without image cross-attention.
    second_time: whether it is a flow map u(x_t, t, s); published checkpoints are not (`add_second_time`).
    """

    dim: int
    heads: int
    layers: int
    ffn_dim: int
    text_dim: int
    image_dim: int | None = None
    latent: int = 16
    condition: int = 20
    freq_dim: int = 256
    time_scale: float = 1000.0
    eps: float = 1e-6
    second_time: bool = False

    def __post_init__(self):
        for name in ("dim", "heads", "layers", "ffn_dim", "text_dim", "latent", "condition", "freq_dim"):
            size = getattr(self, name)
            if type(size) is not int or not 0 <= size <= MOST or not size and name in ("dim", "heads"):
                raise ValueError(f"WanConfig: {name} is {size!r}; want a whole number up to {MOST:,}")
        if self.dim % self.heads or self.dim // self.heads % 2:
            raise ValueError(f"WanConfig: dim {self.dim} over {self.heads} heads is not an even head width")


MOST = 100_000      # the largest accepted size: above any network's, still buildable on meta
PRESETS = {
    "tiny": WanConfig(dim=160, heads=5, layers=4, ffn_dim=640, text_dim=32, freq_dim=64, time_scale=10.0),
    "1.3b": WanConfig(dim=1536, heads=12, layers=30, ffn_dim=8960, text_dim=4096, image_dim=1280),
    "14b": WanConfig(dim=5120, heads=40, layers=40, ffn_dim=13824, text_dim=4096, image_dim=1280),
}
PATCH = 2           # patches are (1, 2, 2)
THETA = 10000.0     # base of the rotary and of the time frequencies
BLOCK = 21          # planes of a recomputed block, plus three of the MLP's width (39 at 1.3B, 29 at 14B)
KEPT, LAST = 19, 11     # planes of a kept block, plus two of the MLP's width; planes outside blocks


def activations(sizes: WanConfig, tokens: int, recompute: str, stored: int) -> int:
    """Returns the activation bytes of a pass with backward; `python -m bench memory` counts the planes of
    tokens x dim.  tokens: of all clips.  recompute: as in Wan.  stored: bytes per element."""
    plane, wide = tokens * sizes.dim * stored, sizes.ffn_dim / sizes.dim
    attention = plane + 4 * tokens * sizes.heads                                    # o and lse
    if recompute == "nothing":
        return int(plane * (sizes.layers * (KEPT + 2 * wide) + LAST))
    kept = (sizes.layers - 1) * attention if recompute == "blocks but attention" else 0
    return int(plane * (sizes.layers + BLOCK + 3 * wide) + kept)
