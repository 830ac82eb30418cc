"""Resolves a path to a model: weights, folder of encoders, sampling settings."""

import json
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from swiftvideo_fast import path as flow_path
from swiftvideo_fast.config import Sample
from swiftvideo_fast.models.weights import Stored, read_json
from swiftvideo_fast.objectives.base import AVERAGE
from swiftvideo_fast.train import checkpoint
from swiftvideo_fast.train.recipe import FILES, TABLES, Tables, export
from swiftvideo_fast.train.run_folder import CONFIG

SAMPLING = "sampling.json"              # in an exported folder


@dataclass(frozen=True)
class Sampling(Sample):
    """Sampling settings of a student, with its recommended steps."""

    steps: int = 4


@dataclass(frozen=True)
class Model:
    """A model on disk.

    weights: file or folder for wan.folder.load.  base: folder with VAE, text and image encoders.  sampling:
    sampling settings of a student; None for a base model.  teacher: weights the student was distilled from.
    adapters: its LoRA file, if student = teacher + LoRA.
    """

    weights: Path
    base: Path | None
    sampling: Sampling | None
    teacher: Path | None = None
    adapters: Path | None = None

    @property
    def encoders(self) -> Path:
        if self.base is None or not self.base.is_dir():
            raise ValueError(f"{self.weights}: its run started from {self.base or 'no folder'}, which is not "
                             "a model folder; name the base model with --base FOLDER")
        return self.base


@contextmanager
def open_model(path: Path, encoders: Path | None = None, role: str = AVERAGE,
               tables: Tables = TABLES) -> Generator[Model]:
    """Yields find(path), where path may also be a run's folder or a checkpoint.

    For a run, the final weights, or those of its newest checkpoint.  A checkpoint is first exported to a
    temporary file.  ValueError for a run without either.
    """
    if (path / CONFIG).is_file():
        if (path / FILES[role]).is_file():
            path = path / FILES[role]
        elif last := checkpoint.newest(path):
            path = last
        else:
            raise ValueError(f"{path}: a run with neither {FILES[role]} nor a checkpoint; resume it")
    if not (path / checkpoint.STATE).is_file():
        yield find(path, encoders)
        return
    with tempfile.TemporaryDirectory() as folder:
        export(path, role, Path(folder) / FILES[role], tables)
        yield find(Path(folder) / FILES[role], encoders)


def find(path: Path | str, encoders: Path | str | None = None) -> Model:
    """Returns the model of a run's weight file, an exported folder, or a base model's folder.

    encoders: a model folder; default: the exported or base folder itself, or for a run's file its base model.
    ValueError when path does not exist or is a LoRA file.
    """
    path, encoders = Path(path), Path(encoders) if encoders else None
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; want a run, its weights, or a model's folder")
    if not path.is_file():
        sampling = Sampling(**_known(read_json(path / SAMPLING))) if (path / SAMPLING).is_file() else None
        return Model(path, encoders or path, sampling)
    stored = Stored(path)
    if any(".lora_" in name for name in stored):
        raise ValueError(f"{path}: adapters (LoRA), which other programs load as they are; want the run, or "
                         "the weights in the same folder")
    about = json.loads(stored.header.get("about", "{}"))
    model = about.get("trained", {}).get("model", {})
    started, distilled = model.get("codec") or model.get("weights"), encoders or model.get("weights")
    adapters = path.with_name(f"lora-{path.name}")
    from_teacher = adapters.is_file() and not model.get("student")      # else relative to that student
    return Model(path, encoders or (Path(started) if started else None), Sampling(**about.get("sample", {})),
                 Path(distilled) if distilled else None, adapters if from_teacher else None)


def teacher(model: Model) -> Path:
    """Returns the base model a student was distilled from; for a base model, itself."""
    return model.encoders if model.sampling else model.weights


def write_sampling(sampling: Sampling, folder: Path) -> None:
    """Writes sampling.json, with the sigma ladder for other programs."""
    sigmas = flow_path.ladder(sampling.steps, sampling.shift)
    (folder / SAMPLING).write_text(json.dumps(asdict(sampling) | {"sigmas": sigmas}, indent=1) + "\n")


def _known(found: dict) -> dict:
    return {key: value for key, value in found.items() if key != "sigmas"}
