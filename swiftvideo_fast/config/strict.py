"""Nested dicts to frozen dataclasses; unknown or missing keys, wrong types and values out of limits raise.

A limit is declared with its field:

    steps: int = option(POSITIVE)                       # required
    lr: float = option(POSITIVE, 1e-6)
    norm: str = option(one_of("l2", "rms", "clip"), "l2")
"""

import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass

import yaml

Plugs = Mapping[str, Mapping[str, type] | type]         # field of the root -> dataclass, or name -> dataclass


@dataclass(frozen=True)
class Limit:
    """A constraint: holds(value) for every value except None.  wanted: its description in errors."""

    holds: Callable[[typing.Any], bool]
    wanted: str
    names: tuple[str, ...] = ()


POSITIVE = Limit(lambda x: x > 0, "a positive number")
NATURAL = Limit(lambda x: x >= 0, "0 or more")
SHARE = Limit(lambda x: 0 <= x <= 1, "a number in [0, 1]")
FRACTION = Limit(lambda x: 0 <= x < 1, "a number in [0, 1)")


def one_of(*names: str) -> Limit:
    return Limit(lambda x: x in names, "", names)


def option(limit: Limit, default: object = MISSING) -> typing.Any:
    """Returns a dataclass field with a limit; without a default it is required."""
    return field(default=default, metadata={"limit": limit})


def check(section: object, where: str = "") -> None:
    """Raises ValueError naming the first key whose value is out of its limit, in nested sections too."""
    for f in fields(section):
        value, key = getattr(section, f.name), _join(where, f.name)
        limit = f.metadata.get("limit")
        if is_dataclass(value):
            check(value, key)
        elif limit and value is not None and limit.names:
            known_name(key, value, limit.names)
        elif limit and value is not None:
            want(limit.holds(value), key, value, limit.wanted)


def build(cls: type, tree: object, where: str = "", plugs: Plugs = types.MappingProxyType({})) -> typing.Any:
    """Returns an instance of dataclass `cls`, nested ones included.  where: dotted path of `tree`.

    plugs: dataclasses of fields that `cls` leaves open; among several, the key `name` selects.
    """
    known = {f.name: f for f in fields(cls)}
    if not isinstance(tree, dict):
        raise ValueError(f"{where or 'config'} is {tree!r}; want a section with keys {list(known)}")
    for key, value in tree.items():
        if key not in known:
            full = next(iter(flatten({str(key): value}))) if isinstance(value, dict) and value else key
            of = f" of {cls.name}" if hasattr(cls, "name") else ""
            near = _nearest(cls, full, where, plugs)
            raise ValueError(f"unknown key {_join(where, full)}{of}; the nearest known one is {near}")
    for name, f in known.items():
        if name not in tree and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"missing key {_join(where, name)}")
    hints = typing.get_type_hints(cls) | {name: plugs[name] for name in known if name in plugs}
    return cls(**{key: _value(hints[key], value, _join(where, key), optional=known[key].default is None)
                  for key, value in tree.items()})


def override(tree: dict, text: str) -> None:
    """Sets one value of a nested dict from "key.subkey=value", with a YAML value."""
    key, equals, value = text.partition("=")
    *sections, last = key.split(".")
    if not equals or not all([*sections, last]):
        config = text.endswith((".yaml", ".yml"))
        raise ValueError(f"override {text!r}; want " + ("one config" if config else "key.subkey=value"))
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise ValueError(f"override {text!r}: {section} is {tree!r}; want a section")
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
    """Returns the nested dict with tuples as lists, as YAML and JSON load them."""
    lists = {dict: plain, tuple: list}
    return {key: lists.get(type(value), lambda x: x)(value) for key, value in tree.items()}


def want(holds: bool, where: str, found: object, wanted: str) -> None:
    """Raises ValueError "WHERE is FOUND; want WANTED" unless `holds`."""
    if not holds:
        raise ValueError(f"{where} is {found}; want {wanted}")


def known_name(where: str, found: object, known: Iterable[str]) -> None:
    """Raises ValueError, with the nearest known name, unless `found` is known."""
    known = list(known)
    want(found in known, where, repr(found), f"one of {known}, perhaps {_closest(found, known)!r}")


def _value(wanted: object, value: object, where: str, optional: bool = False):
    if isinstance(wanted, types.UnionType):
        first, *others = typing.get_args(wanted)
        return None if value is None and types.NoneType in others else _value(first, value, where)
    if isinstance(wanted, Mapping):
        return _choose(wanted, value, where)
    if is_dataclass(wanted):
        return None if value is None and optional else build(wanted, value, where)
    if typing.get_origin(wanted) is tuple:
        parts = typing.get_args(wanted)
        fits = isinstance(value, list | tuple) and len(value) == len(parts)
        want(fits, where, repr(value), f"{len(parts)} values")
        return tuple(_value(p, v, where) for p, v in zip(parts, value, strict=True))
    if wanted is float:
        value = _as_float(value)
        want(type(value) is not float or math.isfinite(value), where, value, "a finite number")
    if wanted is int:
        value = _as_int(value)
    want(type(value) is wanted, where, f"{value!r} ({type(value).__name__})", wanted.__name__)
    return value


def _as_float(value: object) -> object:
    """Converts an int, or text such as 1e-4, which YAML loads as text; returns anything else unchanged."""
    try:
        return float(value) if type(value) in (int, str) else value
    except (ValueError, OverflowError):
        return value


def _as_int(value: object) -> object:
    """Converts a whole number written as 1e3, which YAML loads as text, or 1.0; else returns it unchanged."""
    number = _as_float(value) if type(value) is str else value
    whole = type(number) is float and number.is_integer()
    return int(number) if whole else value


def _choose(named: Mapping[str, type], tree: object, where: str):
    name = tree.get("name") if isinstance(tree, dict) else tree
    known_name(_join(where, "name"), name, named)
    want(isinstance(tree, dict), where, repr(tree), f"a section with name: {name}, {where}={{name: {name}}}")
    return build(named[name], {key: value for key, value in tree.items() if key != "name"}, where)


def _nearest(cls: type, key: object, where: str, plugs: Plugs) -> str:
    """Returns the known key most like `key`, in this section or, if the section was omitted, one below it."""
    hints = typing.get_type_hints(cls) | dict(plugs)
    names = {f.name: _join(where, f.name) for f in fields(cls)}
    for section in names.copy():
        hint = hints[section]
        for below in hint.values() if isinstance(hint, Mapping) else [hint]:
            for f in fields(below) if is_dataclass(below) else ():
                names.setdefault(f.name, _join(_join(where, section), f.name))
                names.setdefault(f"{section}.{f.name}", _join(_join(where, section), f.name))
    return names[_closest(key, names)]


def _closest(word: object, known: Iterable[str]) -> str:
    return difflib.get_close_matches(str(word).lower(), known, n=1, cutoff=0.0)[0]


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
