"""`jvp`: seed the Duals, call the network, take the pairs apart."""

from collections.abc import Callable

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor
from torch.nn.utils import _named_member_accessor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from swiftvideo_fast.dual import Dual, call, carries, parts, spoken, writes_in_place


def jvp(func: Callable, primals: tuple, tangents: tuple, *, strict: bool = False, has_aux: bool = False):
    """(func(*primals), its derivative along tangents): `torch.func.jvp`, for any network and any attention.

    primals and tangents are tuples of pytrees of the same structure.  A tangent of None means exactly zero
    and costs nothing; it may stand for a whole subtree, and the primal beside it may be anything at all. With
    has_aux, func returns (output, aux) and so does jvp: (output, tangent, aux). With strict, an output that
    does not depend on the primals is an error; else its tangent is zeros.

    The tangent is never on the tape.  The primal follows the ambient grad mode.
    Raises RuntimeError for structures, shapes, dtypes that do not match, NoTangent where a tangent would be
    lost.
    """
    modes = _get_current_function_mode_stack()
    if fwd._current_level >= 0 or any([isinstance(mode, Forward) for mode in modes]):
        raise RuntimeError("jvp: inside another jvp, torch.func.jvp or forward_ad; want one level")
    if not isinstance(primals, tuple):
        raise RuntimeError(f"jvp: primals is a {type(primals).__name__}; want a tuple of arguments")
    try:
        seeds, spec = tree_flatten(tangents)
        inputs = [_seeded(*pair, where) for where, pair in enumerate(zip(spec.flatten_up_to(primals), seeds))]
    except ValueError as error:
        raise RuntimeError("jvp: primals and tangents differ in structure") from error
    if not carries(inputs):
        raise RuntimeError("jvp: no primal has a tangent")
    with Forward() as forward:
        result, aux = func(*tree_unflatten(inputs, spec)), ()
    if has_aux:
        if not (isinstance(result, tuple) and len(result) == 2):
            raise RuntimeError("jvp: has_aux wants func to return a tuple (output, aux)")
        result, aux = result[0], (tree_map(lambda x: parts(x)[0], result[1]),)
    leaves, spec = tree_flatten(result)
    leaves = leaves if torch.compiler.is_compiling() else [forward.dual(leaf) for leaf in leaves]
    pairs = [_output(leaf, strict) for leaf in leaves]
    return tree_unflatten([p for p, _ in pairs], spec), tree_unflatten([t for _, t in pairs], spec), *aux


def _seeded(p, t, where: int):
    """The Dual of one primal and its tangent, copied: the network may write to it in place."""
    if t is None:
        return p
    if not isinstance(p, Tensor) or not isinstance(t, Tensor):
        raise RuntimeError(f"jvp: primal {where} is a {type(p).__name__}, its tangent a {type(t).__name__}; "
                           "want two tensors (or None for the tangent)")
    if not (p.is_floating_point() or p.is_complex()):
        raise ValueError(f"jvp: primal {where} is {p.dtype}; want floating point or complex")
    if (p.shape, p.dtype, p.device) != (t.shape, t.dtype, t.device):
        raise RuntimeError(f"jvp: tangent {where} is {tuple(t.shape)} {t.dtype} on {t.device}; "
                           f"its primal {tuple(p.shape)} {p.dtype} on {p.device}")
    with torch.no_grad():
        return Dual(p, torch.empty_like(p, requires_grad=False).copy_(t))


def _output(x, strict: bool) -> tuple[Tensor, Tensor]:
    p, t = parts(x)
    if not isinstance(p, Tensor):
        raise RuntimeError(f"jvp: func returned a {type(p).__name__}; want tensors (has_aux is for the rest)")
    if t is None and strict:
        raise RuntimeError("jvp: strict, and an output does not depend on the primals that have tangents")
    return p, torch.zeros_like(p, requires_grad=False) if t is None else t


def is_tensor(x) -> bool:
    """torch.is_tensor, which networks ask before they wrap a number in a tensor: a Dual is one."""
    return isinstance(x, Tensor | Dual)


def swap_tensor(module, name: str, tensor, allow_missing: bool = False):
    """functional_call puts parameters in place by this; a Dual may be one: a derivative along parameters."""
    home = module._parameters if name in module._parameters else module._buffers
    if not isinstance(tensor, Dual) or name not in home:
        return torch_swap_tensor(module, name, tensor, allow_missing)
    original, home[name] = home[name], tensor
    return original


torch.is_tensor = is_tensor
torch_swap_tensor, _named_member_accessor.swap_tensor = _named_member_accessor.swap_tensor, swap_tensor


class Forward(TorchFunctionMode):
    """What `__torch_function__` of a Dual alone cannot see, while jvp runs.

    A Dual written into a plain tensor (`buffer[:, k] = x`): from then on the storage of that tensor has a
    twin that holds its tangent, and every view of it, older or newer, reads the same strides of the twin.
    """

    def __init__(self):
        super().__init__()
        self.twins: dict[int, tuple[torch.UntypedStorage, Tensor]] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not torch.compiler.is_compiling():
            if self.twins:
                args, kwargs = self._with_twins(args), self._with_twins(kwargs)
            if args and type(args[0]) is Tensor and _writes(func) and carries((args[1:], kwargs)):
                args = (self._twin(args[0]), *args[1:])
            if Dual in types:                           # Python's own slots refuse one, tangent or not
                return call(func, args, kwargs)
        return call(func, args, kwargs) if carries((args, kwargs)) else spoken(func)(*args, **kwargs)

    def dual(self, x):
        """x, or the Dual of a plain tensor that has a twin."""
        if self.twins and type(x) is Tensor and x.untyped_storage()._cdata in self.twins:
            return self._twin(x)
        return x

    def _with_twins(self, tree):
        if type(tree) in (tuple, list):
            return type(tree)([self._with_twins(x) for x in tree])
        return {k: self._with_twins(v) for k, v in tree.items()} if type(tree) is dict else self.dual(tree)

    def _twin(self, x: Tensor) -> Dual:
        storage = x.untyped_storage()
        if storage._cdata not in self.twins:
            flat = torch.zeros(storage.nbytes() // x.element_size(), dtype=x.dtype, device=x.device)
            self.twins[storage._cdata] = storage, flat
        return Dual(x, self.twins[storage._cdata][1].as_strided(x.shape, x.stride(), x.storage_offset()))


def _writes(func) -> bool:
    return writes_in_place(func) or func is Tensor.__setitem__
