"""Wan's causal VAE, frozen: encode, decode, decode a window of frames.  Wraps diffusers' AutoencoderKLWan."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from swiftvideo_fast.models.family import Latent

LATENT = Latent(channels=16, stride_t=4, stride=8, patch=2)


class WanVae:
    """vae: an AutoencoderKLWan, frozen here.  Latents are (mu - mean) / std per channel.

    Results are on the input's device, which may differ from the VAE's.
    """

    def __init__(self, vae):
        if vae.config.z_dim != LATENT.channels:
            raise ValueError(f"WanVae: the VAE has {vae.config.z_dim} latent channels; want "
                             f"{LATENT.channels}: Wan 2.1's")
        self.vae = vae.eval().requires_grad_(False)
        self.mean, self.std = (torch.tensor(vae.config[key])[:, None, None, None]
                               for key in ("latents_mean", "latents_std"))

    @torch.no_grad()
    def encode(self, pixels_BCTHW: Tensor) -> Tensor:
        """Encodes (B, 3, 4n+1, 8h, 8w) in [-1, 1] to the normalised posterior mean (B, 16, n+1, h, w)."""
        _, C, T, H, W = pixels_BCTHW.shape if pixels_BCTHW.dim() == 5 else 5 * (0,)
        if C != 3 or T % LATENT.stride_t != 1 or H % LATENT.stride or W % LATENT.stride:
            raise ValueError(f"WanVae: pixels are {tuple(pixels_BCTHW.shape)}; want (B, 3, 4n+1, 8h, 8w)")
        mu = self.vae.encode(pixels_BCTHW.to(self.vae.device, self.vae.dtype)).latent_dist.mode().float()
        return ((mu - self.mean.to(mu)) / self.std.to(mu)).to(pixels_BCTHW.device)

    @torch.no_grad()
    def decode(self, z_BCTHW: Tensor) -> Tensor:
        """Decodes (B, 16, n+1, h, w) to (B, 3, 4n+1, 8h, 8w) in [-1, 1]."""
        return self.decode_window(z_BCTHW, 0, z_BCTHW.shape[2])

    def decode_window(self, z_BCTHW: Tensor, start: int, count: int) -> Tensor:
        """Returns the pixels of latent frames start to start + count - 1, equal to those of a full decode.

        Convolutions cache previous frames, so frames before the window are decoded first, without a graph:
        the gradient is with respect to the window's latents.  Intermediates are recomputed in the backward,
        frame by frame.
        """
        z = z_BCTHW[:, :, :start + count]
        z = (z * self.std.to(z) + self.mean.to(z)).to(self.vae.device, self.vae.dtype)
        z = self.vae.post_quant_conv(z)
        cache, frames = [None] * self.vae._cached_conv_counts["decoder"], []
        for i, frame in enumerate(z.split(1, 2)):
            if i < start:
                with torch.no_grad():
                    _, cache = self._step(frame, cache, first=i == 0)
            else:
                pixels, cache = checkpoint(self._step, frame, cache, i == 0, use_reentrant=False)
                frames.append(pixels)
        return torch.cat(frames, 2).clamp(-1, 1).to(z_BCTHW)

    def _step(self, frame: Tensor, cache: list, first: bool) -> tuple[Tensor, list]:
        """Returns (pixels, new cache of the convolutions), without changing the given cache."""
        cache = list(cache)
        return self.vae.decoder(frame, feat_cache=cache, feat_idx=[0], first_chunk=first), cache
