"""Corruptions of clips, for training the feature net and for testing metrics.

    corrupt(x, kind, strength, rng): x, result (B, 3, T, H, W) in [-1, 1]; strength 0 (none) to 1 (gross)

Blur, mosaic, freeze, ghost and shuffle are one matrix per clip along an axis: strength may differ per clip.
"""

import torch
from torch import Tensor

BLOCK_S, BLOCK_T = 8, 4     # the demo codec's blocks, at whose edges bad generators have seams


def corrupt(x_BCTHW: Tensor, kind: str, strength: float | Tensor, rng: torch.Generator) -> Tensor:
    """Returns corrupted clips.  strength: a number or (B,).  ValueError for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"corrupt: kind is {kind!r}; want one of {', '.join(KINDS)}")
    s = torch.as_tensor(strength, dtype=x_BCTHW.dtype).expand(len(x_BCTHW))
    damaged = KINDS[kind](x_BCTHW, s, rng).clamp(-1, 1)
    return torch.where((s == 0)[:, None, None, None, None], x_BCTHW, damaged)


def _blur(x, s, rng):
    """Gaussian in space, up to 2 pixels of standard deviation."""
    return _along(_along(x, _gaussian(x.shape[3], 2 * s), 3), _gaussian(x.shape[4], 2 * s), 4)


def _noise(x, s, rng):
    """White noise, up to 0.4 of standard deviation."""
    return x + 0.4 * _scale(s) * torch.randn(x.shape, generator=rng)


def _blocks(x, s, rng):
    """A random offset and two slopes per codec block and colour, up to 0.4."""
    B, C, T, H, W = x.shape
    t, h, w = (-(-n // b) for n, b in ((T, BLOCK_T), (H, BLOCK_S), (W, BLOCK_S)))
    slope = torch.linspace(-1, 1, BLOCK_S)
    level, up, across = torch.randn(3, B, C, t, h, 1, w, 1, generator=rng)
    pattern = level + up * slope[:, None, None] + across * slope
    pattern = pattern.reshape(B, C, t, h * BLOCK_S, w * BLOCK_S).repeat_interleave(BLOCK_T, 2)
    return x + 0.4 * _scale(s) * pattern[:, :, :T, :H, :W]


def _mosaic(x, s, rng):
    """Towards the mean of each 8x8 block."""
    mean = _along(_along(x, _block_mean(x.shape[3]), 3), _block_mean(x.shape[4]), 4)
    return torch.lerp(x, mean, _scale(s))


def _contrast(x, s, rng):
    """Scales contrast about the clip's mean colour by up to 2."""
    mean = x.mean((2, 3, 4), keepdim=True)
    return mean + (1 + _scale(s)) * (x - mean)


def _fade(x, s, rng):
    """Scales contrast about the clip's mean colour down to 1/2."""
    mean = x.mean((2, 3, 4), keepdim=True)
    return mean + (x - mean) / (1 + _scale(s))


def _freeze(x, s, rng):
    """Slows time by 1 - s; at s = 1 every frame is the first."""
    T = x.shape[2]
    at = (1 - s[:, None]) * torch.arange(T)
    return _along(x, (1 - (at[:, :, None] - torch.arange(T)).abs()).clamp(min=0), 2)


def _ghost(x, s, rng):
    """Gaussian in time, up to 2.5 frames of standard deviation."""
    return _along(x, _gaussian(x.shape[2], 2.5 * s), 2)


def _shuffle(x, s, rng):
    """Permutes frames by up to about 4 places."""
    T = x.shape[2]
    order = (torch.arange(T) + 4 * s[:, None] * torch.randn(len(x), T, generator=rng)).argsort(1)
    return _along(x, torch.nn.functional.one_hot(order, T).to(x.dtype), 2)


def _flicker(x, s, rng):
    """Random brightness per frame, up to 0.3 of standard deviation."""
    B, _, T, _, _ = x.shape
    return x + 0.3 * _scale(s) * torch.randn(B, 1, T, 1, 1, generator=rng)


KINDS = {"blur": _blur, "noise": _noise, "blocks": _blocks, "mosaic": _mosaic, "contrast": _contrast,
         "fade": _fade, "freeze": _freeze, "ghost": _ghost, "shuffle": _shuffle, "flicker": _flicker}


def _scale(s: Tensor) -> Tensor:
    return s[:, None, None, None, None]


def _along(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Applies a matrix (N, N) or (B, N, N) along one axis of x."""
    moved = x.movedim(axis, 1)
    return (matrix @ moved.flatten(2)).reshape(moved.shape).movedim(1, axis)


def _gaussian(N: int, sigma_B: Tensor) -> Tensor:
    """Returns Gaussian filter matrices (B, N, N) with row sums 1."""
    n = torch.arange(N)
    return torch.softmax(-((n[:, None] - n) / sigma_B.clamp(min=0.05)[:, None, None]) ** 2 / 2, -1)


def _block_mean(N: int) -> Tensor:
    block = torch.arange(N) // BLOCK_S
    same = (block[:, None] == block).float()
    return same / same.sum(1, keepdim=True)
