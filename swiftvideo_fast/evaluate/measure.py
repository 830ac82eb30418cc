"""Figures of every sampler's clips, shared out among ranks by the batch; rank 0 puts the batches together.

    OUT/real/measured-1a2b3c4d-00000.safetensors        features and figures of a batch of real clips
    OUT/MODEL-STEPS/measured-5e6f7a8b-00000.safetensors the same of generated ones, and distances from others

The name tells what was measured with: other nets, or another teacher to hold against, have their own files.
Kept are numbers of each clip, not its pixels: memory holds one batch of two samplers, and a second call
measures what is new.  Real clips go through the codec, as generated ones do.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from swiftvideo_fast.data import shards
from swiftvideo_fast.evaluate.generate import COMMAND, Job, bar, costs
from swiftvideo_fast.evaluate.models import REAL, TEACHER, Sampler
from swiftvideo_fast.evaluate.nets import Nets
from swiftvideo_fast.metrics import fidelity, frechet
from swiftvideo_fast.metrics.frechet import Estimate
from swiftvideo_fast.metrics.moments import Moments
from swiftvideo_fast.models.family import Codec

MEASURED = "measured"
ALONE = {                       # figures of a clip by itself
    "detail": fidelity.detail, "motion": fidelity.motion, "flicker": fidelity.temporal_flickering,
    "sharpness": fidelity.sharpness_kept, "colour": fidelity.colour_drift,
}
RATIOS = "detail", "motion"     # of the set's mean to that of the real clips
MEANS = "trajectory", "psnr", "flicker", "sharpness", "colour"


@dataclass(frozen=True)
class Figures:
    """values: metric -> value.  estimates: of distances, without bias, where there are clips enough."""

    values: dict[str, float]
    estimates: dict[str, Estimate]


def reference_of(samplers: list[Sampler]) -> Sampler | None:
    """The teacher at its most steps: what trajectories are held against."""
    teachers = [one for one in samplers if one.model.name == TEACHER]
    return max(teachers, key=lambda one: one.steps, default=None)


def measure(job: Job, codec: Codec, nets: Nets) -> None:
    """Write this rank's share of what is not there yet."""
    reference = reference_of(job.samplers)
    about = {one: described(job, one, reference, nets) for one in (None, *job.samplers)}
    files = {one: files_of(job, one, about[one]) for one in about}
    device = getattr(codec, "device", torch.device("cpu"))
    for k in bar(job.ranks, iterable=job.mine, desc="measure", unit=" batches"):
        missing = [one for one in about if not shards.is_whole(files[one](k), about[one], COMMAND)]
        if not missing:
            continue
        real = decoded(codec, job.clips[k].x0, device)
        z_reference = reference and job.latents(reference, k)
        for one in missing:
            if one is None:
                found = of_clips(real, nets)
            else:
                z = finite(job.latents(one, k), one)
                pixels = decoded(codec, z, device)
                found = of_clips(pixels, nets) | {"psnr": fidelity.first_frame_psnr(pixels, real[:, :, 0])}
                if reference not in (None, one):
                    found |= {"trajectory": fidelity.trajectory_error(z, z_reference)}
            shards.write(files[one](k), found, about[one], list(job.clips.numbers(k)))


def described(job: Job, one: Sampler | None, reference: Sampler | None, nets: Nets) -> dict[str, Any]:
    """What decides a file's numbers."""
    figured = {"nets": {name: net.identity for name, net in nets.items()}, "figures": [*ALONE]}
    if one is None:
        return {"clips": job.clips.about} | figured
    held = reference and reference != one
    return {"latents": job.about(one), "reference": job.about(reference) if held else None} | figured


def files_of(job: Job, one: Sampler | None, about: dict[str, Any]) -> Callable[[int], Path]:
    """The file of a batch's number."""
    named = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
    folder = job.out / (one.folder if one else REAL)
    return lambda k: shards.file_of(folder, f"{MEASURED}-{named}", k)


def finite(z: Tensor, one: Sampler) -> Tensor:
    bad = (~z.isfinite().flatten(1).all(1)).sum().item()
    if bad:
        raise ValueError(f"{one.folder}: {bad} of {len(z)} clips are NaN or infinite: {one.model.given} "
                         "has diverged; leave it out")
    return z


@torch.no_grad()
def decoded(codec: Codec, z: Tensor, device: torch.device) -> Tensor:
    """Pixels on the CPU."""
    return codec.decode(z.to(device)).float().cpu()


def of_clips(pixels: Tensor, nets: Nets) -> dict[str, Tensor]:
    """A row a clip."""
    features = {name: net.extract(pixels).float().cpu() for name, net in nets.items()}
    return features | {name: of(pixels) for name, of in ALONE.items()}


def figures(job: Job, nets: Nets) -> dict[Sampler | None, Figures]:
    """Of the real clips, under None, and of each sampler, from all ranks' files."""
    def collected(one: Sampler | None) -> dict[str, Tensor]:
        file = files_of(job, one, described(job, one, reference_of(job.samplers), nets))
        parts = [load_file(file(k)) for k in range(len(job.clips))]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    real = collected(None)
    seen = {name: moments_of(real[name]) for name in nets}

    def means(rows: dict[str, Tensor]) -> dict[str, float]:
        still = rows["motion"] < fidelity.STILL * real["motion"].mean()
        return {name: rows[name].mean().item() for name in MEANS if name in rows} | {
            "still": still.double().mean().item()}

    found = {None: Figures(means(real), {})}
    for one in job.samplers:
        rows = collected(one)
        own = {name: moments_of(rows[name]) for name in nets}
        values = costs(job, one) | means(rows) | {
            name: frechet.distance(own[name].gaussian(), seen[name].gaussian()) for name in nets} | {
            name: (rows[name].mean() / real[name].mean()).item() for name in RATIOS}
        enough = [name for name in nets if len(rows[name]) >= frechet.fewest(own[name].features)]
        found[one] = Figures(values, {name: frechet.estimate(own[name], seen[name]) for name in enough})
    return found


def moments_of(features_BD: Tensor) -> Moments:
    seen = Moments(features_BD.shape[1])
    seen.update(features_BD)
    return seen
