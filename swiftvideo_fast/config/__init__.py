"""Configs: YAML plus dotted overrides to frozen dataclasses, checked before anything is allocated."""

from dataclasses import asdict, fields
from pathlib import Path

import yaml

from swiftvideo_fast.config import shipped, strict
from swiftvideo_fast.config.schema import Config, Engine, Model, Optim, Run, Sample, Times
from swiftvideo_fast.config.strict import Plugs

__all__ = ["Config", "Engine", "Model", "Optim", "Plugs", "Run", "Sample", "Times", "differences",
           "from_dict", "read", "to_dict"]


class UniqueKeys(yaml.SafeLoader):
    """A YAML loader that rejects duplicate keys; PyYAML lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            scalar = isinstance(key, yaml.ScalarNode)
            if not scalar or key.value in seen:
                problem = f"the key {key.value!r} is given twice" if scalar else "a key is not a single word"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read(path: Path | str, overrides: list[str] = ()) -> dict:
    """Returns a YAML file as a nested dict, with `a.b=value` overrides (values are YAML).

    base: a config that this file's keys override.  Configs and weights that do not exist at their paths are
    searched among the shipped ones.  ValueError names the file.
    """
    tree = _sections(path)
    if "base" in tree:
        name, overriding = tree.pop("base"), tree
        strict.want(isinstance(name, str), f"{path}: base", repr(name), "the path of a config")
        tree = _sections((shipped.find(path) or Path(path)).parent / name)
        strict.want("base" not in tree, f"{path}: base", name, "a config without base")
        for key, value in overriding.items():
            both = isinstance(value, dict) and isinstance(tree.get(key), dict)
            tree[key] = tree[key] | value if both else value
    try:
        for override in overrides:
            strict.override(tree, override)
    except ValueError as why:
        raise ValueError(f"{path}: {why}") from why
    model = tree.get("model")
    for key in ("weights", "codec") if isinstance(model, dict) else ():
        if isinstance(model.get(key), str) and (file := shipped.find(model[key])):
            model[key] = str(file)
    return tree


def _sections(path: Path | str) -> dict:
    """Returns one YAML file as a nested dict."""
    found = shipped.find(path)
    if found is None:
        raise ValueError(f"{path}: no such config; shipped are {', '.join(shipped.configs())}")
    try:
        tree = yaml.load(found.read_text(), UniqueKeys)
    except OSError as why:
        raise ValueError(f"{path}: not readable ({why.strerror})") from why
    except (yaml.YAMLError, UnicodeDecodeError) as why:
        reason = " ".join(str(why).replace(' in "<unicode string>",', " at").split())
        raise ValueError(f"{path}: not YAML: {reason}") from why
    if not isinstance(tree, dict):
        sections = [f.name for f in fields(Config)]
        found = "an empty file" if tree is None else type(tree).__name__
        raise ValueError(f"{path}: want sections {sections}, found {found}")
    return tree


def from_dict(tree: dict, plugs: Plugs) -> Config:
    """Returns the Config of a nested dict, the inverse of `to_dict`.  plugs: option dataclasses of objective,
    data and da.  ValueError names key, found and wanted."""
    return strict.build(Config, tree, plugs=plugs)


def to_dict(config: Config) -> dict:
    """Returns a config as a nested dict of YAML and JSON values, with the names of objective and data."""
    tree = asdict(config)
    for section in ("objective", "data"):
        tree[section] = {"name": getattr(config, section).name} | tree[section]
    return strict.plain(tree)


def differences(old: dict, new: dict) -> list[str]:
    """Returns "optim.lr: 0.001 -> 0.002" for every differing key of two nested dicts.

    Ignores the section engine, on which results do not depend.
    """
    a, b = (strict.flatten({key: value for key, value in tree.items() if key != "engine"})
            for tree in (old, new))
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in a | b if a.get(key) != b.get(key)]
