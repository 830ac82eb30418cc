"""Wan's causal VAE, decoded a window at a time: diffusers' AutoencoderKLWan, weights untouched."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class WanVae:
    """vae: an AutoencoderKLWan, frozen here.  Latents are (mu - mean) / std, channel by channel."""

    def __init__(self, vae):
        self.vae = vae.eval().requires_grad_(False)
        self.mean, self.std = (torch.tensor(vae.config[key])[:, None, None, None]
                               for key in ("latents_mean", "latents_std"))

    def decode_window(self, z_BCTHW: Tensor, start: int, count: int) -> Tensor:
        """The pixels in [-1, 1] of latent frames start to start + count, as a whole decode gives them.

        Every convolution remembers the frames before, so those from 0 are decoded first, without a graph: the
        gradient is that of the window's own latents.  A frame's intermediates are recomputed in the backward.
        """
        z = z_BCTHW[:, :, :start + count]
        z = self.vae.post_quant_conv(z * self.std.to(z) + self.mean.to(z))
        cache, frames = [None] * self.vae._cached_conv_counts["decoder"], []
        for i, frame in enumerate(z.split(1, 2)):
            if i < start:
                with torch.no_grad():
                    _, cache = self._step(frame, cache, first=i == 0)
            else:
                pixels, cache = checkpoint(self._step, frame, cache, i == 0, use_reentrant=False)
                frames.append(pixels)
        return torch.cat(frames, 2).clamp(-1, 1)

    def _step(self, frame: Tensor, cache: list, first: bool) -> tuple[Tensor, list]:
        """(pixels, what the convolutions now remember); the list that is given stays as it was."""
        cache = list(cache)
        return self.vae.decoder(frame, feat_cache=cache, feat_idx=[0], first_chunk=first), cache
