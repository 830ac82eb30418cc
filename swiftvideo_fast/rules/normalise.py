"""Softmax and normalisation layers, in torch's forward formulas and order of operations.

    softmax      y' = y (x' - sum(e x') / sum e),  e = exp(x - max x)
    layer norm   n = (x - mean x) r,  r = 1 / sqrt(var x + eps):    n' = (x' - mean x') r + (x - mean x) r'
    RMS norm     n = x r,             r = 1 / sqrt(mean x^2 + eps): n' = x' r + x r'
A group norm is a layer norm of each group.
float64 networks compute some parts in float32 (softmax, norms, time embeddings).  There the same order of
operations gives the same bits, so the whole network agrees with torch.func.jvp to float64.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from swiftvideo_fast.dispatch import tangent
from swiftvideo_fast.dual import parts
from swiftvideo_fast.rules.elementwise import copied, sum_terms


def _mean_under_softmax(x: Tensor, t: Tensor, dim: int) -> Tensor:
    if x.numel() == 0:
        return torch.zeros_like(t)
    e = (x - x.amax(dim, keepdim=True)).exp()
    return (e * t).sum(dim, keepdim=True) / e.sum(dim, keepdim=True)


@tangent(torch.softmax, Tensor.softmax, torch.special.softmax)
def softmax(y, input, dim, dtype=None):
    x, t = _to_compute_dtype(y, *parts(input))
    y = y if y.dtype == x.dtype else torch.softmax(x, dim)
    return y * (t - _mean_under_softmax(x, t, dim))


@tangent(torch.log_softmax, Tensor.log_softmax, torch.special.log_softmax)
def log_softmax(y, input, dim, dtype=None):
    x, t = _to_compute_dtype(y, *parts(input))
    return t - _mean_under_softmax(x, t, dim)


@tangent(F.softmax)
def functional_softmax(y, input, dim=None, _stacklevel=3, dtype=None):
    return softmax(y, input, _default_dim(dim, y))


@tangent(F.log_softmax)
def functional_log_softmax(y, input, dim=None, _stacklevel=3, dtype=None):
    return log_softmax(y, input, _default_dim(dim, y))


def _default_dim(dim: int | None, y: Tensor) -> int:
    """Returns dim, or torch's default if None."""
    return (0 if y.dim() in (0, 1, 3) else 1) if dim is None else dim


def _to_compute_dtype(y: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Returns the tensors in the dtype in which torch's kernels compute."""
    return [a.to(torch.promote_types(y.dtype, torch.float32)) for a in tensors]


@tangent("layer_norm")
def layer_norm(y, input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    (x, tx), (w, tw), (_, tb) = parts(input), parts(weight), parts(bias)
    n, tn = _standardised(*_to_compute_dtype(y, x), tx, normalized_shape, eps)
    return _affine(y, n, tn, w, tw, tb)


@tangent("group_norm")
def group_norm(y, input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    (x, tx), (w, tw), (_, tb) = parts(input), parts(weight), parts(bias)
    x, tx = _reshaped((x.shape[0], num_groups, -1), *_to_compute_dtype(y, x), tx)
    n, tn = _reshaped(y.shape, *_standardised(x, tx, x.shape[2:], eps))
    return _affine(y, n, tn, *_reshaped((-1, *[1] * (y.dim() - 2)), w, tw, tb))


def _reshaped(shape, *tensors: Tensor | None) -> list[Tensor | None]:
    return [x if x is None else x.reshape(shape) for x in tensors]


def _standardised(x: Tensor, tx: Tensor | None, shape, eps: float) -> tuple[Tensor, Tensor | None]:
    """Returns (n, n') normalised over the last axes, of the given shape."""
    _, mean, r = torch.native_layer_norm(x, shape, None, None, eps)
    centred = x - mean
    if tx is None:
        return centred * r, None
    tx, dims = tx.to(x.dtype), _last_axes(shape)
    centred_t = tx - tx.mean(dims, keepdim=True)
    tr = (-(r**3) * centred_t * centred).sum(dims, keepdim=True) / math.prod(shape)
    return centred * r, centred_t * r + centred * tr


@tangent("rms_norm")
def rms_norm(y, input, normalized_shape, weight=None, eps=None):
    (x, tx), (w, tw) = parts(input), parts(weight)
    dims, wide = _last_axes(normalized_shape), torch.promote_types(x.dtype, torch.float32)
    x, tn = x.to(wide), None
    r = torch.rsqrt(x.pow(2).mean(dims, keepdim=True) + (EPS[parts(input)[0].dtype] if eps is None else eps))
    if tx is not None:
        tx = tx.to(wide)
        tn = tx * r + x * (-(r**3) * (x * tx).mean(dims, keepdim=True))
    return _affine(y, x * r, tn, w, tw, None)


def _default_eps(dtype: torch.dtype) -> float:
    """Returns torch's default eps of rms_norm, found by probing: torch versions differ (eps of the storage or
    of the compute dtype)."""
    x = torch.full((1, 2), 1e-3, dtype=dtype)
    y = torch.rms_norm(x, (2,)).double()[0, 0]
    candidates = (torch.finfo(dtype).eps, torch.finfo(torch.promote_types(dtype, torch.float32)).eps)
    return min(candidates, key=lambda eps: abs(1e-3 / math.sqrt(1e-6 + eps) - y))


EPS = {dtype: _default_eps(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


def _last_axes(shape) -> list[int]:
    return [-1 - i for i in range(len(shape))]


def _affine(y, n, tn, w, tw, tb):
    """Returns the tangent of n w + b."""
    terms = tn if tn is None or w is None else tn * w, None if tw is None else n * tw
    return sum_terms((*terms, copied(tb))).expand(y.shape)
