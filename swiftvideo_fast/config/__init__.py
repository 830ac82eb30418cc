"""A run as data: YAML plus dotted overrides into frozen dataclasses, checked before anything is allocated."""

from dataclasses import asdict, fields
from pathlib import Path

import yaml

from swiftvideo_fast.config import strict
from swiftvideo_fast.config.schema import (
    OBJECTIVES,
    Ccd,
    Config,
    Da,
    Data,
    Dcd,
    Engine,
    Flow,
    Model,
    Optim,
    Run,
    Sample,
    Ta,
    Times,
    objective_name,
)

__all__ = ["OBJECTIVES", "Ccd", "Config", "Da", "Data", "Dcd", "Engine", "Flow", "Model", "Optim", "Run",
           "Sample", "Ta", "Times", "differences", "from_dict", "load", "objective_name", "to_dict"]


def load(path: Path | str, overrides: list[str] = ()) -> Config:
    """The config in a YAML file, with `a.b=value` overrides (values are YAML).

    ValueError names the file, the key, what was found and what was wanted.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError as why:
        raise ValueError(f"{path}: no such config") from why
    except OSError as why:
        raise ValueError(f"{path}: no readable config ({why.strerror})") from why
    except (yaml.YAMLError, UnicodeDecodeError) as why:
        raise ValueError(f"{path}: not YAML: {' '.join(str(why).split())}") from why
    if not isinstance(tree, dict):
        sections = [f.name for f in fields(Config)]
        raise ValueError(f"{path}: want sections {sections}, found {type(tree).__name__}")
    try:
        for override in overrides:
            strict.override(tree, override)
        return from_dict(tree)
    except ValueError as why:
        raise ValueError(f"{path}: {why}") from why


def from_dict(tree: dict) -> Config:
    """The inverse of `to_dict`."""
    return strict.build(Config, tree)


def to_dict(config: Config) -> dict:
    """Plain values, as YAML and JSON give them back; the objective carries its name."""
    tree = asdict(config)
    tree["objective"] = {"name": objective_name(config.objective)} | tree["objective"]
    return strict.plain(tree)


def differences(old: dict, new: dict) -> list[str]:
    """"optim.lr: 0.001 -> 0.002" for every key that differs between two configs of `to_dict`.

    Not those of the engine, of which no result depends; and a key that is younger than `old` had its default.
    """
    a, b = (strict.flatten({key: value for key, value in tree.items() if key != "engine"})
            for tree in (_completed(old), new))
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in a | b if a.get(key) != b.get(key)]


def _completed(tree: dict) -> dict:
    try:
        return to_dict(from_dict(tree))
    except ValueError:
        return tree
