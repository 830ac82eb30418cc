"""`jvp` and `functional_jvp`: wrap primals in Duals, call the function, return values and tangents."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_map, tree_unflatten

from swiftvideo_fast import dynamo, intercept
from swiftvideo_fast.dispatch import call, name_of, traceable, writes_in_place
from swiftvideo_fast.dual import (
    CURRENT,
    Dual,
    NoTangent,
    drop_expired,
    has_tangent,
    is_differentiable,
    parts,
    rebuild,
)
from swiftvideo_fast.layout import copy_as, zeros_as


def jvp(func: Callable, primals: tuple, tangents: tuple, *, strict: bool = False,
        has_aux: bool = False) -> tuple:
    """Returns (func(*primals), its derivative along tangents), as `torch.func.jvp`, with fused attention.

    primals, tangents: tuples of pytrees of one structure; tensors of equal shape, dtype and device.
    A tangent of None is exactly zero and costs nothing.  It may replace a subtree of any objects.
    has_aux: func returns (output, aux), jvp returns (output, tangent, aux).
    strict: an output independent of the primals raises; otherwise its tangent is zeros.

    The primal follows the ambient grad mode.  The tangent is never on the tape.
    Raises RuntimeError for mismatched structure, shape, dtype or device, ValueError for a tangent of an
    integer primal, NoTangent where a tangent would be lost.
    """
    if fwd._current_level >= 0 or CURRENT.level is not None:
        raise RuntimeError("jvp: inside another jvp, torch.func.jvp or forward_ad; want one level")
    if not isinstance(primals, tuple):
        raise RuntimeError(f"jvp: primals is a {type(primals).__name__}; want a tuple of arguments")
    seeds, spec = tree_flatten(tangents)
    try:
        leaves = spec.flatten_up_to(primals)
    except ValueError as error:
        raise RuntimeError(f"jvp: primals and tangents differ in structure: {error}; "
                           "want one tangent, or None, for each primal") from error
    if all([t is None for t in seeds]):
        raise RuntimeError("jvp: every tangent is None; want at least one tensor")
    with ForwardMode() as forward:
        inputs = [_seed(p, t, where, tangents) for where, (p, t) in enumerate(zip(leaves, seeds))]
        result, aux = func(*tree_unflatten(inputs, spec)), ()
        if has_aux:
            if not (isinstance(result, tuple) and len(result) == 2):
                raise RuntimeError(f"jvp: func returned a {type(result).__name__}; "
                                   "want a tuple (output, aux), as has_aux is set")
            result, aux = result[0], (tree_map(lambda x: parts(x)[0], result[1]),)
        leaves, spec = tree_flatten(result)
        leaves = leaves if torch.compiler.is_compiling() else [forward.dual(leaf) for leaf in leaves]
        pairs = [_output(leaf, strict) for leaf in leaves]
    return tree_unflatten([p for p, _ in pairs], spec), tree_unflatten([t for _, t in pairs], spec), *aux


def functional_jvp(func: Callable, inputs, v=None, create_graph: bool = False,
                   strict: bool = False) -> tuple:
    """Returns (func(*inputs), its derivative along v), as `torch.autograd.functional.jvp`.

    inputs, v: a tensor or a tuple of tensors of equal shapes; v None: ones, for a single one-element input.
    Neither result is on the tape.  Raises NoTangent for create_graph=True, RuntimeError for a missing v.
    """
    if create_graph:
        raise NoTangent("functional_jvp: create_graph=True; the tangent is never on the tape: want False")
    one = not isinstance(inputs, tuple)
    inputs = (inputs,) if one else inputs
    if v is None and not (len(inputs) == 1 and inputs[0].numel() == 1):
        raise RuntimeError("functional_jvp: v is None; want a vector, unless the input is one element")
    v = torch.ones_like(inputs[0]) if v is None else v
    with torch.no_grad():
        return jvp(func, inputs, v if isinstance(v, tuple) else (v,), strict=strict)


def _seed(p, t, where: int, tangents: tuple):
    """Returns the Dual of one primal and a copy of its tangent: the network may write to it in place."""
    if t is None:
        return p
    p, t = drop_expired(p), drop_expired(t)
    if not isinstance(p, Tensor) or not isinstance(t, Tensor):
        raise RuntimeError(f"jvp: primals{_path(where, tangents)} is a {type(p).__name__}, its tangent a "
                           f"{type(t).__name__}; want two tensors (or None for the tangent)")
    if not (p.is_floating_point() or p.is_complex()):
        path = _path(where, tangents)
        raise ValueError(f"jvp: primals{path} is {p.dtype}, which has no tangent; want None as "
                         f"tangents{path}, or a floating-point or complex primal (.to(torch.float32))")
    if (p.shape, p.dtype, p.device) != (t.shape, t.dtype, t.device):
        raise RuntimeError(f"jvp: tangents{_path(where, tangents)} is {tuple(t.shape)} {t.dtype} on "
                           f"{t.device}; its primal {tuple(p.shape)} {p.dtype} on {p.device}")
    with torch.no_grad():
        return Dual(p, copy_as(t, p))


def _path(where: int, tangents: tuple) -> str:
    """Returns the subscripts of one argument, such as `[0]['a']`."""
    return keystr(tree_flatten_with_path(tangents)[0][where][0])


def _output(x, strict: bool) -> tuple[Tensor, Tensor]:
    p, t = parts(x)
    if not isinstance(p, Tensor):
        raise RuntimeError(f"jvp: func returned a {type(p).__name__}; want tensors (has_aux is for the rest)")
    if t is None and strict:
        raise RuntimeError("jvp: an output does not depend on the primals with tangents; "
                           "want strict=False, for a tangent of zeros")
    return p, zeros_as(p) if t is None else t


class ForwardMode(TorchFunctionMode):
    """The active jvp call; a torch function mode that tracks Duals written into plain tensors.

    After `buffer[:, k] = x` with a Dual x, a shadow tensor holds the buffer's tangent.  Every view of the
    buffer, earlier or later, reads the shadow with its own strides.  A detached alias has no shadow, as in
    torch.
    """

    def __init__(self):
        super().__init__()
        self.shadows: dict[int, tuple[object, Tensor, torch.dtype]] = {}
        self.storages: set[int] = set()
        self.running, self.has_checkpoints, self.outer = False, False, None

    def __enter__(self):
        if torch.compiler.is_compiling():
            dynamo.prepare()
        else:
            dynamo.check_dispatch()
            dynamo.prepare_eager()
            intercept.begin()
        self.running, self.outer, CURRENT.level = True, CURRENT.level, self
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.running, CURRENT.level, self.outer = False, self.outer, None
        if not torch.compiler.is_compiling():
            intercept.end()
            if not self.has_checkpoints:
                self.shadows.clear()

    def resume(self):
        """Context that reactivates this jvp call: a checkpoint usually recomputes after it has ended."""
        return nullcontext() if CURRENT.level is self else self

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not torch.compiler.is_compiling():
            given = args
            if self.shadows:
                args, kwargs = self._with_shadows(args, func), self._with_shadows(kwargs, func)
            if args and _is_plain(args[0]) and _writes(func) and has_tangent((args[1:], kwargs)):
                args = (self._shadow_dual(args[0], func), *args[1:])
            # Python's own slots reject a Dual, with or without a tangent
            if Dual in types or args is not given and has_tangent((args, kwargs)):
                result = call(func, args, kwargs, types)
                same = isinstance(result, Dual) and given and result.p is given[0]
                return given[0] if same else result     # y.add_(x) returns y, even where y is a plain tensor
        if has_tangent((args, kwargs)):
            return call(func, args, kwargs, types)
        return traceable(func)(*args, **kwargs)

    def dual(self, x, func=None):
        """Returns x, or the Dual of a plain tensor that has a shadow."""
        if not self.shadows or not _is_plain(x):
            return x
        if _root(x)[0] in self.shadows:
            return self._shadow_dual(x, func)
        if not is_differentiable(x) and x.untyped_storage()._cdata in self.storages:
            raise NoTangent(f"{name_of(func)}: a buffer that holds a tangent, read as {x.dtype}")
        return x

    def _with_shadows(self, tree, func):
        if isinstance(tree, Dual):
            return tree
        if isinstance(tree, tuple | list) and not isinstance(tree, torch.Size):
            return rebuild(tree, [self._with_shadows(x, func) for x in tree])
        if isinstance(tree, dict):
            return {k: self._with_shadows(v, func) for k, v in tree.items()}
        return self.dual(tree, func)

    def _shadow_dual(self, x: Tensor, func) -> Dual:
        key, root = _root(x)
        if key not in self.shadows:
            bytes = torch.zeros(x.untyped_storage().nbytes(), dtype=torch.uint8, device=x.device)
            self.shadows[key] = root, bytes, _real(x.dtype)
            self.storages.add(x.untyped_storage()._cdata)
            self.__class__ = ShadowedMode
        _, bytes, real_dtype = self.shadows[key]
        if _real(x.dtype) != real_dtype:
            raise NoTangent(f"{name_of(func)}: a buffer of {real_dtype} that holds a tangent, read as "
                            f"{x.dtype}")
        with torch.no_grad():
            t = torch.empty(0, dtype=x.dtype, device=x.device)
            t.set_(bytes.untyped_storage(), x.storage_offset(), x.shape, x.stride())
            t = t.conj() if x.is_conj() else t
            return Dual(x, t._neg_view() if x.is_neg() else t)


class ShadowedMode(ForwardMode):
    """A jvp call after a plain tensor got a shadow.  Dynamo compiles none of its frames (`_patch_dynamo`).

    Dynamo guards on the types of active modes, so code compiled under ForwardMode is not reused here.
    """


def _is_plain(x) -> bool:
    """True for a strided Tensor or Parameter: not a Dual, not another subclass."""
    return type(x) in (Tensor, torch.nn.Parameter) and x.layout is torch.strided


def _root(x: Tensor) -> tuple[int, object]:
    """Returns (id, object to keep alive) shared by x and its views, but not by detached aliases."""
    if x.is_inference():                                # inference tensors have no _base
        storage = x.untyped_storage()
        return storage._cdata, storage
    root = x if x._base is None else x._base
    return root._cdata, root


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


def _writes(func) -> bool:
    return writes_in_place(func) or func is Tensor.__setitem__


dynamo.never_compile(*vars(Dual).values(), *vars(ForwardMode).values(), *jvp.__code__.co_consts)
