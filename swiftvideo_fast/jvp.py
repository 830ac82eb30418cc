"""`jvp`: seed the Duals, call the network, take the pairs apart."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_map, tree_unflatten

from swiftvideo_fast import dynamo, intercept
from swiftvideo_fast.dispatch import call, name_of, spoken, writes_in_place
from swiftvideo_fast.dual import HERE, Dual, NoTangent, carries, living, parts, rebuilt, smooth
from swiftvideo_fast.layout import alike, empty_as, overlaps, zeros_as


def jvp(func: Callable, primals: tuple, tangents: tuple, *, strict: bool = False,
        has_aux: bool = False) -> tuple:
    """(func(*primals), its derivative along tangents): `torch.func.jvp`, for any network and any attention.

    primals and tangents are tuples of pytrees of the same structure.  A tangent of None means exactly zero
    and costs nothing; it may stand for a whole subtree, and the primal beside it may be anything at all. With
    has_aux, func returns (output, aux) and so does jvp: (output, tangent, aux). With strict, an output that
    does not depend on the primals is an error; else its tangent is zeros.

    The tangent is never on the tape.  The primal follows the ambient grad mode.
    Raises RuntimeError for structures, shapes, dtypes that do not match, ValueError for an integer primal,
    NoTangent where a tangent would be lost.
    """
    if fwd._current_level >= 0 or HERE.level is not None:
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
        raise RuntimeError("jvp: no primal has a tangent")
    with Forward() as forward:
        inputs = [_seeded(p, t, where, tangents) for where, (p, t) in enumerate(zip(leaves, seeds))]
        result, aux = func(*tree_unflatten(inputs, spec)), ()
        if has_aux:
            if not (isinstance(result, tuple) and len(result) == 2):
                raise RuntimeError("jvp: has_aux wants func to return a tuple (output, aux)")
            result, aux = result[0], (tree_map(lambda x: parts(x)[0], result[1]),)
        leaves, spec = tree_flatten(result)
        leaves = leaves if torch.compiler.is_compiling() else [forward.dual(leaf) for leaf in leaves]
        pairs = [_output(leaf, strict) for leaf in leaves]
    return tree_unflatten([p for p, _ in pairs], spec), tree_unflatten([t for _, t in pairs], spec), *aux


def functional_jvp(func: Callable, inputs, v=None, create_graph: bool = False,
                   strict: bool = False) -> tuple:
    """(func(*inputs), its derivative along v): `torch.autograd.functional.jvp`.

    inputs and v are a tensor or a tuple of them; v may be missing for one input of one element.  Neither
    result is on the tape, so create_graph, which asks for a tangent with a gradient, is an error.
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


def _seeded(p, t, where: int, tangents: tuple):
    """The Dual of one primal and its tangent, copied: the network may write to it in place."""
    if t is None:
        return p
    p, t = living(p), living(t)
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
        return Dual(p, t.clone() if alike(t, p) and not overlaps(t) else empty_as(p).copy_(t))


def _path(where: int, tangents: tuple) -> str:
    """The subscripts of one argument, `[0]['a']`."""
    return keystr(tree_flatten_with_path(tangents)[0][where][0])


def _output(x, strict: bool) -> tuple[Tensor, Tensor]:
    p, t = parts(x)
    if not isinstance(p, Tensor):
        raise RuntimeError(f"jvp: func returned a {type(p).__name__}; want tensors (has_aux is for the rest)")
    if t is None and strict:
        raise RuntimeError("jvp: strict, and an output does not depend on the primals that have tangents")
    return p, zeros_as(p) if t is None else t


class Forward(TorchFunctionMode):
    """One jvp call, while it runs; and what `__torch_function__` of a Dual alone cannot see.

    A Dual written into a plain tensor (`buffer[:, k] = x`): from then on that tensor has a twin that holds
    its
    tangent, and every view of it, older or newer, reads the same strides of the twin.  A detached alias is
    another tensor, without a twin, as in torch.
    """

    def __init__(self):
        super().__init__()
        self.twins: dict[int, tuple[object, Tensor, torch.dtype]] = {}
        self.storages: set[int] = set()
        self.running, self.recomputed, self.outer = False, False, None

    def __enter__(self):
        if torch.compiler.is_compiling():
            dynamo.prepare()
        else:
            dynamo.check_dispatch()
            dynamo.prepare_eager()
            intercept.begin()
        self.running, self.outer, HERE.level = True, HERE.level, self
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.running, HERE.level, self.outer = False, self.outer, None
        if not torch.compiler.is_compiling():
            intercept.end()
            if not self.recomputed:
                self.twins.clear()

    def again(self):
        """Run more of this jvp call: what a checkpoint recomputes, most often after it."""
        return nullcontext() if HERE.level is self else self

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not torch.compiler.is_compiling():
            given = args
            if self.twins:
                args, kwargs = self._with_twins(args, func), self._with_twins(kwargs, func)
            if args and _is_plain(args[0]) and _writes(func) and carries((args[1:], kwargs)):
                args = (self._twin(args[0], func), *args[1:])
            # Python's own slots refuse a Dual, tangent or not
            if Dual in types or args is not given and carries((args, kwargs)):
                result = call(func, args, kwargs, types)
                same = isinstance(result, Dual) and given and result.p is given[0]
                return given[0] if same else result     # y.add_(x) is y, be it a plain tensor
        return call(func, args, kwargs, types) if carries((args, kwargs)) else spoken(func)(*args, **kwargs)

    def dual(self, x, func=None):
        """x, or the Dual of a plain tensor that has a twin."""
        if not self.twins or not _is_plain(x):
            return x
        if _root(x)[0] in self.twins:
            return self._twin(x, func)
        if not smooth(x) and x.untyped_storage()._cdata in self.storages:
            raise NoTangent(f"{name_of(func)}: a buffer that holds a tangent, read as {x.dtype}")
        return x

    def _with_twins(self, tree, func):
        if isinstance(tree, Dual):
            return tree
        if isinstance(tree, tuple | list) and not isinstance(tree, torch.Size):
            return rebuilt(tree, [self._with_twins(x, func) for x in tree])
        if isinstance(tree, dict):
            return {k: self._with_twins(v, func) for k, v in tree.items()}
        return self.dual(tree, func)

    def _twin(self, x: Tensor, func) -> Dual:
        key, root = _root(x)
        if key not in self.twins:
            bytes = torch.zeros(x.untyped_storage().nbytes(), dtype=torch.uint8, device=x.device)
            self.twins[key] = root, bytes, _real(x.dtype)
            self.storages.add(x.untyped_storage()._cdata)
        _, bytes, written = self.twins[key]
        if _real(x.dtype) != written:
            raise NoTangent(f"{name_of(func)}: a buffer of {written} that holds a tangent, read as {x.dtype}")
        with torch.no_grad():
            t = torch.empty(0, dtype=x.dtype, device=x.device)
            t.set_(bytes.untyped_storage(), x.storage_offset(), x.shape, x.stride())
            t = t.conj() if x.is_conj() else t
            return Dual(x, t._neg_view() if x.is_neg() else t)


def _is_plain(x) -> bool:
    """A tensor whose memory can be seen: no Dual, no subclass with an inside of its own, nothing sparse."""
    return type(x) in (Tensor, torch.nn.Parameter) and x.layout is torch.strided


def _root(x: Tensor) -> tuple[int, object]:
    """What x and all its views have in common, detached aliases apart: an id, and the thing to keep alive."""
    if x.is_inference():                                # no bases are kept there
        storage = x.untyped_storage()
        return storage._cdata, storage
    root = x if x._base is None else x._base
    return root._cdata, root


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


def _writes(func) -> bool:
    return writes_in_place(func) or func is Tensor.__setitem__


dynamo.leave_to_python(*vars(Dual).values(), *vars(Forward).values(), *jvp.__code__.co_consts)
