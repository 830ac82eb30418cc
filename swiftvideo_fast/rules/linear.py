"""Functions linear in their tensors: the tangent takes the road of the primal.

A view of a Dual is a Dual of views, so that a write through one is seen through the other.
"""

from functools import partial
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import Tensor

from swiftvideo_fast.dual import (
    ATTRIBUTES,
    Dual,
    NoTangent,
    named,
    parts,
    primals,
    rule,
    smooth,
    spoken,
    tangent,
)

VIEWS = """
    view reshape view_as reshape_as expand expand_as broadcast_to flatten unflatten ravel squeeze unsqueeze
    permute transpose swapaxes swapdims movedim moveaxis t adjoint
    narrow select diagonal unbind split split_with_sizes chunk tensor_split hsplit vsplit dsplit
    real imag view_as_real view_as_complex conj resolve_conj resolve_neg positive __pos__ contiguous
    to type type_as float double half bfloat16 cfloat cdouble chalf cpu cuda __getitem__
"""
MAPS = """
    clone neg negative __neg__ sum mean nansum cumsum diff trace tril triu diag diag_embed diagflat
    roll flip flipud fliplr rot90 repeat tile repeat_interleave gather index_select take take_along_dim
    masked_select unsafe_split unsafe_chunk unsafe_split_with_sizes conj_physical deg2rad rad2deg
    pixel_shuffle pixel_unshuffle channel_shuffle im2col col2im fold interpolate
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    fft ifft fft2 ifft2 fftn ifftn rfft irfft rfft2 irfft2 rfftn irfftn hfft ihfft fftshift ifftshift
"""
SPREADS = "atleast_1d atleast_2d atleast_3d broadcast_tensors meshgrid"
JOINS = "cat concat concatenate stack hstack vstack dstack column_stack row_stack"


def _view(function, x, *args, **kwargs):
    args, kwargs = primals(args), primals(kwargs)
    if not isinstance(x, Dual):
        return function(x, *args, **kwargs)
    p = function(x.p, *args, **kwargs)
    with torch.no_grad():
        return _paired(p, function(_tangent_memory(x), *args, **kwargs))


def _tangent_memory(x) -> Tensor:
    """The tangent of x; a buffer gets one here, for its views must be able to receive tangents."""
    if not isinstance(x, Dual):
        return torch.zeros_like(x)
    if x.tangent is None:
        x.tangent = torch.zeros_like(x.p, requires_grad=False)
    return x.tangent


def _spread(function, *tensors, **kwargs):
    tensors = tensors[0] if isinstance(tensors[0], (tuple, list)) else tensors
    p = function(*primals(list(tensors)), **kwargs)
    with torch.no_grad():
        return _paired(p, function(*[_tangent_memory(x) for x in tensors], **kwargs))


def _paired(p, t):
    if isinstance(p, (tuple, list)):
        return type(p)([_paired(a, b) for a, b in zip(p, t, strict=True)])
    return Dual(p, t) if smooth(p) else p


def _map(function, y, x, *args, **kwargs):
    t = parts(x)[1]
    return None if t is None else function(t, *primals(args), **primals(kwargs))


def _join(function, y, tensors, *args, **kwargs):
    tangents = [torch.zeros_like(p) if t is None else t for p, t in map(parts, tensors)]
    return function(tangents, *args, **kwargs)


for _function in (*named(*VIEWS.split()), Tensor.unfold):
    rule(_function)(partial(_view, spoken(_function)))
for _function in (*named(*MAPS.split()), F.unfold):
    tangent(_function)(partial(_map, _function))
for _function in named(*SPREADS.split()):
    rule(_function)(partial(_spread, _function))
for _function in named(*JOINS.split()):
    tangent(_function)(partial(_join, _function))

ATTRIBUTES |= {name: partial(_view, attrgetter(name)) for name in ("T", "mT", "H", "mH", "real", "imag")}


@rule(Tensor.view)
def view(x, *shape, **kwargs):
    if any(isinstance(a, torch.dtype) and a != x.p.dtype for a in (*shape, *kwargs.values())):
        raise NoTangent("Tensor.view: the bits of a Dual read as another dtype carry no tangent")
    return _view(Tensor.view, x, *shape, **kwargs)


@rule("as_strided")
def as_strided(x, *args, **kwargs):
    p, t = parts(x)
    if t is not None and (p.stride(), p.storage_offset()) != (t.stride(), t.storage_offset()):
        raise NoTangent("as_strided: primal and tangent lie differently in memory; use a view by name")
    return _view(torch.as_strided, x, *args, **kwargs)


@tangent("where")
def where(y, condition, *sides, **named_sides):
    tangents = [parts(x)[1] for x in (*sides, *named_sides.values())]
    return torch.where(parts(condition)[0], *(0 if t is None else t for t in tangents))


@tangent(Tensor.where)
def where_method(y, x, condition, other):
    return where(y, condition, x, other)


@tangent("masked_fill")
def masked_fill(y, x, mask, value):
    (x, t), (_, tv) = parts(x), parts(value)
    return (torch.zeros_like(x) if t is None else t).masked_fill(mask, 0 if tv is None else tv)


@tangent("pad")
def pad(y, x, pad, mode="constant", value=None):
    return torch._C._nn.pad(x.tangent, pad, mode)


@tangent("constant_pad_nd")
def constant_pad_nd(y, x, pad, value=0):
    return torch.constant_pad_nd(x.tangent, pad)


@tangent(F.embedding)
def embedding(y, input, weight, *args, **kwargs):
    return F.embedding(input, weight.tangent, *args, **kwargs)


@rule("dropout")
def dropout(x, p=0.5, train=True, training=None):
    """The mask is drawn on ones, from the same random stream as torch's own."""
    train = train if training is None else training
    return x * torch.dropout(torch.ones_like(x.p, requires_grad=False), p, train) if train and p > 0 else x
