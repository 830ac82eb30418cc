"""Functions linear in their tensors: the tangent takes the road of the primal.

A view of a Dual is a Dual of views, so that a write through one is seen through the other.
"""

from functools import partial
from operator import attrgetter

import torch
from torch import Tensor

from swiftvideo_fast.dual import VIEW_ATTRIBUTES, Dual, NoTangent, named, parts, primals, rule, tangent

VIEWS = """
    view reshape view_as reshape_as expand expand_as broadcast_to flatten unflatten ravel squeeze unsqueeze
    permute transpose swapaxes swapdims movedim moveaxis t adjoint numpy_T matrix_H
    narrow select diagonal unbind split split_with_sizes chunk tensor_split hsplit vsplit dsplit unfold
    real imag view_as_real view_as_complex conj resolve_conj resolve_neg positive __pos__ contiguous
    to type type_as float double half bfloat16 cfloat cdouble chalf cpu cuda __getitem__
"""

MAPS = """
    clone neg negative __neg__ sum mean nansum cumsum diff trace tril triu diag diag_embed diagflat
    roll flip flipud fliplr rot90 repeat tile repeat_interleave gather index_select take take_along_dim
    masked_select unsafe_split unsafe_chunk unsafe_split_with_sizes conj_physical
    pixel_shuffle pixel_unshuffle channel_shuffle im2col col2im
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    _adaptive_avg_pool2d _adaptive_avg_pool3d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    fft ifft fft2 ifft2 fftn ifftn rfft irfft rfft2 irfft2 rfftn irfftn hfft ihfft fftshift ifftshift
    deg2rad rad2deg
"""


def _view(function, x, *args, **kwargs):
    args, kwargs = primals(args), {k: primals(v) for k, v in kwargs.items()}
    if not isinstance(x, Dual):
        return function(x, *args, **kwargs)
    if x.t is None:                       # a buffer: its views must be able to receive tangents
        x.t = torch.zeros_like(x.p)
    p = function(x.p, *args, **kwargs)
    with torch.no_grad():
        return _paired(p, function(x.t, *args, **kwargs))


def _paired(p, t):
    if isinstance(p, (tuple, list)):
        return type(p)([_paired(a, b) for a, b in zip(p, t, strict=True)])
    return Dual(p, t) if isinstance(p, Tensor) and (p.is_floating_point() or p.is_complex()) else p


for _function in named(*VIEWS.split()):
    rule(_function)(partial(_view, _function))

VIEW_ATTRIBUTES |= {name: partial(_view, attrgetter(name)) for name in ("T", "mT", "H", "mH", "real", "imag")}


@rule(Tensor.view)
def view(x, *shape, **kwargs):
    if any(isinstance(a, torch.dtype) for a in (*shape, *kwargs.values())):
        raise NoTangent("Tensor.view: the bits of a Dual read as another dtype carry no tangent")
    return _view(Tensor.view, x, *shape, **kwargs)


def _mapped(function, y, x, *args, **kwargs):
    t = parts(x)[1]
    return None if t is None else function(t, *primals(args), **{k: primals(v) for k, v in kwargs.items()})


for _function in named(*MAPS.split()):
    tangent(_function)(partial(_mapped, _function))


def _joined(function, y, tensors, *args, **kwargs):
    return function([torch.zeros_like(p) if t is None else t for p, t in map(parts, tensors)], *args, **kwargs)


for _function in named(*"cat concat concatenate stack hstack vstack dstack column_stack".split()):
    tangent(_function)(partial(_joined, _function))


@tangent("where")
def where(y, condition, input, other):
    tangents = [torch.zeros_like(y) if t is None else t for _, t in map(parts, (input, other))]
    return torch.where(condition, *tangents)


@rule(Tensor.where)
def where_method(x, condition, other):
    return torch.where(condition, x, other)


@tangent("masked_fill")
def masked_fill(y, x, mask, value):
    (x, t), (_, tv) = parts(x), parts(value)
    return (torch.zeros_like(x) if t is None else t).masked_fill(mask, 0 if tv is None else tv)


@tangent("pad")
def pad(y, x, pad, mode="constant", value=None):
    return torch._C._nn.pad(x.t, pad, mode)


@tangent("constant_pad_nd")
def constant_pad_nd(y, x, pad, value=0):
    return torch.constant_pad_nd(x.t, pad)


@tangent("embedding")
def embedding(y, weight, indices, *args, **kwargs):
    return torch.embedding(weight.t, indices)


@rule("dropout", "dropout_")
def dropout(x, p, train):
    """The mask is drawn on ones, from the same random stream as torch's own."""
    return x * torch.dropout(torch.ones_like(x.p, requires_grad=False), p, train) if train and p > 0 else x
