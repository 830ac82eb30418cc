"""Measures every sampler's clips, with batches distributed over ranks; rank 0 aggregates.

    OUT/real/measured-1a2b3c4d-00000.safetensors        features and figures of a batch of real clips
    OUT/MODEL-STEPS/measured-5e6f7a8b-00000.safetensors the same of generated clips, plus distances to others

The hash in the name covers feature nets and reference, so other nets or another teacher have separate files.
Numbers per clip are stored, not pixels: one batch of two samplers is in memory, and a second call measures
new batches only.  Real clips are encoded and decoded, as generated ones are decoded.
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
PER_CLIP = {                    # figures of single clips
    "detail": fidelity.detail, "motion": fidelity.motion, "flicker": fidelity.temporal_flickering,
    "sharpness": fidelity.sharpness_kept, "colour": fidelity.colour_drift,
}
RATIOS = "detail", "motion"     # ratio of the set's mean to the real clips' mean
MEANS = "trajectory", "psnr", "flicker", "sharpness", "colour"


@dataclass(frozen=True)
class Figures:
    """values: metric -> value.  estimates: unbiased distances, given enough clips."""

    values: dict[str, float]
    estimates: dict[str, Estimate]


def reference_of(samplers: list[Sampler]) -> Sampler | None:
    """Returns the teacher at its most steps, the reference of trajectory errors; None without a teacher."""
    teachers = [one for one in samplers if one.model.name == TEACHER]
    return max(teachers, key=lambda one: one.steps, default=None)


def measure(job: Job, codec: Codec, nets: Nets) -> None:
    """Writes this rank's missing measurements."""
    reference = reference_of(job.samplers)
    about = {one: described(job, one, reference, nets) for one in (None, *job.samplers)}
    files = {one: files_of(job, one, about[one]) for one in about}
    device = getattr(codec, "device", torch.device("cpu"))
    for k in bar(job.ranks, iterable=job.mine, desc="measure", unit=" batches"):
        missing = [one for one in about if not shards.is_written(files[one](k), about[one], COMMAND)]
        if not missing:
            continue
        real = decoded(codec, job.clips[k].x0, device)
        z_reference = reference and job.latents(reference, k)
        for one in missing:
            if one is None:
                found = per_clip(real, nets)
            else:
                z = finite(job.latents(one, k), one)
                pixels = decoded(codec, z, device)
                found = per_clip(pixels, nets) | {"psnr": fidelity.first_frame_psnr(pixels, real[:, :, 0])}
                if reference not in (None, one):
                    found |= {"trajectory": fidelity.trajectory_error(z, z_reference)}
            shards.write(files[one](k), found, about[one], list(job.clips.numbers(k)))


def described(job: Job, one: Sampler | None, reference: Sampler | None, nets: Nets) -> dict[str, Any]:
    """Returns everything that determines a file's numbers."""
    measured = {"nets": {name: net.identity for name, net in nets.items()}, "figures": [*PER_CLIP]}
    if one is None:
        return {"clips": job.clips.about} | measured
    other = reference and reference != one
    return {"latents": job.about(one), "reference": job.about(reference) if other else None} | measured


def files_of(job: Job, one: Sampler | None, about: dict[str, Any]) -> Callable[[int], Path]:
    """Returns batch number -> file."""
    named = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
    folder = job.out / (one.folder if one else REAL)
    return lambda k: shards.file_of(folder, f"{MEASURED}-{named}", k)


def finite(z: Tensor, one: Sampler) -> Tensor:
    """Returns z; ValueError when it is not finite."""
    bad = (~z.isfinite().flatten(1).all(1)).sum().item()
    if bad:
        raise ValueError(f"{one.folder}: {bad} of {len(z)} clips are NaN or infinite: {one.model.given} "
                         "has diverged; omit it")
    return z


@torch.no_grad()
def decoded(codec: Codec, z: Tensor, device: torch.device) -> Tensor:
    """Returns decoded pixels (B, 3, T, H, W) on the CPU."""
    return codec.decode(z.to(device)).float().cpu()


def per_clip(pixels: Tensor, nets: Nets) -> dict[str, Tensor]:
    """Returns features (B, D) and figures (B,) by name."""
    features = {name: net.extract(pixels).float().cpu() for name, net in nets.items()}
    return features | {name: figure(pixels) for name, figure in PER_CLIP.items()}


def figures(job: Job, nets: Nets) -> dict[Sampler | None, Figures]:
    """Returns the figures of each sampler, and of the real clips under None, from all ranks' files."""
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
