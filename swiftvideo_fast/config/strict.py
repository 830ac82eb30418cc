"""Plain values into frozen dataclasses; what is unknown, missing or of a wrong type is a ValueError."""

import difflib
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass

import yaml


def build(cls: type, tree: object, where: str = ""):
    """An instance of the dataclass `cls`, nested ones included.  where: the dotted path of `tree`.

    A field typed as a union of dataclasses takes the one that its key `name` names, in lower case.
    """
    known = {f.name: f for f in fields(cls)}
    if not isinstance(tree, dict):
        raise ValueError(f"{where or 'config'} is {tree!r}; want a section with keys {list(known)}")
    for key in tree:
        if key not in known:
            near = _nearest(cls, key, where)
            raise ValueError(f"unknown key {_join(where, key)}; the nearest known one is {near}")
    for name, f in known.items():
        if name not in tree and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"missing key {_join(where, name)}")
    hints = typing.get_type_hints(cls)
    return cls(**{key: _value(hints[key], value, _join(where, key)) for key, value in tree.items()})


def override(tree: dict, text: str) -> None:
    """Set one value of a nested dict from "key.subkey=value", the value in YAML."""
    key, equals, value = text.partition("=")
    *sections, last = key.split(".")
    if not equals or not all([*sections, last]):
        raise ValueError(f"override {text!r}; want key.subkey=value")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ValueError(f"override {text!r}: {section} is {tree!r} and no section")
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError as why:
        raise ValueError(f"override {text!r}: the value is not YAML: {' '.join(str(why).split())}") from why


def flatten(tree: dict, where: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, _join(where, key)) if isinstance(value, dict) else {_join(where, key): value}
    return flat


def plain(tree: dict) -> dict:
    """The tree with its tuples as lists, as YAML and JSON give them back."""
    lists = {dict: plain, tuple: list}
    return {key: lists.get(type(value), lambda x: x)(value) for key, value in tree.items()}


def want(holds: bool, where: str, found: object, wanted: str) -> None:
    """The check behind every bad value."""
    if not holds:
        raise ValueError(f"{where} is {found}; want {wanted}")


def one_of(where: str, found: object, known: Iterable[str]) -> None:
    """The check of a name; the message has the one that was perhaps meant."""
    known = list(known)
    want(found in known, where, repr(found), f"one of {known}, perhaps {_closest(found, known)!r}")


def _value(wanted: object, value: object, where: str):
    if isinstance(wanted, types.UnionType):
        first, *others = options = typing.get_args(wanted)
        if value is None and types.NoneType in others:
            return None
        several = is_dataclass(first) and types.NoneType not in others
        return _choose(options, value, where) if several else _value(first, value, where)
    if is_dataclass(wanted):
        return build(wanted, value, where)
    if typing.get_origin(wanted) is tuple:
        parts = typing.get_args(wanted)
        fits = isinstance(value, list | tuple) and len(value) == len(parts)
        want(fits, where, repr(value), f"{len(parts)} values")
        return tuple(_value(p, v, where) for p, v in zip(parts, value, strict=True))
    if wanted is float:
        value = _as_float(value)
        want(type(value) is not float or math.isfinite(value), where, value, "a finite number")
    want(type(value) is wanted, where, f"{value!r} ({type(value).__name__})", wanted.__name__)
    return value


def _as_float(value: object) -> object:
    """An int, or text such as 1e-4, which YAML does not take for a number; anything else as it is."""
    try:
        return float(value) if type(value) in (int, str) else value
    except (ValueError, OverflowError):
        return value


def _choose(options: tuple[type, ...], tree: object, where: str):
    named = {cls.__name__.lower(): cls for cls in options}
    name = tree.get("name") if isinstance(tree, dict) else tree
    one_of(_join(where, "name"), name, named)
    want(isinstance(tree, dict), where, repr(tree), f"a section with name: {name}")
    return build(named[name], {key: value for key, value in tree.items() if key != "name"}, where)


def _nearest(cls: type, key: object, where: str) -> str:
    """The known key most like `key`, of this section or of one below it, should the section be forgotten."""
    hints = typing.get_type_hints(cls)
    names = {name: _join(where, name) for name in hints}
    for section, hint in hints.items():
        for f in fields(hint) if is_dataclass(hint) else ():
            names.setdefault(f.name, _join(_join(where, section), f.name))
    return names[_closest(key, names)]


def _closest(word: object, known: Iterable[str]) -> str:
    return difflib.get_close_matches(str(word), known, n=1, cutoff=0.0)[0]


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
