"""The demo's runs: each stage, its controls and variants, and the order in which they can be trained."""

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

STAGES = {"CCD": "ccd.yaml", "CCD + DA": "da.yaml"}             # each from the student of the one before
FIRST, LAST = STAGES
UNJUDGED = "CCD + CCD"                                          # the steps of DA without its adversary
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
    """Every run by name, in an order in which each finds the student that it starts from.

    paired: alignment on paired noise too, which the paper does not have.
    """
    def load(file: str, student: str | None) -> Config:
        cfg = TABLES.load(configs / file, overrides)
        run = replace(cfg.run, seed=seed, dir=str(folder / Path(file).stem), watch_every=0)     # see the page
        return replace(cfg, run=run, model=replace(cfg.model, student=student))

    def elsewhere(cfg: Config, name: str, **changes) -> Config:
        place = folder / "-".join(re.findall(r"\w+", name))
        return replace(cfg, run=replace(cfg.run, dir=str(place)), **changes)

    student = None
    for name, file in STAGES.items():
        cfg = load(file, student)
        yield name, cfg
        student = f"{cfg.run.dir}/{FILES[AVERAGE]}"
    yield UNJUDGED, elsewhere(cfg, "da-unjudged", da=None)
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
    """Those of the runs in whose folders lies what cfg reads."""
    reads = [Path(file) for file in (cfg.model.student, getattr(cfg.objective, "pairs", None)) if file]
    return [name for name, run in runs.items()
            if run is not cfg and any(Path(run.run.dir) in file.parents for file in reads)]


def finish(cfg: Config) -> None:
    """What is not done yet of one run, its pairs first."""
    if isinstance(cfg.objective, Ta):
        make_pairs(cfg)
    recipe.train(cfg)
