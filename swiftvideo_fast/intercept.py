"""Replaces Python functions that bypass torch's dispatch, only while a jvp call is active."""

import inspect
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FunctionType

from torch._functorch import apis
from torch.autograd import Function
from torch.utils import checkpoint
from torch.utils._pytree import register_pytree_node, tree_map

from swiftvideo_fast.dispatch import by_forward_ad
from swiftvideo_fast.dual import CURRENT, Dual, any_dual, has_tangent
from swiftvideo_fast.layout import zeros_as
from swiftvideo_fast.rules.flash import FUNCTIONS, MODULES, flash

CHECKPOINT = "_checkpoint_without_reentrant_generator"
if hasattr(checkpoint, f"{CHECKPOINT}_impl"):                      # torch 2.14
    CHECKPOINT = f"{CHECKPOINT}_impl"
LOCK = threading.Lock()
running = 0
undo: list[Callable] = []
ORIGINALS: dict[str, Callable] = {}


def begin() -> None:
    """Counts an active jvp call (any thread); the first installs the replacements."""
    global running
    with LOCK:
        running += 1
        if running == 1:
            _replace(checkpoint, CHECKPOINT, _checkpointed)
            _replace(apis, "vmap_impl", _vmapped)
            apply = Function.__dict__["apply"]         # a classmethod, from torch 2.14 on one written in C
            Function.apply = classmethod(partial(_applied, apply))
            undo.append(lambda: setattr(Function, "apply", apply))
            for module in [sys.modules[m] for m in MODULES if m in sys.modules]:
                for name in [n for n in FUNCTIONS if hasattr(module, n)]:
                    _redirect_flash(module, name)


def end() -> None:
    """Counts the end of a jvp call; the last restores the originals."""
    global running
    with LOCK:
        running -= 1
        while running == 0 and undo:
            undo.pop()()


def _replace(module, name: str, around: Callable) -> None:
    original = getattr(module, name)
    setattr(module, name, lambda *args, **kwargs: around(original, *args, **kwargs))
    undo.append(lambda: setattr(module, name, original))


# --- non-reentrant checkpoints ---------------------------------------------------------------------------


def _checkpointed(original, function, *settings_and_args, **kwargs):
    """Runs the recomputation, which happens in backward after the jvp call has ended, under that call again.

    Dual arguments are kept by reference; their versions are checked as torch checks saved tensors.
    """
    forward = CURRENT.level
    if forward is None:
        return original(function, *settings_and_args, **kwargs)
    forward.has_checkpoints, duals = True, []
    any_dual(lambda x: duals.append((x.p, x.p._version)), [settings_and_args, kwargs])

    def recompute(*args, **kwargs):
        if any(p._version != version for p, version in duals):
            raise RuntimeError("checkpoint: an argument was modified in place before its recomputation")
        with forward.resume():
            return function(*args, **kwargs)
    return original(recompute, *settings_and_args, **kwargs)


# --- autograd functions with a derivative of their own ---------------------------------------------------


def _applied(apply, cls, *args, **kwargs):
    """Functions that define jvp go to torch's forward mode; others raise at the first Dual they read."""
    original = apply.__get__(None, cls)
    if CURRENT.level is None or cls.jvp == Function.jvp or not has_tangent((args, kwargs)):
        return original(*args, **kwargs)
    return by_forward_ad(original, args, kwargs)


# --- vmap ------------------------------------------------------------------------------------------------


class Pair:
    """A Dual inside vmap: a pytree node with leaves (p, t)."""

    def __init__(self, p, t):
        self.p, self.t = p, t


register_pytree_node(Pair, lambda pair: ([pair.p, pair.t], None), lambda leaves, _: Pair(*leaves))


def _paired(tree):
    return tree_map(lambda x: Pair(x.p, zeros_as(x.p) if x.tangent is None else x.tangent)
                    if isinstance(x, Dual) else x, tree)


def _unpaired(tree):
    return tree_map(lambda x: Dual(x.p, x.t) if isinstance(x, Pair) else x, tree,
                    is_leaf=lambda x: isinstance(x, Pair))


def _vmapped(original, function, *settings, **kwargs):
    """vmap over value and tangent together, inside the active jvp call."""
    in_dims, out_dims, randomness, chunk_size, args = *settings[:4], settings[4:]
    if CURRENT.level is None:
        return original(function, *settings, **kwargs)

    def apply(*args, **kwargs):
        return _paired(function(*_unpaired(args), **_unpaired(kwargs)))
    args, kwargs = _paired(args), _paired(kwargs)
    return _unpaired(original(apply, in_dims, out_dims, randomness, chunk_size, *args, **kwargs))


# --- flash attention -------------------------------------------------------------------------------------


def _redirect_flash(module, name: str) -> None:
    """Redirects calls of a flash attention function to `rules.flash`, under any imported name."""
    function = getattr(module, name)
    if not isinstance(function, FunctionType) or function.__closure__:
        return _replace(module, name, partial(_attended, inspect.signature(function)))
    code = function.__code__
    if code.co_filename == __file__:
        return None                                                # already redirected through another module
    original = FunctionType(code, function.__globals__, name, function.__defaults__)
    original.__kwdefaults__ = function.__kwdefaults__
    ORIGINALS[f"{function.__module__}.{name}"] = partial(_attended, inspect.signature(original), original)
    source = f"def {name}(*args, **kwargs):\n" \
             "    from swiftvideo_fast.intercept import ORIGINALS\n" \
             f"    return ORIGINALS[{function.__module__ + '.' + name!r}](*args, **kwargs)\n"
    made: dict = {}
    exec(compile(source, __file__, "exec"), made)
    function.__code__ = made[name].__code__
    undo.append(lambda: setattr(function, "__code__", code))


def _attended(signature: inspect.Signature, original: Callable, *args, **kwargs):
    if CURRENT.level is None or not any_dual(lambda x: True, [args, kwargs]):
        return original(*args, **kwargs)
    return flash(original.__name__, signature, args, kwargs)
