"""Tables and report page of an evaluation: Table 1's layout, and the samplers' clips side by side."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from swiftvideo_fast.config import to_dict
from swiftvideo_fast.evaluate.clips import FEW
from swiftvideo_fast.evaluate.generate import Job, name_of
from swiftvideo_fast.evaluate.measure import Figures, decoded, reference_of
from swiftvideo_fast.evaluate.models import TEACHER, Sampler
from swiftvideo_fast.evaluate.nets import Nets
from swiftvideo_fast.metrics.fidelity import STILL
from swiftvideo_fast.models.family import Codec
from swiftvideo_fast.report.about import About, environment
from swiftvideo_fast.report.page import Headline, write_report
from swiftvideo_fast.report.samples import Column, Samples
from swiftvideo_fast.report.tables import METRICS, Metric, Row, Table, as_json, comparison

SHOWN = 6               # clips on the page
COSTS = {
    "evaluations": Metric("evaluations", 0, "of the network, per clip; a guided step takes two", better=""),
    "seconds": replace(METRICS["seconds"], about="sampling alone, without encoders and VAE: the median "
                       "over batches, on the machine named on the page", compared=True),
}
SINGLE = {
    "still": Metric("still clips", 2, f"fraction of clips with motion below {STILL:g} of the real clips' "
                    "mean: copies of the first frame"),
    "flicker": Metric("temporal flickering", 4, "VBench's formula: 1 minus the mean change between frames; "
                      "1 is a still picture, so compare with the real clips", better=""),
    "sharpness": Metric("sharpness kept", 2, "detail of the last frame over that of the first: below 1 the "
                        "clip blurs over time", better="one"),
    "colour": Metric("colour drift", 1, "largest distance of a frame's mean colour from the first frame's, "
                     "in grey levels of 255; real clips drift too", better=""),
}


@dataclass(frozen=True)
class Result:
    """All figures of an evaluation; None is the key of the real clips.  notes: caveats, for the page."""

    job: Job
    nets: Nets
    measured: dict[Sampler | None, Figures]
    notes: list[str]

    @cached_property
    def figures(self) -> dict[Sampler, Figures]:
        return {one: found for one, found in self.measured.items() if one}

    @cached_property
    def rows(self) -> list[Row]:
        return [Row(one.model.name, one.steps, {key: [value] for key, value in found.values.items()})
                for one, found in self.figures.items()]

    @cached_property
    def reference(self) -> Sampler | None:
        return reference_of(self.job.samplers)

    def tables(self) -> list[Table]:
        """Returns the comparison (Table 1's layout), figures of single clips, and unbiased distances."""
        against = TEACHER if self.reference else ""
        distances = {name: net.metric for name, net in self.nets.items()}
        metrics = {**COSTS, **distances, **METRICS, **COSTS}
        if self.reference:
            metrics["trajectory"] = replace(
                metrics["trajectory"], about="mean squared difference, in latents, to the teacher's "
                f"{self.reference.steps}-step sample from the same noise; 0 is the same clip")
        count = self.job.clips.count
        few = (f"{count} clips are few: the Frechet distance of a small set is mostly bias; compare at equal "
               f"counts, and use {FEW} or more.")
        first = comparison(self.rows, metrics=metrics, against=against,
                           title=f"{count} clips of the {self.job.clips.part} split")
        first = replace(first, note=" ".join([first.note, *[few] * (count < FEW), *self.notes]))
        real = Row("real", None, {key: [value] for key, value in self.measured[None].values.items()})
        second = comparison([real, *self.rows], metrics=SINGLE, against=against, title="Per-clip figures")
        second = replace(second, note="Means over clips; the real clips were encoded and decoded.")
        return [first, second, *self.unbiased()]

    def unbiased(self) -> list[Table]:
        names = [name for name in self.nets if any(name in of.estimates for of in self.figures.values())]
        if not names:
            return []
        lines = [[one.model.name, str(one.steps), *(str(found.estimates[name]) for name in names)]
                 for one, found in self.figures.items()]
        note = ("Distances of finite sets are biased upwards, more for fewer clips. A jackknife over groups "
                "of clips removes the bias, and the groups' spread gives the interval: the range of another "
                "draw of as many clips. All rows share their clips, so differences between rows are more "
                "certain than the intervals.")
        return [Table("Unbiased distances and intervals",
                      ["", "steps", *(self.nets[name].metric.label for name in names)], lines, note)]

    def headline(self) -> Headline | None:
        """Returns the speed-up of the student with the smallest distance (or of the first student)."""
        by = {one: found.values for one, found in self.figures.items()}
        students = [one for one in by if one.model.name != TEACHER]
        if self.reference is None:
            return None
        distance = next(iter(self.nets), None)
        best = min(students, key=lambda one: by[one][distance]) if distance else students[0]
        remark, (slow, fast) = "", (by[one]["seconds"] for one in (self.reference, best))
        if distance:
            a, b = (by[one][distance] for one in (best, self.reference))
            remark = (f"{self.nets[distance].metric.label}: {a:.1f} for {best.model.name} at {best.steps} "
                      f"steps, {b:.1f} for the teacher at {self.reference.steps}.")
        return Headline(f"{slow / fast:.1f} times faster",
                        f"{best.model.name} makes a clip in {best.steps} steps and {fast:.3g}\u00a0s; the "
                        f"teacher in {self.reference.steps} guided steps and {slow:.3g}\u00a0s.", remark)

    def write(self, path: Path, codec: Codec) -> Path:
        """Writes the page; returns its path."""
        clips, models = self.job.clips, {one.model.name: one.model for one in self.job.samplers}
        configs = {name: yaml.safe_dump(to_dict(model.trained), sort_keys=False)
                   for name, model in models.items() if model.trained}
        facts = environment() | {"clips": f"{clips.count} of the {clips.part} split, seed {clips.seed}"}
        sections = [samples(self.job, codec), self.headline(), *self.tables()]
        title = f"Evaluation of {', '.join(name for name in models if name != TEACHER)}"
        return write_report(path, title, [s for s in sections if s], About(facts, configs))

    def as_json(self) -> dict[str, Any]:
        """Returns the content of figures.json."""
        entries = as_json(self.rows)
        for (one, found), entry in zip(self.figures.items(), entries, strict=True):
            entry |= {"model": str(one.model.given), "sampling": asdict(one.model.sampling),
                      "estimates": {name: asdict(of) for name, of in found.estimates.items()}}
        return {"clips": self.job.clips.about, "device": name_of(self.job.device), "notes": self.notes,
                "rows": entries}


def samples(job: Job, codec: Codec) -> Samples:
    """Returns clips of the first batches: condition, real and teacher always shown, others by choice."""
    batches = [k for k in range(len(job.clips)) if job.clips.numbers(k).start < SHOWN]
    device = getattr(codec, "device", torch.device("cpu"))
    captions = [caption for k in batches for caption in job.clips[k].captions]
    shown = various(captions)[:SHOWN]

    def pixels(latents: Callable[[int], Tensor]) -> list[Tensor]:
        z = torch.cat([latents(k) for k in batches])
        return [decoded(codec, z[i:i + 1], device)[0] for i in shown]

    def column(one: Sampler, label: str) -> Column:
        return Column(label, pixels(lambda k: job.latents(one, k)))

    real, reference = pixels(lambda k: job.clips[k].x0), reference_of(job.samplers)
    always = [Column("condition", [clip[:, :1] for clip in real]), Column("real", real, "through the codec")]
    if reference:
        always.append(column(reference, f"teacher, {reference.steps} steps"))
    chosen: dict[str, list[Column]] = {}
    for one in sorted(job.samplers, key=lambda one: one.model.name == TEACHER):
        if one != reference:
            chosen.setdefault(one.model.name, []).append(column(one, f"{one.model.name}, {one.steps} steps"))
    return Samples("Samples", [captions[i] for i in shown], always, chosen, fps=rate(job),
                   note="Each row has the same first frame, caption and noise.")


def various(captions: list[str]) -> list[int]:
    """Returns indices of the clips, the first of each caption before the second of any."""
    seen = Counter()
    turns = [seen.update([caption]) or seen[caption] for caption in captions]
    return sorted(range(len(captions)), key=turns.__getitem__)


def rate(job: Job) -> float:
    """Returns frames per second of the clips; the page's default for sources without a rate."""
    data = job.clips.about["data"]
    framing = (job.clips.about["shards"] or {}).get("framing", data)
    return framing.get("rate", Samples.fps)
