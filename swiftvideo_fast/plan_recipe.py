"""Hours of the whole recipe, from a card's measured step (bench/gpu.json, written by `make gpu`).

    3,000 steps of CCD with DA;  then twice: 5,000 pairs (winner in 8 steps, loser in 4) and 2,000 steps of TA
One clip per step, as in the paper; `batch` clips per step are split over the GPUs.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from swiftvideo_fast.config.strict import known_name, want

WHEELS, CHECKOUTS = Path(__file__).with_name("gpu.json"), Path(__file__).parents[1] / "bench/gpu.json"
RECORD = WHEELS if WHEELS.exists() else CHECKOUTS
STEPS, ALIGNED, ROUNDS, PAIRS, PAIR_FORWARDS = 3000, 2000, 2, 5000, 8 + 4


@dataclass(frozen=True)
class Stage:
    """count: steps or pairs, over all GPUs.  seconds: of one, on one GPU.  note: source of the figure."""

    name: str
    count: int
    seconds: float
    note: str

    def hours(self, gpus: int, batch: int) -> float:
        """Returns the stage's hours.  A step has `batch` clips and ends with the slowest GPU; pairs are split
        evenly."""
        runs = self.count * math.ceil(batch / gpus) if "steps" in self.name else math.ceil(self.count / gpus)
        return runs * self.seconds / 3600


def stages(steps: dict) -> list[Stage]:
    """Returns the stages of one network's record; unmeasured steps use the nearest measured one, as noted."""
    parts = {name: part for name, part in steps["parts"].items() if "ms" in part}
    for name in ("step", "one forward"):
        want(name in parts, "plan --recipe: the record", f"without {name!r}", "one by `make gpu`")

    def seconds(name: str, nearest: str, what: str) -> tuple[float, str]:
        if name in parts:
            return parts[name]["ms"] / 1e3, "measured"
        return parts[nearest]["ms"] / 1e3, f"{what} is not measured on this card: CCD's step is counted"

    forward = parts["one forward"]["ms"] / 1e3
    aligned = ROUNDS * ALIGNED
    return [Stage(f"{STEPS:,} steps of CCD with DA", STEPS, *seconds("da", "step", "DA")),
            Stage(f"{ROUNDS} x {PAIRS:,} pairs", ROUNDS * PAIRS, PAIR_FORWARDS * forward,
                  f"{PAIR_FORWARDS} forwards, measured; the codec's decoding and writing apart"),
            Stage(f"{ROUNDS} x {ALIGNED:,} steps of TA", aligned, *seconds("ta", "step", "TA"))]


def report(preset: str, gpus: int, batch: int = 1, card: str | None = None, record: Path = RECORD) -> str:
    """Returns the recipe as text.  card: a card in the record; default: its first."""
    want(record.exists(), "plan --recipe: the record", record, "bench/gpu.json, or one by `make gpu`")
    cards = {name: held["step"] for name, held in json.loads(record.read_text()).items() if "step" in held}
    want(bool(cards), "plan --recipe: the record", "without a step", "one by `make gpu`")
    card = card or next(iter(cards))
    known_name("plan --recipe: card", card, cards)
    measured = cards[card].get(f"wan_{preset.replace('.', '_')}")
    want(measured is not None, "plan --recipe: --preset", preset, "1.3b, whose step `make gpu` measures")
    held = [(stage, stage.hours(gpus, batch)) for stage in stages(measured)]
    total = sum(hours for _, hours in held)
    lines = [f"the recipe for {preset} on {gpus} x {card}, {batch} clips a step ({measured['measured']})"]
    lines += [f"{hours:10.1f} h  {stage.name}: {stage.seconds:.2f} s each; {stage.note}"
              for stage, hours in held]
    return "\n".join([*lines, f"{total:10.1f} h  in all: {total * gpus:.0f} GPU hours"])
