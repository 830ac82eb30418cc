"""Binds calls to torch's schemas: keywords, numpy's aliases and defaults become positional arguments.

A rule's parameters have torch's names and order.  Where a call fits neither schema nor rule, `bind` returns
None, and the call goes to torch's own forward mode unchanged.
"""

from collections.abc import Callable
from inspect import Parameter, signature
from types import FunctionType, MethodDescriptorType
from typing import NamedTuple

import torch

NUMPY_NAMES = {"axis": "dim", "keepdims": "keepdim", "x": "input", "a": "input", "x1": "input",
               "x2": "other", "self": "input"}
TENSOR_NAMES = ("input", "self", "tensors", "x", "a", "x1")
REQUIRED = object()
UNLIMITED = 1 << 30


class Signature(NamedTuple):
    """One overload.  names, defaults: of positional parameters; keywords: keyword-only names."""

    names: tuple[str, ...]
    defaults: tuple
    keywords: frozenset[str]


class RuleSignature(NamedTuple):
    """Arguments a rule accepts.  most: positional count; keywords: keyword names, None for any."""

    most: int
    keywords: frozenset[str] | None


SIGNATURES: dict[Callable, tuple[Signature, ...]] = {}


def bind(function: Callable, accepted: RuleSignature, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """Returns (args, kwargs) in torch's order, or None where the call does not fit."""
    if accepted.keywords is None:
        return (args, kwargs) if args else tensor_first(kwargs)
    if not kwargs:
        return (args, kwargs) if len(args) <= accepted.most else None
    for overload in SIGNATURES.get(function, ()):
        found = _by_schema(overload, args, kwargs)
        if found is not None and len(found[0]) <= accepted.most and accepted.keywords.issuperset(found[1]):
            return found
    return None


def tensor_first(kwargs: dict) -> tuple[tuple, dict] | None:
    """Returns (args, kwargs) with the tensor keyword moved to the first position, or None."""
    for name in TENSOR_NAMES:
        if name in kwargs:
            return (kwargs[name],), {k: v for k, v in kwargs.items() if k != name}
    return None


def _by_schema(overload: Signature, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    names, defaults, keywords = overload
    if len(args) > len(names):
        return None
    remaining = {}
    for name, value in kwargs.items():
        torch_name = name if name in names or name in keywords else NUMPY_NAMES.get(name)
        if torch_name is None or torch_name in remaining:
            return None
        remaining[torch_name] = value
    values = list(args)
    for name, default in zip(names[len(args):], defaults[len(args):]):
        if name in remaining:
            values.append(remaining.pop(name))
        elif default is REQUIRED:
            return None
        elif any([later in remaining for later in names[len(values):]]):
            values.append(default)
        else:
            break
    return (tuple(values), remaining) if keywords.issuperset(remaining) else None


def load_signatures(function: Callable) -> None:
    """Reads torch's schemas of a function into SIGNATURES, once."""
    if function not in SIGNATURES:
        SIGNATURES[function] = tuple(_python_signature(function) if isinstance(function, FunctionType)
                                     else _native_signatures(function))


def _python_signature(function: FunctionType) -> list[Signature]:
    """Returns the signature of a torch function written in Python; [] where it has *args or **kwargs."""
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


def _native_signatures(function: Callable) -> list[Signature]:
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
    # overloads with keyword `alpha` before those with positional `alpha`
    return sorted(found, key=lambda s: len(s.names))


def signature_of(rule: Callable, skip: int) -> RuleSignature:
    """Returns the arguments a rule accepts after its first `skip` parameters (the result)."""
    parameters = list(signature(rule).parameters.values())[skip:]
    parameter_kinds = [p.kind for p in parameters]
    if Parameter.VAR_KEYWORD in parameter_kinds:
        return RuleSignature(UNLIMITED, None)
    most = sum(k is Parameter.POSITIONAL_OR_KEYWORD for k in parameter_kinds)
    return RuleSignature(UNLIMITED if Parameter.VAR_POSITIONAL in parameter_kinds else most,
                         frozenset(p.name for p in parameters))
