"""What is compared: students by their runs, and the teacher that the first of them was distilled from."""

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
from swiftvideo_fast.release.find import opened
from swiftvideo_fast.train.recipe import FILES, Tables

TEACHER, REAL = "teacher", "real"
MOST = 25               # the teacher's steps by default, beside those of --steps
NAME = re.compile(r"\w[\w.+ -]*")


@dataclass(frozen=True)
class Given:
    """One of --models, as it was written."""

    name: str
    path: Path


@dataclass(frozen=True, eq=False)
class Model:
    """A network on disk.  given: the path that names it.  weights: those of a run, or exported from its
    checkpoint.  how: its sampling.  trained: the config of its run, None where the weights do not say it.
    dtype: that it is stored in while it samples."""

    name: str
    given: Path
    weights: Path
    how: Sample
    trained: Config | None
    dtype: str = "float32"


@dataclass(frozen=True)
class Sampler:
    """A row of the table: a model at a number of steps."""

    model: Model
    steps: int

    @property
    def folder(self) -> str:
        return f"{self.model.name}-{self.steps}"


def given(text: str) -> Given:
    """The type of --models: PATH, named by its run's folder, or NAME=PATH."""
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
    return Given(name, Path(path))


def against(text: str) -> tuple[int, ...]:
    """The type of --against: the teacher's steps, () for none."""
    if text == "none":
        return ()
    who, _, steps = text.partition(":")
    found = steps.split(",")
    if who != TEACHER or not all(n.isdecimal() and int(n) for n in found):
        raise argparse.ArgumentTypeError(f"{text!r}; want {TEACHER}:25,8,4, or none")
    return tuple(dict.fromkeys(map(int, found)))


def guidance(text: str) -> float:
    """The type of --guidance."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; want a number, 0 or more")
    return found


def open_models(asked: Sequence[Given], held: ExitStack, tables: Tables) -> list[Model]:
    """ValueError for names that stand twice, paths that are not there, and models that do not go together."""
    names = [one.name for one in asked]
    if twice := [one for i, one in enumerate(asked) if one.name in names[:i]]:
        raise ValueError(f"--models: two are named {twice[0].name}; name one, as in other={twice[0].path}")
    found = [_opened(one, held, tables) for one in asked]
    if found[0].trained is None:
        raise ValueError(f"{found[0].given}: does not say by which config it was trained, and the first of "
                         "--models says clips, codec and teacher; put a run first")
    families = {model.trained.model.family for model in found if model.trained}
    if len(families) > 1:
        raise ValueError(f"--models: of the families {', '.join(sorted(families))}; evaluate each by itself")
    return found


def _opened(one: Given, held: ExitStack, tables: Tables) -> Model:
    if not one.path.exists():
        raise ValueError(f"--models: {one.path}: no such run or weight file")
    model = held.enter_context(opened(one.path, tables=tables))
    if model.how is None:
        raise ValueError(f"--models: {one.path}: a base model, which --against {TEACHER} samples; want a "
                         "student: a run's folder or its weights")
    how = Sample(model.how.sampler, model.how.shift, model.how.guidance)
    cfg = trained_by(model.weights, tables)
    return Model(one.name, one.path, model.weights, how, cfg, cfg.engine.dtype if cfg else "bfloat16")


def trained_by(file: Path, tables: Tables) -> Config | None:
    """The config in a weight file's header; None where it has none, or no file is there.  Not checked: the
    shards that it was trained on may be gone."""
    if not file.is_file():
        return None
    tree = json.loads(Stored(file).header.get("about", "{}")).get("trained")
    return tree and config.from_dict(tree, tables.plugs())


def teacher(models: Sequence[Model], guidance: float | None, tables: Tables) -> Model:
    """The teacher of the first model's run, by Euler on the ladder of that run's sampling.  ValueError when
    the run has no teacher, or does not say the guidance and neither does --guidance."""
    first = models[0]
    cfg = first.trained
    if not cfg.model.weights:
        raise ValueError(f"{first.name}: its run started from no weights, so has no teacher; want --against "
                         "none, or a distilled model first")
    if guidance is None:
        guidance = teacher_guidance(cfg, tables)
    if guidance is None:
        raise ValueError(f"{first.name}: its objective, {cfg.objective.name}, has no guidance of the "
                         f"teacher, nor has a run that it goes on from ({cfg.model.start}); want --guidance")
    how, place = Sample(shift=cfg.sample.shift, guidance=guidance), Path(cfg.model.weights)
    return Model(TEACHER, place, place, how, None, first.dtype)


def teacher_guidance(cfg: Config, tables: Tables) -> float | None:
    """Of the objective that distilled the teacher: the run's own, or, where that has none (alignment), that
    of the run whose student it started from, and so on back.  OSV's may be of another kind: without image."""
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
    """What a reader of the table must know: students of another teacher than the one that is shown, and those
    that held out other clips than are measured.  data: where the clips are from."""
    found, held_out, place = [], data.get("held_out"), data.get("folder") or data.get("index")
    for model in [model for model in models if model.trained]:
        cfg = model.trained
        if teacher and Path(cfg.model.weights or "") != teacher.weights:
            found.append(f"{model.name} learned from {cfg.model.weights or 'no teacher'}; the teacher shown "
                         f"is {teacher.weights}.")
        elif teacher and (own := teacher_guidance(cfg, tables)) not in (None, teacher.how.guidance):
            found.append(f"{model.name} learned from the teacher at guidance {own:g}; it is shown at "
                         f"{teacher.how.guidance:g}.")
        own = asdict(cfg.data)
        if held_out and place == (own.get("folder") or own.get("index")) and own["held_out"] != held_out:
            found.append(f"{model.name} was trained with data.held_out {own['held_out']}, not {held_out}: "
                         "the measured clips may be among those that it learned from.")
    return found


def digest(place: Path) -> str:
    """sha256 of a weight file's tensors (a header's order may vary), or of a model folder's files."""
    if place.is_dir():
        return weights.digest(place)
    with open(place, "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()
