"""Functions linear in their tensors: the tangent takes the road of the primal.

A view of a Dual is a Dual of views, so that a write through one is seen through the other.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from swiftvideo_fast.dispatch import by_rule, by_torch, named, rule, spoken, tangent
from swiftvideo_fast.dual import Dual, NoTangent, carries, parts, primals, rebuilt, smooth
from swiftvideo_fast.layout import alike, copied, like, shares, zeros_as
from swiftvideo_fast.protocol import ATTRIBUTES

VIEWS = """
    view view_as expand expand_as broadcast_to unflatten squeeze unsqueeze
    permute transpose swapaxes swapdims movedim moveaxis t adjoint
    narrow select diagonal unbind split split_with_sizes chunk tensor_split hsplit vsplit dsplit
    real imag view_as_real view_as_complex conj positive __pos__ __getitem__
"""
COPIES_OR_VIEWS = """
    reshape reshape_as flatten ravel resolve_conj resolve_neg contiguous
    to type type_as float double half bfloat16 cfloat cdouble chalf cpu cuda
"""
MAPS = """
    clone pin_memory neg negative __neg__ sum mean nansum cumsum diff trace tril triu diag diag_embed diagflat
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
    if not torch.compiler.is_compiling() and p is x.p:
        return x
    with torch.no_grad():
        return _paired(p, function(_tangent_memory(x), *args, **kwargs))


def _copy_or_view(function, x, *args, **kwargs):
    """As the primal went, so must the tangent: a view of it or a copy."""
    y = _view(function, x, *args, **kwargs)
    if not isinstance(y, Dual) or torch.compiler.is_compiling() or shares(y.p, x.p):
        return y
    with torch.no_grad():
        return Dual(y.p, copied(y.tangent, y.p) if shares(y.tangent, x.tangent) else like(y.tangent, y.p))


def _tangent_memory(x) -> Tensor:
    """The tangent of x; a buffer gets one here, for its views must be able to receive tangents."""
    if not isinstance(x, Dual):
        return torch.zeros_like(x)
    if x.tangent is None:
        x.tangent = zeros_as(x.p)
    return x.tangent


def _spread(function, *tensors, **kwargs):
    tensors = tensors[0] if isinstance(tensors[0], (tuple, list)) else tensors
    p = function(*primals(list(tensors)), **kwargs)
    with torch.no_grad():
        return _paired(p, function(*[_tangent_memory(x) for x in tensors], **kwargs))


def _paired(p, t):
    if isinstance(p, tuple | list):
        return rebuilt(p, [_paired(a, b) for a, b in zip(p, t, strict=True)])
    return Dual(p, t) if smooth(p) else p


def _map(function, x, *args, **kwargs):
    """Linear in x alone: another argument that moves (prepend of diff) goes by torch."""
    if carries(args) or kwargs and carries(kwargs):
        return by_torch(function, (x, *args), kwargs)
    return by_rule(spoken(function), partial(_mapped, function), x, *args, **kwargs)


def _mapped(function, y, x, *args, **kwargs):
    return function(parts(x)[1], *primals(args), **primals(kwargs))


def _join(function, y, tensors, *args, **kwargs):
    tangents = [torch.zeros_like(p) if t is None else t for p, t in map(parts, tensors)]
    return function(tangents, *args, **kwargs)


for _function in (*named(*VIEWS.split()), Tensor.unfold):
    rule(_function)(partial(_view, spoken(_function)))
for _function in named(*COPIES_OR_VIEWS.split()):
    rule(_function)(partial(_copy_or_view, _function))
for _function in (*named(*MAPS.split()), F.unfold):
    rule(_function)(partial(_map, _function))
for _function in named(*SPREADS.split()):
    rule(_function)(partial(_spread, _function))
for _function in named(*JOINS.split()):
    tangent(_function)(partial(_join, _function))


def _attribute(name: str):
    return lambda x: getattr(x, name)


ATTRIBUTES |= {name: partial(_view, _attribute(name)) for name in ("T", "mT", "H", "mH", "real", "imag")}


@rule(Tensor.__deepcopy__)
def deepcopy(x, memo):
    return x.clone()


@rule(Tensor.view)
def view(x, *shape, **kwargs):
    if any(isinstance(a, torch.dtype) and a != parts(x)[0].dtype for a in (*shape, *kwargs.values())):
        raise NoTangent("Tensor.view: the bits of a Dual read as another dtype carry no tangent")
    return _view(Tensor.view, x, *shape, **kwargs)


@rule("as_strided")
def as_strided(input, size, stride, storage_offset=None):
    """The tangent's memory begins at its own offset, and holds no more than the tangent."""
    p = input.p
    y = torch.as_strided(p, size, stride, storage_offset)
    with torch.no_grad():
        t = _tangent_memory(input)
        begin = t.storage_offset() + (0 if storage_offset is None else storage_offset - p.storage_offset())
        try:
            if not alike(t, p):
                raise RuntimeError("the primal overlaps itself")
            return Dual(y, torch.as_strided(t, size, stride, begin))
        except RuntimeError as error:
            raise NoTangent(f"as_strided: primal and tangent lie differently in memory; use a view by name: "
                            f"{error}") from error


@tangent(torch.where)
def where(y, condition, input, other):
    (_, t), (_, to) = parts(input), parts(other)
    return torch.where(parts(condition)[0], 0 if t is None else t, 0 if to is None else to)


@tangent(Tensor.where)
def where_method(y, input, condition, other):
    return where(y, condition, input, other)


@tangent("masked_fill")
def masked_fill(y, input, mask, value):
    (x, t), (_, tv) = parts(input), parts(value)
    return (torch.zeros_like(x) if t is None else t).masked_fill(mask, 0 if tv is None else tv)


@tangent("pad")
def pad(y, input, pad, mode="constant", value=None):
    return torch._C._nn.pad(parts(input)[1], pad, mode)


@tangent("constant_pad_nd")
def constant_pad_nd(y, input, pad, value=0):
    return torch.constant_pad_nd(parts(input)[1], pad)


@tangent(F.embedding)
def embedding(y, input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False,
    sparse=False):
    if max_norm is not None:
        raise NoTangent("embedding: max_norm writes into a weight that moves")
    return F.embedding(input, parts(weight)[1])


@rule(torch.dropout)
def dropout(input, p, train):
    """The mask is drawn on ones, from the same random stream as torch's own."""
    return input * torch.dropout(torch.ones_like(input.p, requires_grad=False), p,
        train) if train and p > 0 else input


@rule(F.dropout)
def functional_dropout(input, p=0.5, training=True, inplace=False):
    return torch.dropout(input, p, training)
