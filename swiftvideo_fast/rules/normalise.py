"""Softmax and the norms, by torch's own forward formulas in torch's own order of operations.

    softmax      y' = y (x' - sum(e x') / sum e),  e = exp(x - max x)
    layer norm   n = (x - mean x) r,  r = 1 / sqrt(var x + eps):    n' = (x' - mean x') r + (x - mean x) r'
    RMS norm     n = x r,             r = 1 / sqrt(mean x^2 + eps): n' = x' r + x r'
A group norm is a layer norm of each group.
Networks in float64 have islands in float32 (softmax, norms, time embeddings): there the same order gives the
same bits, and the whole agrees with torch.func.jvp to float64.
"""

import math

import torch
from torch import Tensor

from swiftvideo_fast.dual import parts, tangent
from swiftvideo_fast.rules.elementwise import total


def _mean_under_softmax(x: Tensor, t: Tensor, dim: int) -> Tensor:
    e = (x - x.amax(dim, keepdim=True)).exp()
    return (e * t).sum(dim, keepdim=True) / e.sum(dim, keepdim=True)


@tangent("softmax")
def softmax(y, input, dim=None, *_, **__):
    x, t = (a.to(y.dtype) for a in parts(input))
    return y * (t - _mean_under_softmax(x, t, dim))


@tangent("log_softmax")
def log_softmax(y, input, dim=None, *_, **__):
    x, t = (a.to(y.dtype) for a in parts(input))
    return t - _mean_under_softmax(x, t, dim)


@tangent("layer_norm")
def layer_norm(y, input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    (x, tx), (w, tw), (_, tb) = parts(input), parts(weight), parts(bias)
    n, tn = _standardised(x.to(y.dtype), tx, normalized_shape, eps)
    return _affine(y, n, tn, w, tw, tb)


@tangent("group_norm")
def group_norm(y, input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    (x, tx), (w, tw), (_, tb) = parts(input), parts(weight), parts(bias)
    x, tx = _shaped((x.shape[0], num_groups, -1), x.to(y.dtype), tx)
    n, tn = _shaped(y.shape, *_standardised(x, tx, x.shape[2:], eps))
    return _affine(y, n, tn, *_shaped((-1, *[1] * (y.dim() - 2)), w, tw, tb))


def _shaped(shape, *tensors: Tensor | None) -> list[Tensor | None]:
    return [x if x is None else x.reshape(shape) for x in tensors]


def _standardised(x: Tensor, tx: Tensor | None, shape, eps: float) -> tuple[Tensor, Tensor | None]:
    """(n, n') over the last axes, which have this shape."""
    _, mean, r = torch.native_layer_norm(x, shape, None, None, eps)
    centred = x - mean
    if tx is None:
        return centred * r, None
    tx, dims = tx.to(x.dtype), _last(shape)
    centred_t = tx - tx.mean(dims, keepdim=True)
    tr = (-(r**3) * centred_t * centred).sum(dims, keepdim=True) / math.prod(shape)
    return centred * r, centred_t * r + centred * tr


@tangent("rms_norm")
def rms_norm(y, input, normalized_shape, weight=None, eps=None):
    (x, tx), (w, tw) = parts(input), parts(weight)
    dims, wide = _last(normalized_shape), torch.promote_types(x.dtype, torch.float32)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    x, tn = x.to(wide), None
    r = torch.rsqrt(x.pow(2).mean(dims, keepdim=True) + eps)
    if tx is not None:
        tx = tx.to(wide)
        tn = tx * r + x * (-(r**3) * (x * tx).mean(dims, keepdim=True))
    return _affine(y, x * r, tn, w, tw, None)


def _last(shape) -> list[int]:
    return [-1 - i for i in range(len(shape))]


def _affine(y, n, tn, w, tw, tb):
    """The tangent of n w + b."""
    terms = tn if tn is None or w is None else tn * w, None if tw is None else n * tw, tb
    return total(terms).expand(y.shape)
