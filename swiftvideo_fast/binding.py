"""A call bound to torch's own schema: names, numpy's aliases and defaults become positions.

A rule names its arguments as torch does and takes them in torch's order.  A call that fits neither the schema
nor the rule is not guessed at: `bind` returns None, and torch's own forward mode takes the call as it is.
"""

from collections.abc import Callable
from inspect import Parameter, signature
from types import FunctionType, MethodDescriptorType
from typing import NamedTuple

import torch

NUMPY = {"axis": "dim", "keepdims": "keepdim", "x": "input", "a": "input", "x1": "input", "x2": "other",
         "self": "input"}
FIRST = ("input", "self", "tensors", "x", "a", "x1")
REQUIRED = object()
ANY = 1 << 30


class Signature(NamedTuple):
    """One overload.  names, defaults: of what may come by position; keywords: of what may not."""

    names: tuple[str, ...]
    defaults: tuple
    keywords: frozenset[str]


class Takes(NamedTuple):
    """What a rule takes: at most so many arguments by position, and these by keyword.  None: any."""

    most: int
    keywords: frozenset[str] | None


SIGNATURES: dict[Callable, tuple[Signature, ...]] = {}


def bind(function: Callable, takes: Takes, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """(args, kwargs) of the call in torch's order, or None where it does not fit."""
    if takes.keywords is None:
        return (args, kwargs) if args else first(kwargs)
    if not kwargs:
        return (args, kwargs) if len(args) <= takes.most else None
    for overload in SIGNATURES.get(function, ()):
        found = _by_schema(overload, args, kwargs)
        if found is not None and len(found[0]) <= takes.most and takes.keywords.issuperset(found[1]):
            return found
    return None


def first(kwargs: dict) -> tuple[tuple, dict] | None:
    """The tensor comes first; the rest stay as they are."""
    for name in FIRST:
        if name in kwargs:
            return (kwargs[name],), {k: v for k, v in kwargs.items() if k != name}
    return None


def _by_schema(overload: Signature, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    names, defaults, keywords = overload
    if len(args) > len(names):
        return None
    left = {}
    for name, value in kwargs.items():
        known = name if name in names or name in keywords else NUMPY.get(name)
        if known is None or known in left:
            return None
        left[known] = value
    values = list(args)
    for name, default in zip(names[len(args):], defaults[len(args):]):
        if name in left:
            values.append(left.pop(name))
        elif default is REQUIRED:
            return None
        elif any([later in left for later in names[len(values):]]):
            values.append(default)
        else:
            break
    return (tuple(values), left) if keywords.issuperset(left) else None


def learn(function: Callable) -> None:
    """Read torch's schemas of a function into SIGNATURES."""
    if function not in SIGNATURES:
        SIGNATURES[function] = tuple(_written(function) if isinstance(function, FunctionType)
                                     else _native(function))


def _written(function: FunctionType) -> list[Signature]:
    """The signature of a function that torch writes in Python."""
    try:
        parameters = signature(function).parameters.values()
    except ValueError:                                           # a wrapped method of Tensor's C++ base
        return []
    if any(p.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD) for p in parameters):
        return []
    ordered = [p for p in parameters if p.kind is not Parameter.KEYWORD_ONLY]
    return [Signature(tuple(p.name for p in ordered),
                      tuple(REQUIRED if p.default is Parameter.empty else p.default for p in ordered),
                      frozenset(p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY))]


def _native(function: Callable) -> list[Signature]:
    name, found = function.__name__, []
    for schema in torch._C._jit_get_schemas_for_operator(f"aten::{name}"):
        arguments = list(schema.arguments)
        types = [str(a.type) for a in arguments]
        if "out" in schema.overload_name or not any("Tensor" in t for t in types) or "Dimname" in str(types):
            continue
        if isinstance(function, MethodDescriptorType):
            arguments.sort(key=lambda a: a.name != "self")
        ordered = [a for a in arguments if not a.kwarg_only]
        found.append(Signature(
            tuple("input" if a.name == "self" else a.name for a in ordered),
            tuple(a.default_value if a.has_default_value() else REQUIRED for a in ordered),
            frozenset(a.name for a in arguments if a.kwarg_only)))
    # `alpha` by keyword before `alpha` by position
    return sorted(found, key=lambda s: len(s.names))


def taken(rule: Callable, skip: int) -> Takes:
    """What a rule takes, its first `skip` parameters (the result) apart."""
    parameters = list(signature(rule).parameters.values())[skip:]
    kinds = [p.kind for p in parameters]
    if Parameter.VAR_KEYWORD in kinds:
        return Takes(ANY, None)
    most = sum(k is Parameter.POSITIONAL_OR_KEYWORD for k in kinds)
    return Takes(ANY if Parameter.VAR_POSITIONAL in kinds else most,
                 frozenset(p.name for p in parameters))
