"""Functions linear in their tensors: the same function maps the tangent.

A view of a Dual is a Dual of views, so a write through one is visible through the other.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from swiftvideo_fast.dispatch import by_rule, by_torch, functions_named, rule, tangent, traceable
from swiftvideo_fast.dual import Dual, NoTangent, has_tangent, is_differentiable, parts, primals, rebuild
from swiftvideo_fast.layout import cast_as, copy_as, same_strides, shares_storage, zeros_as
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
LINEAR_MAPS = """
    clone pin_memory neg negative __neg__ sum mean nansum cumsum diff trace tril triu diag diag_embed diagflat
    roll flip flipud fliplr rot90 repeat tile repeat_interleave gather index_select take take_along_dim
    masked_select unsafe_split unsafe_chunk unsafe_split_with_sizes conj_physical deg2rad rad2deg
    pixel_shuffle pixel_unshuffle channel_shuffle im2col col2im fold interpolate
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    fft ifft fft2 ifft2 fftn ifftn rfft irfft rfft2 irfft2 rfftn irfftn hfft ihfft fftshift ifftshift
"""
MULTI_VIEWS = "atleast_1d atleast_2d atleast_3d broadcast_tensors meshgrid"
CONCATENATIONS = "cat concat concatenate stack hstack vstack dstack column_stack row_stack"


def _view(function, x, *args, **kwargs):
    args, kwargs = primals(args), primals(kwargs)
    if not isinstance(x, Dual):
        return function(x, *args, **kwargs)
    p = function(x.p, *args, **kwargs)
    if not torch.compiler.is_compiling() and p is x.p:
        return x
    with torch.no_grad():
        return _pair(p, function(_tangent_memory(x), *args, **kwargs))


def _copy_or_view(function, x, *args, **kwargs):
    """Makes the tangent a view or a copy of its input's tangent, whichever the primal is."""
    y = _view(function, x, *args, **kwargs)
    if not isinstance(y, Dual) or torch.compiler.is_compiling() or shares_storage(y.p, x.p):
        return y
    with torch.no_grad():
        match = copy_as if shares_storage(y.tangent, x.tangent) else cast_as
        return Dual(y.p, match(y.tangent, y.p))


def _tangent_memory(x) -> Tensor:
    """Returns x's tangent; allocates zeros for a buffer, whose views may be written with tangents."""
    if not isinstance(x, Dual):
        return torch.zeros_like(x)
    if x.tangent is None:
        x.tangent = zeros_as(x.p)
    return x.tangent


def _multi_view(function, *tensors, **kwargs):
    tensors = tensors[0] if isinstance(tensors[0], (tuple, list)) else tensors
    p = function(*primals(list(tensors)), **kwargs)
    with torch.no_grad():
        return _pair(p, function(*[_tangent_memory(x) for x in tensors], **kwargs))


def _pair(p, t):
    if isinstance(p, tuple | list):
        return rebuild(p, [_pair(a, b) for a, b in zip(p, t, strict=True)])
    return Dual(p, t) if is_differentiable(p) else p


def _linear_map(function, x, *args, **kwargs):
    """Linear in x alone: with a tangent in another argument (diff's prepend), falls back to torch."""
    if has_tangent(args) or kwargs and has_tangent(kwargs):
        return by_torch(function, (x, *args), kwargs)
    return by_rule(traceable(function), partial(_linear_tangent, function), x, *args, **kwargs)


def _linear_tangent(function, y, x, *args, **kwargs):
    return function(parts(x)[1], *primals(args), **primals(kwargs))


def _concatenate(function, y, tensors, *args, **kwargs):
    tangents = [torch.zeros_like(p) if t is None else t for p, t in map(parts, tensors)]
    return function(tangents, *args, **kwargs)


for _function in (*functions_named(*VIEWS.split()), Tensor.unfold):
    rule(_function)(partial(_view, traceable(_function)))
for _function in functions_named(*COPIES_OR_VIEWS.split()):
    rule(_function)(partial(_copy_or_view, _function))
for _function in (*functions_named(*LINEAR_MAPS.split()), F.unfold):
    rule(_function)(partial(_linear_map, _function))
for _function in functions_named(*MULTI_VIEWS.split()):
    rule(_function)(partial(_multi_view, _function))
for _function in functions_named(*CONCATENATIONS.split()):
    tangent(_function)(partial(_concatenate, _function))


def _attribute(name: str):
    return lambda x: getattr(x, name)


ATTRIBUTES |= {name: partial(_view, _attribute(name)) for name in ("T", "mT", "H", "mH", "real", "imag")}


@rule(Tensor.__deepcopy__)
def deepcopy(x, memo):
    return x.clone()


@rule(Tensor.view)
def view(x, *shape, **kwargs):
    if any(isinstance(a, torch.dtype) and a != parts(x)[0].dtype for a in (*shape, *kwargs.values())):
        raise NoTangent("Tensor.view: a Dual's bits reinterpreted as another dtype have no tangent")
    return _view(Tensor.view, x, *shape, **kwargs)


@rule("as_strided")
def as_strided(input, size, stride, storage_offset=None):
    """Applies as_strided to p and t; t has its own storage offset.  NoTangent where the strides differ."""
    p = input.p
    y = torch.as_strided(p, size, stride, storage_offset)
    with torch.no_grad():
        t = _tangent_memory(input)
        begin = t.storage_offset() + (0 if storage_offset is None else storage_offset - p.storage_offset())
        try:
            if not same_strides(t, p):
                raise RuntimeError("the primal overlaps itself")
            return Dual(y, torch.as_strided(t, size, stride, begin))
        except RuntimeError as error:
            raise NoTangent("as_strided: primal and tangent have different memory layouts; use a named "
                            f"view: {error}") from error


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
        raise NoTangent("embedding: max_norm writes into a weight that has a tangent")
    return F.embedding(input, parts(weight)[1])


@rule(torch.dropout)
def dropout(input, p, train):
    """Draws the mask on ones, from the same random stream as torch's own."""
    return input * torch.dropout(torch.ones_like(input.p, requires_grad=False), p,
        train) if train and p > 0 else input


@rule(F.dropout)
def functional_dropout(input, p=0.5, training=True, inplace=False):
    return torch.dropout(input, p, training)
