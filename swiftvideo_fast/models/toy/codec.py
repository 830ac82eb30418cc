"""The demo's codec: a space-time PCA with Wan's strides, fitted in closed form.

    pixels (B, 3, 4n+1, 8h, 8w) in [-1, 1]  <->  latents (B, 16, n+1, h, w) of unit variance

Groups are the first frame, then four frames each, as in Wan's causal VAE.  Encoding projects each 8x8 block
on its leading principal components and whitens them.  Decoding is the least-squares linear map from the 3x3
neighbourhood of latents; unlike the PCA's inverse it hides block edges.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from swiftvideo_fast import sealed
from swiftvideo_fast.atomic import atomic_write
from swiftvideo_fast.models import weights

STRIDE_T, STRIDE_S, CHANNELS = 4, 8, 16
REACH = 3       # side of the neighbourhood of latents that a block is decoded from
PIXELS = {"first": 3 * STRIDE_S**2, "group": 3 * STRIDE_T * STRIDE_S**2}        # per block
LEAST = 1e-8    # minimum variance of a component for whitening: a hundredth of a grey level


class PcaCodec:
    """Two PCAs, one for the first frame and one for groups of four.

    tensors: for each kind in PIXELS: mean (P,), encode (P, 16), decode (9 * 16, P); P: a block's pixels.
    """

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors

    @classmethod
    def fit(cls, pixels_BCTHW: Tensor, ridge: float = 1e-3) -> "PcaCodec":
        """Fits the codec to clips (B, 3, T, H, W): eigenvectors of the block covariance, then ridge
        regression.

        ValueError when the clips have fewer than 16 components with variance.
        """
        tensors = {}
        for kind, part in _parts(pixels_BCTHW).items():
            blocks = _blocks(part)                                              # (B, t, h, w, P)
            flat = blocks.flatten(0, 3).double()
            mean = flat.mean(0)
            variance, axes = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
            if variance[-CHANNELS] < LEAST:
                raise ValueError(f"PcaCodec.fit: the blocks vary in {(variance >= LEAST).sum()} directions; "
                                 f"want {CHANNELS} or more: more clips, or clips with more in them")
            encode = axes[:, -CHANNELS:].flip(1) / variance[-CHANNELS:].flip(0).sqrt()
            around = _neighbourhood((blocks - mean.float()) @ encode.float()).flatten(0, 3).double()
            gram = around.T @ around / len(around)
            gram += ridge * torch.eye(len(gram), dtype=gram.dtype)
            decode = torch.linalg.solve(gram, around.T @ (flat - mean) / len(flat))
            tensors |= {f"{kind}.mean": mean.float(), f"{kind}.encode": encode.float().contiguous(),
                        f"{kind}.decode": decode.float().contiguous()}
        return cls(tensors)

    def encode(self, pixels_BCTHW: Tensor) -> Tensor:
        """Encodes (B, 3, 4n+1, 8h, 8w) to (B, 16, n+1, h, w).  ValueError for other shapes."""
        t = self.tensors
        z = [(_blocks(part) - t[f"{kind}.mean"]) @ t[f"{kind}.encode"]
             for kind, part in _parts(pixels_BCTHW).items()]
        return torch.cat(z, 1).permute(0, 4, 1, 2, 3).contiguous()

    def decode(self, z_BCTHW: Tensor) -> Tensor:
        """Decodes (B, 16, n+1, h, w) to (B, 3, 4n+1, 8h, 8w), clamped to [-1, 1].  Differentiable."""
        if z_BCTHW.dim() != 5 or z_BCTHW.shape[1] != CHANNELS or z_BCTHW.shape[2] < 2:
            raise ValueError(f"PcaCodec: latents are {tuple(z_BCTHW.shape)}; "
                             f"want (B, {CHANNELS}, n+1, h, w) with n > 0")
        return self.decode_window(z_BCTHW, 0, z_BCTHW.shape[2])

    def decode_window(self, z_BCTHW: Tensor, start: int, count: int) -> Tensor:
        """Returns the pixels of latent frames start to start + count - 1, equal to those of a full decode."""
        z, t = z_BCTHW[:, :, start:start + count].permute(0, 2, 3, 4, 1), self.tensors
        alone = 1 if start == 0 else 0
        pixels = [_unblocks(_neighbourhood(part) @ t[f"{kind}.decode"] + t[f"{kind}.mean"], frames)
                  for kind, part, frames in (("first", z[:, :alone], 1), ("group", z[:, alone:], STRIDE_T))
                  if part.shape[1]]
        return torch.cat(pixels, 2).clamp(-1, 1)

    def save(self, path: Path | str) -> None:
        """Writes the codec's file, atomically."""
        with atomic_write(path) as tmp:
            sealed.save(self.tensors, tmp, {})

    @classmethod
    def load(cls, path: Path | str) -> "PcaCodec":
        """Loads a codec's file; ValueError when it is missing, damaged or not a codec."""
        tensors, _ = weights.read(path, fix="restore it, or fit a codec with `swiftvideo codec`")
        around = CHANNELS * REACH**2
        want = {f"{kind}.{name}": shape for kind, P in PIXELS.items() for name, shape in
                {"mean": (P,), "encode": (P, CHANNELS), "decode": (around, P)}.items()}
        weights.check(weights.shapes(tensors), want, f"{path}, read as a PCA codec")
        return cls(tensors)


def _parts(pixels_BCTHW: Tensor) -> dict[str, Tensor]:
    _, C, T, H, W = pixels_BCTHW.shape if pixels_BCTHW.dim() == 5 else 5 * (0,)
    if C != 3 or T % STRIDE_T != 1 or T == 1 or H % STRIDE_S or W % STRIDE_S:
        raise ValueError(f"PcaCodec: pixels are {tuple(pixels_BCTHW.shape)}; want (B, 3, 4n+1, 8h, 8w)")
    return {"first": pixels_BCTHW[:, :, :1], "group": pixels_BCTHW[:, :, 1:]}


def _blocks(pixels_BCTHW: Tensor) -> Tensor:
    """Splits (B, 3, T, 8h, 8w) into blocks (B, t, h, w, P), of one frame when T = 1, else of four."""
    B, C, T, H, W = pixels_BCTHW.shape
    frames, s = (1 if T == 1 else STRIDE_T), STRIDE_S
    x = pixels_BCTHW.reshape(B, C, T // frames, frames, H // s, s, W // s, s)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def _unblocks(blocks: Tensor, frames: int) -> Tensor:
    B, t, h, w, _ = blocks.shape
    s = STRIDE_S
    x = blocks.reshape(B, t, h, w, 3, frames, s, s).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return x.reshape(B, 3, t * frames, h * s, w * s)


def _neighbourhood(z_BTHWC: Tensor) -> Tensor:
    """Returns the 3x3 neighbourhoods (B, t, h, w, 9 C) of (B, t, h, w, C), with replicated edges."""
    B, T, H, W, C = z_BTHWC.shape
    z = z_BTHWC.flatten(0, 1).permute(0, 3, 1, 2)
    z = F.unfold(F.pad(z, (REACH // 2,) * 4, mode="replicate"), REACH)          # (B t, C 9, h w)
    return z.transpose(1, 2).reshape(B, T, H, W, C * REACH * REACH)
