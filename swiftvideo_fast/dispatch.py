"""Where a function called with Duals goes: its rule, or torch's own forward mode.

A call is bound to torch's own schema before a rule sees it (`binding`); what does not fit goes to torch.
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
    carries,
    is_over,
    living,
    parts,
    primals,
    rebuilt,
    smooth,
    some,
)
from swiftvideo_fast.layout import alike, copied, like, shares

RULES: dict[Callable, tuple[Callable, binding.Takes]] = {}
NAMESPACES = (torch, Tensor, torch._C._nn, torch.nn.functional, torch.special, torch.linalg, torch.fft)


def named(*names: str | Callable) -> list[Callable]:
    """The functions of these names, wherever torch keeps them; a function stands for itself."""
    found = [f for n in names for f in ([n] if callable(n) else [getattr(s, n, None) for s in NAMESPACES])]
    return [f for f in found if callable(f)]


def spoken(function: Callable) -> Callable:
    """Dynamo does not enter Tensor.unflatten, which is written in Python; torch.unflatten does the same."""
    return torch.unflatten if function is Tensor.unflatten else function


def register(function: Callable, apply: Callable, takes: binding.Takes) -> None:
    binding.learn(function)
    RULES[function] = apply, takes


def rule(*names: str | Callable):
    """Register fn(*args, **kwargs) -> result, which gives value and tangent itself."""
    def decorate(fn):
        for function in named(*names):
            register(function, fn, binding.taken(fn, skip=0))
        return fn
    return decorate


def tangent(*names: str | Callable):
    """Register fn(y, *args, **kwargs) -> tangent of y, where y = function(*primals) is already there.

    fn runs under no_grad, and only where some argument carries a tangent.  None: exactly zero.
    Its parameters are torch's, in torch's order: the call is bound to torch's schema before fn sees it.
    """
    def decorate(fn):
        for function in named(*names):
            register(function, partial(by_rule, spoken(function), fn), binding.taken(fn, skip=1))
        return fn
    return decorate


def by_rule(function, tangent_of, *args, **kwargs):
    y = function(*primals(args), **primals(kwargs))
    if not carries((args, kwargs)):
        return y
    with torch.no_grad():
        t = tangent_of(y, *args, **kwargs)
        return y if t is None else join(y, t)


def join(y, t):
    """Pair a result with its tangent, which takes y's dtype, shape and layout."""
    if isinstance(y, tuple | list):
        return rebuilt(y, [join(a, b) for a, b in zip(y, t, strict=True)])
    return Dual(y, like(t, y)) if smooth(y) else y


# --- dispatch --------------------------------------------------------------------------------------------


def enter(func, args: tuple, kwargs: dict):
    """call by way of jvp's mode, if it runs: that knows of plain tensors a Dual was written into."""
    if torch.compiler.is_compiling() or not _len_torch_function_stack():
        return call(func, args, kwargs)
    return handle_torch_function(func, args, *args, **kwargs)


def call(func, args: tuple, kwargs: dict, types: tuple = ()):
    """func(*args, **kwargs) for arguments among which there are Duals."""
    if some(is_over, args) or kwargs and some(is_over, kwargs):
        args, kwargs = living(args), living(kwargs)
        if not some(_is_here, (args, kwargs)):
            return func(*args, **kwargs)
    if not torch.compiler.is_compiling():
        _refuse_inside_autograd_function(func)
    if isinstance(func, MethodWrapperType):
        return _attribute(func, args)
    if kwargs.get("out") is not None:
        raise NoTangent(f"{name_of(func)}: out= writes a value without its tangent; assign the result")
    if len(types) > 1 and any([_decides(kind) for kind in types]) and func not in DECIDES:
        return by_torch(func, args, kwargs)
    found = RULES.get(func)
    if found is None:
        return by_torch(func, args, kwargs)
    apply, takes = found
    if kwargs or len(args) > takes.most:
        bound = binding.bind(func, takes, args, kwargs)
        if bound is None:
            return by_torch(func, args, kwargs)
        args, kwargs = bound
    return apply(*args, **kwargs)


# functions whose rule knows tensor subclasses among its arguments
DECIDES: set[Callable] = set()


def _decides(kind: type) -> bool:
    """Is this a tensor subclass that answers torch's functions itself (a mask, a nested tensor)?"""
    answer = kind.__torch_function__
    return kind is not Dual and answer is not torch._C._disabled_torch_function_impl and \
        getattr(answer, "__func__", None) is not Tensor.__torch_function__.__func__


def _is_here(x: Dual) -> bool:
    return True


def _attribute(func: MethodWrapperType, args: tuple):
    """An attribute of a plain tensor that a Dual was written into, got or set."""
    name = func.__self__.__name__
    if func.__name__ == "__get__":
        return getattr(args[0], name)
    return setattr(args[0], name, *primals(args[1:]))


def name_of(func) -> str:
    if torch.compiler.is_compiling():                        # Dynamo knows no function's name
        return "a function in torch.compile"
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return str(func)
    name = getattr(func, "__qualname__", None) or getattr(func, "__name__", None) or str(func)
    return name.replace("_VariableFunctionsClass.", "torch.").replace("TensorBase.", "Tensor.")


def _refuse_inside_autograd_function(func) -> None:
    """Inside autograd.Function.forward torch's forward mode is off, and the primal leaves the tape."""
    if not torch._C._is_fwd_grad_enabled() and not torch.is_inference_mode_enabled():
        raise NoTangent(f"{name_of(func)}: inside an autograd.Function, which hides gradient and tangent "
                        "(reentrant checkpoint: pass use_reentrant=False; "
                        "ZeRO-3: set memory_efficient_linear to false)")


def by_torch(func, args: tuple, kwargs: dict):
    """Any function by torch's own forward mode: right, and slower than a rule."""
    if not torch.compiler.is_compiling() and writes_in_place(func):
        raise NoTangent(f"{name_of(func)}: no rule for this in-place write; use the out-of-place form")
    if not torch.compiler.is_compiling() and getattr(func, "__name__", "").rstrip("_") in DRAW:
        return by_forward_ad(func, args, kwargs)
    leaves, spec = tree_flatten((args, kwargs))
    moving = [i for i, x in enumerate(leaves) if isinstance(x, Dual) and x.tangent is not None]
    leaves, tangents = [parts(x)[0] for x in leaves], [leaves[i].tangent for i in moving]
    if not moving:
        return func(*primals(args), **primals(kwargs))
    seen = {}

    def moved(*values):
        filled = list(leaves)
        for i, value in zip(moving, values, strict=True):
            filled[i] = value
        filled_args, filled_kwargs = tree_unflatten(filled, spec)
        seen["results"], seen["spec"] = tree_flatten(func(*filled_args, **filled_kwargs))
        floats = tuple([y for y in seen["results"] if smooth(y)])
        if floats and all([fwd.unpack_dual(y).tangent is None for y in floats]):
            raise NoTangent(f"{name_of(func)}: torch's forward mode gives its result no tangent")
        constants = tuple([y for y in seen["results"] if isinstance(y, Tensor) and not smooth(y)])
        return floats or values[:1], constants

    try:
        values = tuple([leaves[i] for i in moving])
        ys, ts, constants = torch_jvp(moved, values, tuple(tangents), has_aux=True)
    except NoTangent:
        raise
    except Exception as error:
        func(*primals(args), **primals(kwargs))              # a wrong call raises in its own words
        raise NoTangent(f"{name_of(func)}: no rule here, and torch's forward mode fails: {error}") from error
    duals = iter([_own(y, t.detach(), values, tangents) for y, t in zip(ys, ts, strict=True)])
    constants = iter(constants)
    return tree_unflatten([next(duals) if smooth(y) else next(constants) if isinstance(y, Tensor) else y
                           for y in seen["results"]], seen["spec"])


def by_forward_ad(func, args: tuple, kwargs: dict):
    """By forward_ad itself: inside torch.func.jvp the draws on a transposed input come in another order."""
    with fwd.dual_level():
        def give(x):
            return fwd.make_dual(*parts(x)) if carries(x) else parts(x)[0]
        results, spec = tree_flatten(func(*tree_map(give, args), **tree_map(give, kwargs)))
        pairs = [fwd.unpack_dual(y) if smooth(y) else (y, None) for y in results]
    moving = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Dual) and x.tangent is not None]
    return tree_unflatten([y if t is None else _own(y, t.detach(), [x.p for x in moving],
                                                    [x.tangent for x in moving]) for y, t in pairs], spec)


def _own(y: Tensor, t: Tensor, inputs: tuple[Tensor, ...], tangents: list[Tensor]) -> Dual:
    """A view of an input has that view of its tangent; else a copy: torch's may be another's memory, or
    none."""
    with torch.no_grad():
        for p, tp in zip(inputs, tangents, strict=True):
            if torch.compiler.is_compiling() or not shares(y, p):
                continue
            if shares(t, tp):
                return Dual(y, t)
            if alike(tp, p) and y.dtype == p.dtype and not (y.is_conj() or y.is_neg()):
                begin = tp.storage_offset() + y.storage_offset() - p.storage_offset()
                # torch copied a tangent with gaps
                return Dual(y, tp.as_strided(y.shape, y.stride(), begin))
        return Dual(y, copied(t, y))


def writes_in_place(func) -> bool:
    """By torch's naming, or by the schema of a custom operator."""
    name = getattr(func, "__name__", "")
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return _mutates(func)
    return name.endswith("_") and not name.endswith("__") or name in IN_PLACE_OPERATORS


@cache
def _mutates(op) -> bool:
    overloads = [op] if isinstance(op, torch._ops.OpOverload) else [getattr(op, n) for n in op.overloads()]
    return any(o._schema.is_mutable and not any(a.kwarg_only and a.is_out for a in o._schema.arguments)
               for o in overloads)


DRAW = {"alpha_dropout", "feature_dropout", "feature_alpha_dropout", "rrelu", "dropout1d", "dropout2d",
        "dropout3d"}
IN_PLACE_OPERATORS = {
    f"__i{name}__" for name in "add sub mul truediv floordiv mod pow and or xor lshift rshift".split()}
