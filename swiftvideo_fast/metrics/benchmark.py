"""The demo's benchmark: figures of samplers on held-out clips, with equal first frames and noise."""

from collections.abc import Callable

import torch
from torch import Tensor

from swiftvideo_fast import sampler
from swiftvideo_fast.config import Sample
from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.metrics import fidelity, frechet
from swiftvideo_fast.metrics.features import random_net, trained_net
from swiftvideo_fast.metrics.moments import Moments, moments
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.models.family import Codec
from swiftvideo_fast.seeds import generator

REFERENCE_STEPS = 25
Call = Callable[[Tensor, Tensor, Condition], Tensor]        # Family.call of a network


def sample(call: Call, clips: Batch, steps: int, sampling: Sample, seed: int, batch: int = 32) -> Tensor:
    """Returns latents (B, C, T, H, W) for the conditions of `clips`; noise depends on the seed alone."""
    out = []
    for start in range(0, len(clips), batch):
        part = clips[start:start + batch]
        x1 = torch.randn(part.x0.shape, generator=generator(seed, "noise", start))
        rng = generator(seed, "fresh noise", start)
        out.append(sampler.generate(call, x1, part.condition, steps, sampling, rng))
    return torch.cat(out)


class Benchmark:
    """Compares samples with real clips (encoded and decoded) of the same conditions.

    figures() has biased distances, comparable at equal numbers of clips.  estimate() is unbiased, with an
    interval over clips that treats samples of equal conditions as dependent.  The spread over training seeds
    is not included: it needs several runs.
    """

    def __init__(self, clips: Batch, codec: Codec, seed: int):
        self.clips, self.codec, self.seed = clips, codec, seed
        self.nets = {"frechet": trained_net(), "frechet_random": random_net()}
        self.real = codec.decode(clips.x0)
        self.moments = {name: self.moments_of(self.real, name) for name in self.nets}
        self.fits = {name: seen.gaussian() for name, seen in self.moments.items()}

    def sample(self, call: Call, steps: int, sampling: Sample) -> Tensor:
        return sample(call, self.clips, steps, sampling, self.seed)

    def reference(self, teacher: Call, guidance: float) -> Tensor:
        """Returns the teacher's REFERENCE_STEPS-step latents, for the trajectory error."""
        return self.sample(teacher, REFERENCE_STEPS, Sample(guidance=guidance))

    def figures(self, z: Tensor, reference: Tensor) -> dict[str, float]:
        """Returns metric -> value (report.tables.METRICS) of generated latents."""
        pixels = self.codec.decode(z)
        return {name: self.distance(pixels, name) for name in self.nets} | {
            "trajectory": fidelity.trajectory_error(z, reference).mean().item(),
            "detail": fidelity.detail_ratio(pixels, self.real),
            "motion": fidelity.motion_ratio(pixels, self.real),
            "psnr": fidelity.first_frame_psnr(pixels, self.real[:, :, 0]).mean().item(),
        }

    def distance(self, pixels: Tensor, name: str = "frechet") -> float:
        """Returns the (biased) Frechet distance to the real clips."""
        return frechet.distance(self.moments_of(pixels, name).gaussian(), self.fits[name])

    def estimate(self, pixels: Tensor, name: str = "frechet") -> frechet.Estimate:
        """Returns the unbiased distance and interval.  ValueError below frechet.fewest(64) = 128 clips."""
        return frechet.estimate(self.moments_of(pixels, name), self.moments[name])

    def moments_of(self, pixels: Tensor, name: str) -> Moments:
        return moments(self.nets[name].extract, [pixels])
