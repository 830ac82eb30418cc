"""Dispatches torch functions called with Duals: to a registered rule, else to torch's own forward mode.

Calls are bound to torch's schema first (binding.py); a call that does not fit a rule goes to torch.
"""

from collections.abc import Callable
from functools import cache, partial
from types import MethodWrapperType

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor
from torch.func import jvp as torch_jvp
from torch.overrides import _len_torch_function_stack, handle_torch_function
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from swiftvideo_fast import binding
from swiftvideo_fast.dual import (
    Dual,
    NoTangent,
    any_dual,
    drop_expired,
    has_tangent,
    is_differentiable,
    is_expired,
    parts,
    primals,
    rebuild,
)
from swiftvideo_fast.layout import cast_as, copy_as, same_strides, shares_storage

RULES: dict[Callable, tuple[Callable, binding.RuleSignature]] = {}
NAMESPACES = (torch, Tensor, torch._C._nn, torch.nn.functional, torch.special, torch.linalg, torch.fft)


def functions_named(*names: str | Callable) -> list[Callable]:
    """Returns the functions with these names in any of NAMESPACES; a callable is returned as it is."""
    found = [f for n in names for f in ([n] if callable(n) else [getattr(s, n, None) for s in NAMESPACES])]
    return [f for f in found if callable(f)]


def traceable(function: Callable) -> Callable:
    """Returns an equivalent that Dynamo can trace (it cannot enter Tensor.unflatten, written in Python)."""
    return torch.unflatten if function is Tensor.unflatten else function


def register(function: Callable, apply: Callable, accepted: binding.RuleSignature) -> None:
    binding.load_signatures(function)
    RULES[function] = apply, accepted


def rule(*names: str | Callable):
    """Registers fn(*args, **kwargs) -> Dual or Tensor; fn computes value and tangent."""
    def decorate(fn):
        for function in functions_named(*names):
            register(function, fn, binding.signature_of(fn, skip=0))
        return fn
    return decorate


def tangent(*names: str | Callable):
    """Registers fn(y, *args, **kwargs) -> tangent of the value y = function(*primals); None: exactly zero.

    fn runs under no_grad and only if an argument has a tangent.  Its parameters have torch's names and order.
    """
    def decorate(fn):
        for function in functions_named(*names):
            register(function, partial(by_rule, traceable(function), fn), binding.signature_of(fn, skip=1))
        return fn
    return decorate


def by_rule(function, tangent_of, *args, **kwargs):
    y = function(*primals(args), **primals(kwargs))
    if not has_tangent((args, kwargs)):
        return y
    with torch.no_grad():
        t = tangent_of(y, *args, **kwargs)
        return y if t is None else make_duals(y, t)


def make_duals(y, t):
    """Returns Duals of the result y and its tangent t, cast to y's dtype, shape and layout."""
    if isinstance(y, tuple | list):
        return rebuild(y, [make_duals(a, b) for a, b in zip(y, t, strict=True)])
    return Dual(y, cast_as(t, y)) if is_differentiable(y) else y


# --- dispatch --------------------------------------------------------------------------------------------


def dispatch(func, args: tuple, kwargs: dict):
    """call(), through the active ForwardMode if any: it tracks plain tensors that a Dual was written into."""
    if torch.compiler.is_compiling() or not _len_torch_function_stack():
        return call(func, args, kwargs)
    return handle_torch_function(func, args, *args, **kwargs)


def call(func, args: tuple, kwargs: dict, types: tuple = ()):
    """Returns func(*args, **kwargs) where some arguments are Duals."""
    if any_dual(is_expired, args) or kwargs and any_dual(is_expired, kwargs):
        args, kwargs = drop_expired(args), drop_expired(kwargs)
        if not any_dual(_is_dual, (args, kwargs)):
            return func(*args, **kwargs)
    if not torch.compiler.is_compiling():
        _refuse_inside_autograd_function(func)
    if isinstance(func, MethodWrapperType):
        return _access_attribute(func, args)
    if kwargs.get("out") is not None:
        raise NoTangent(f"{name_of(func)}: out= writes a value without its tangent; assign the result")
    if len(types) > 1 and func not in SUBCLASS_AWARE and any([_overrides_dispatch(kind) for kind in types]):
        return by_torch(func, args, kwargs)
    registered = RULES.get(func)
    if registered is None:
        return by_torch(func, args, kwargs)
    apply, accepted = registered
    if kwargs or len(args) > accepted.most:
        bound = binding.bind(func, accepted, args, kwargs)
        if bound is None:
            return by_torch(func, args, kwargs)
        args, kwargs = bound
    return apply(*args, **kwargs)


# functions whose rule handles tensor subclasses among its arguments
SUBCLASS_AWARE: set[Callable] = set()


def _overrides_dispatch(kind: type) -> bool:
    """True for a tensor subclass with its own __torch_function__ (a mask, a nested tensor)."""
    handler = kind.__torch_function__
    return kind is not Dual and handler is not torch._C._disabled_torch_function_impl and \
        getattr(handler, "__func__", None) is not Tensor.__torch_function__.__func__


def _is_dual(x: Dual) -> bool:
    return True


def _access_attribute(func: MethodWrapperType, args: tuple):
    """Gets or sets an attribute of a plain tensor that a Dual was written into."""
    name = func.__self__.__name__
    if func.__name__ == "__get__":
        return getattr(args[0], name)
    return setattr(args[0], name, *primals(args[1:]))


def name_of(func) -> str:
    if torch.compiler.is_compiling():                        # Dynamo hides function names
        return "a function in torch.compile"
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return str(func)
    name = getattr(func, "__qualname__", None) or getattr(func, "__name__", None) or str(func)
    return name.replace("_VariableFunctionsClass.", "torch.").replace("TensorBase.", "Tensor.")


def _refuse_inside_autograd_function(func) -> None:
    """Raises inside autograd.Function.forward: torch disables forward mode there and the tape stops."""
    if not torch._C._is_fwd_grad_enabled() and not torch.is_inference_mode_enabled():
        raise NoTangent(f"{name_of(func)}: inside an autograd.Function, which hides gradient and tangent "
                        "(reentrant checkpoint: pass use_reentrant=False; "
                        "ZeRO-3: set memory_efficient_linear to false)")


def by_torch(func, args: tuple, kwargs: dict):
    """Evaluates any function by torch.func.jvp: correct, slower than a rule."""
    if not torch.compiler.is_compiling() and writes_in_place(func):
        raise NoTangent(f"{name_of(func)}: no rule for this in-place write; use the out-of-place form")
    if not torch.compiler.is_compiling() and getattr(func, "__name__", "").rstrip("_") in RANDOM_FUNCTIONS:
        return by_forward_ad(func, args, kwargs)
    leaves, spec = tree_flatten((args, kwargs))
    active = [i for i, x in enumerate(leaves) if isinstance(x, Dual) and x.tangent is not None]
    leaves, tangents = [parts(x)[0] for x in leaves], [leaves[i].tangent for i in active]
    if not active:
        return func(*primals(args), **primals(kwargs))
    captured = {}

    def run(*values):
        filled = list(leaves)
        for i, value in zip(active, values, strict=True):
            filled[i] = value
        filled_args, filled_kwargs = tree_unflatten(filled, spec)
        captured["results"], captured["spec"] = tree_flatten(func(*filled_args, **filled_kwargs))
        floats = tuple([y for y in captured["results"] if is_differentiable(y)])
        if floats and all([fwd.unpack_dual(y).tangent is None for y in floats]):
            raise NoTangent(f"{name_of(func)}: torch's forward mode gives its result no tangent")
        constants = tuple([y for y in captured["results"]
                           if isinstance(y, Tensor) and not is_differentiable(y)])
        return floats or values[:1], constants

    try:
        values = tuple([leaves[i] for i in active])
        ys, ts, constants = torch_jvp(run, values, tuple(tangents), has_aux=True)
    except NoTangent:
        raise
    except Exception as error:
        func(*primals(args), **primals(kwargs))              # an invalid call raises torch's own error
        raise NoTangent(f"{name_of(func)}: no rule here, and torch's forward mode fails: {error}") from error
    duals = iter([_result_dual(y, t.detach(), values, tangents) for y, t in zip(ys, ts, strict=True)])
    constants = iter(constants)
    return tree_unflatten([
        next(duals) if is_differentiable(y) else next(constants) if isinstance(y, Tensor) else y
        for y in captured["results"]], captured["spec"])


def by_forward_ad(func, args: tuple, kwargs: dict):
    """Evaluates by forward_ad: torch.func.jvp would draw in another order on a transposed input."""
    with fwd.dual_level():
        def give(x):
            return fwd.make_dual(*parts(x)) if has_tangent(x) else parts(x)[0]
        results, spec = tree_flatten(func(*tree_map(give, args), **tree_map(give, kwargs)))
        pairs = [fwd.unpack_dual(y) if is_differentiable(y) else (y, None) for y in results]
    active = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Dual) and x.tangent is not None]
    return tree_unflatten([y if t is None else _result_dual(y, t.detach(), [x.p for x in active],
                                                    [x.tangent for x in active]) for y, t in pairs], spec)


def _result_dual(y: Tensor, t: Tensor, inputs: tuple[Tensor, ...], tangents: list[Tensor]) -> Dual:
    """Returns Dual(y, t).  If y is a view of an input, t becomes the same view of its tangent; else a copy,
    because torch's t may alias another tensor or have no storage."""
    with torch.no_grad():
        for p, tp in zip(inputs, tangents, strict=True):
            if torch.compiler.is_compiling() or not shares_storage(y, p):
                continue
            if shares_storage(t, tp):
                return Dual(y, t)
            if same_strides(tp, p) and y.dtype == p.dtype and not (y.is_conj() or y.is_neg()):
                begin = tp.storage_offset() + y.storage_offset() - p.storage_offset()
                # torch made t contiguous: view the original tangent
                return Dual(y, tp.as_strided(y.shape, y.stride(), begin))
        return Dual(y, copy_as(t, y))


def writes_in_place(func) -> bool:
    """True for in-place functions: by torch's naming, or by a custom operator's schema."""
    name = getattr(func, "__name__", "")
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return _mutates(func)
    return name.endswith("_") and not name.endswith("__") or name in IN_PLACE_OPERATORS


@cache
def _mutates(op) -> bool:
    overloads = [op] if isinstance(op, torch._ops.OpOverload) else [getattr(op, n) for n in op.overloads()]
    return any(o._schema.is_mutable and not any(a.kwarg_only and a.is_out for a in o._schema.arguments)
               for o in overloads)


RANDOM_FUNCTIONS = {"alpha_dropout", "feature_dropout", "feature_alpha_dropout", "rrelu", "dropout1d",
                    "dropout2d", "dropout3d"}
IN_PLACE_OPERATORS = {
    f"__i{name}__" for name in "add sub mul truediv floordiv mod pow and or xor lshift rshift".split()}
