"""The demo's runs: stages, controls and variants, in an order in which they can be trained."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from swiftvideo_fast.config import Config
from swiftvideo_fast.objectives.base import AVERAGE
from swiftvideo_fast.objectives.ta import Ta
from swiftvideo_fast.train import recipe
from swiftvideo_fast.train.recipe import FILES, TABLES
from swiftvideo_fast.train.rounds import make_pairs, rounds

STAGES = {"CCD": "ccd.yaml", "CCD + DA": "da.yaml"}             # each starts from the previous one's student
FIRST, LAST = STAGES
CONTROL = "CCD + CCD"                                           # DA's steps without its adversary
FULL = "CCD, full"
ALIGNED = f"{LAST} + TA", f"{LAST} + TA + TA"
ROUNDS = [8, 4, 2]
PAIRED = "paired noise"
VARIANTS = {                                                    # of the first round of alignment
    "reflow alone": {"beta": 0.0},
    "DPO alone": {"reflow": 0.0},
    PAIRED: {"noise": "paired"},
    "real winners": {"winner": "real", "pairs": None},
}
TWICE = f"{PAIRED}, twice"                                      # its second round


def students(folder: Path, configs: Path, seed: int, overrides: list[str],
             paired: bool) -> Iterator[tuple[str, Config]]:
    """Yields every run by name, each after the run whose student it starts from.

    paired: also alignment on paired noise, which is not in the paper.
    """
    def load(file: str, student: str | None) -> Config:
        cfg = TABLES.load(configs / file, overrides)
        run = replace(cfg.run, seed=seed, dir=str(folder / Path(file).stem), watch_every=0)
        return replace(cfg, run=run, model=replace(cfg.model, student=student))

    def elsewhere(cfg: Config, name: str, **changes) -> Config:
        place = folder / "-".join(re.findall(r"\w+", name))
        return replace(cfg, run=replace(cfg.run, dir=str(place)), **changes)

    student = None
    for name, file in STAGES.items():
        cfg = load(file, student)
        yield name, cfg
        student = f"{cfg.run.dir}/{FILES[AVERAGE]}"
    yield CONTROL, elsewhere(cfg, "da-control", da=None)
    yield FULL, load("ccd-full.yaml", None)

    first, *_ = aligned = [*rounds(load("ta.yaml", student), ROUNDS)]
    yield from zip(ALIGNED, aligned, strict=True)
    for name, options in VARIANTS.items():
        if name == PAIRED and not paired:
            continue
        objective = replace(first.objective, **{"pairs": f"{first.run.dir}/pairs"} | options)
        yield name, elsewhere(first, name, objective=objective)
        if name == PAIRED:
            again, student = aligned[1], f"{elsewhere(first, name).run.dir}/{FILES[AVERAGE]}"
            yield TWICE, elsewhere(again, TWICE, model=replace(again.model, student=student),
                                   objective=replace(again.objective, **options))


def needed(cfg: Config, runs: dict[str, Config]) -> list[str]:
    """Returns the names of the runs whose files cfg reads."""
    reads = [Path(file) for file in (cfg.model.student, getattr(cfg.objective, "pairs", None)) if file]
    return [name for name, run in runs.items()
            if run is not cfg and any(Path(run.run.dir) in file.parents for file in reads)]


def finish(cfg: Config) -> None:
    """Completes a run: its missing pairs, then its training."""
    if isinstance(cfg.objective, Ta):
        make_pairs(cfg)
    recipe.train(cfg)
