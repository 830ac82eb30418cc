"""The compared models: students by their runs, and the teacher of the first one."""

import argparse
import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swiftvideo_fast import config
from swiftvideo_fast.config import Config, Sample
from swiftvideo_fast.models import weights
from swiftvideo_fast.models.weights import Stored
from swiftvideo_fast.objectives.base import AVERAGE
from swiftvideo_fast.release.find import open_model
from swiftvideo_fast.train.recipe import FILES, Tables

TEACHER, REAL = "teacher", "real"
MOST = 25               # default steps of the teacher, in addition to --steps
NAME = re.compile(r"\w[\w.+ -]*")


@dataclass(frozen=True)
class ModelArgument:
    """One value of --models."""

    name: str
    path: Path


@dataclass(frozen=True, eq=False)
class Model:
    """A network on disk.  given: its path on the command line.  weights: the run's weights, or those exported
    from its checkpoint.  sampling: settings.  trained: its run's config, None if not in the file.  dtype:
    storage during sampling."""

    name: str
    given: Path
    weights: Path
    sampling: Sample
    trained: Config | None
    dtype: str = "float32"


@dataclass(frozen=True)
class Sampler:
    """A model at a number of steps: one row of the table."""

    model: Model
    steps: int

    @property
    def folder(self) -> str:
        return f"{self.model.name}-{self.steps}"


def model_argument(text: str) -> ModelArgument:
    """argparse type of --models: PATH, named by its run's folder, or NAME=PATH."""
    name, named, path = text.partition("=")
    if not named or "/" in name:
        path = os.path.abspath(text)
        folder, file = os.path.split(path) if path.endswith(".safetensors") else (path, FILES[AVERAGE])
        name = os.path.basename(folder) + ("" if file == FILES[AVERAGE] else f"-{Path(file).stem}")
        path = text
    if not NAME.fullmatch(name) or name in (TEACHER, REAL) or not path:
        raise argparse.ArgumentTypeError(
            f"{text!r}; want a run's folder or weight file, or NAME=PATH with a name of letters, digits and "
            f"._+- other than {TEACHER} and {REAL}")
    return ModelArgument(name, Path(path))


def against(text: str) -> tuple[int, ...]:
    """argparse type of --against; returns the teacher's steps, () for none."""
    if text == "none":
        return ()
    who, _, steps = text.partition(":")
    found = steps.split(",")
    if who != TEACHER or not all(n.isdecimal() and int(n) for n in found):
        raise argparse.ArgumentTypeError(f"{text!r}; want {TEACHER}:25,8,4, or none")
    return tuple(dict.fromkeys(map(int, found)))


def guidance(text: str) -> float:
    """argparse type of --guidance: a finite number, 0 or more."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; want a number, 0 or more")
    return found


def open_models(arguments: Sequence[ModelArgument], held: ExitStack, tables: Tables) -> list[Model]:
    """Returns the models.  ValueError for duplicate names, missing paths, and models of several families."""
    names = [one.name for one in arguments]
    if twice := [one for i, one in enumerate(arguments) if one.name in names[:i]]:
        raise ValueError(f"--models: two are named {twice[0].name}; name one, as in other={twice[0].path}")
    found = [_open(one, held, tables) for one in arguments]
    if found[0].trained is None:
        raise ValueError(f"{found[0].given}: has no training config, and the first of --models defines "
                         "clips, codec and teacher; put a run first")
    families = {model.trained.model.family for model in found if model.trained}
    if len(families) > 1:
        raise ValueError(f"--models: of the families {', '.join(sorted(families))}; evaluate each separately")
    return found


def _open(one: ModelArgument, held: ExitStack, tables: Tables) -> Model:
    if not one.path.exists():
        raise ValueError(f"--models: {one.path}: no such run or weight file")
    model = held.enter_context(open_model(one.path, tables=tables))
    if model.sampling is None:
        raise ValueError(f"--models: {one.path}: a base model, which --against {TEACHER} samples; want a "
                         "student: a run folder or its weights")
    sampling = Sample(model.sampling.sampler, model.sampling.shift, model.sampling.guidance)
    cfg = trained_by(model.weights, tables)
    return Model(one.name, one.path, model.weights, sampling, cfg, cfg.engine.dtype if cfg else "bfloat16")


def trained_by(file: Path, tables: Tables) -> Config | None:
    """Returns the config in a weight file's header, None without one.  Not checked: its shards may no longer
    exist."""
    if not file.is_file():
        return None
    tree = json.loads(Stored(file).header.get("about", "{}")).get("trained")
    return tree and config.from_dict(tree, tables.plugs())


def teacher(models: Sequence[Model], guidance: float | None, tables: Tables) -> Model:
    """Returns the teacher of the first model's run, sampled by Euler with that run's time shift.  ValueError
    when the run has no teacher, or neither its config nor --guidance gives the guidance scale."""
    first = models[0]
    cfg = first.trained
    if not cfg.model.weights:
        raise ValueError(f"{first.name}: its run was trained from scratch, without a teacher; want --against "
                         "none, or a distilled model first")
    if guidance is None:
        guidance = teacher_guidance(cfg, tables)
    if guidance is None:
        raise ValueError(f"{first.name}: its objective, {cfg.objective.name}, has no teacher guidance, nor "
                         f"has a run that it started from ({cfg.model.start}); want --guidance")
    sampling, place = Sample(shift=cfg.sample.shift, guidance=guidance), Path(cfg.model.weights)
    return Model(TEACHER, place, place, sampling, None, first.dtype)


def teacher_guidance(cfg: Config, tables: Tables) -> float | None:
    """Returns the guidance scale that the teacher was distilled at: the objective's, or if it has none (TA),
    that of the run it started from, recursively.  None if unknown, or for OSV's guidance without image."""
    seen = set()
    while cfg and getattr(cfg.objective, "without", "text") == "text":
        if hasattr(cfg.objective, "guidance"):
            return cfg.objective.guidance
        if not cfg.model.student or cfg.model.student in seen:
            return None
        seen.add(cfg.model.student)
        cfg = trained_by(Path(cfg.model.student), tables)
    return None


def notes(models: Sequence[Model], teacher: Model | None, data: dict[str, Any], tables: Tables) -> list[str]:
    """Returns caveats of the table: students of another teacher or guidance than shown, and runs that held
    out other clips than those measured.  data: the clips' options."""
    found, held_out, place = [], data.get("held_out"), data.get("folder") or data.get("index")
    for model in [model for model in models if model.trained]:
        cfg = model.trained
        if teacher and Path(cfg.model.weights or "") != teacher.weights:
            found.append(f"{model.name} was distilled from {cfg.model.weights or 'no teacher'}; the teacher "
                         f"shown is {teacher.weights}.")
        elif teacher and (guidance := teacher_guidance(cfg, tables)) not in (None, teacher.sampling.guidance):
            found.append(f"{model.name} was distilled at guidance {guidance:g}; the teacher is shown at "
                         f"{teacher.sampling.guidance:g}.")
        trained = asdict(cfg.data)
        if (held_out and place == (trained.get("folder") or trained.get("index"))
                and trained["held_out"] != held_out):
            found.append(f"{model.name} was trained with data.held_out {trained['held_out']}, not "
                         f"{held_out}: the measured clips may be among its training clips.")
    return found


def digest(place: Path) -> str:
    """Returns the sha256 of a weight file's tensors (header order may vary), or of a model folder's files."""
    if place.is_dir():
        return weights.digest(place)
    with open(place, "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()
