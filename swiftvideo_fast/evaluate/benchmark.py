"""The benchmark: held-out clips, the same first frames and noise for every sampler, a row of figures each."""

from functools import cached_property

import torch
from torch import Tensor

from swiftvideo_fast import sampler
from swiftvideo_fast.data.latents import Latents
from swiftvideo_fast.evaluate import fidelity, frechet
from swiftvideo_fast.evaluate.features import random_net, trained_net
from swiftvideo_fast.models.codec import PcaCodec
from swiftvideo_fast.models.wan import Wan
from swiftvideo_fast.sampler import Sampling
from swiftvideo_fast.seeds import generator

REFERENCE_STEPS = 25        # of the teacher, for the trajectory error


def sample(net: Wan, clips: Latents, how: Sampling, seed: int, batch: int = 32) -> Tensor:
    """Latents (B, 16, T, H, W) generated for the conditions of `clips`; x1 depends on the seed alone."""
    out = []
    for start in range(0, len(clips), batch):
        part = clips[start:start + batch]
        x1 = torch.randn(part.x0.shape, generator=generator(seed, "noise", start))
        out.append(sampler.generate(net, x1, part.condition, how, generator(seed, "fresh noise", start)))
    return torch.cat(out)


class Benchmark:
    """Real clips through the codec, and the teacher's 25-step samples, to hold every other sample against."""

    def __init__(self, clips: Latents, codec: PcaCodec, teacher: Wan, seed: int, guidance: float = 3.0):
        self.clips, self.codec, self.seed = clips, codec, seed
        self.teacher, self.guidance = teacher, guidance
        self.nets = {"frechet": trained_net(), "frechet_random": random_net()}
        self.real = codec.decode(clips.x0)
        self.fits = {name: frechet.fit(net.extract(self.real)) for name, net in self.nets.items()}

    @cached_property
    def reference(self) -> Tensor:
        return self.sample(self.teacher, Sampling(REFERENCE_STEPS, guidance=self.guidance))

    def sample(self, net: Wan, how: Sampling) -> Tensor:
        return sample(net, self.clips, how, self.seed)

    def figures(self, z: Tensor) -> dict[str, float]:
        """metric -> value (evaluate.tables.METRICS), of generated latents for these clips."""
        pixels = self.codec.decode(z)
        return {name: self.distance(pixels, name) for name in self.nets} | {
            "trajectory": fidelity.trajectory_error(z, self.reference).mean().item(),
            "detail": fidelity.detail_ratio(pixels, self.real),
            "motion": fidelity.motion_ratio(pixels, self.real),
            "psnr": fidelity.first_frame_psnr(pixels, self.real[:, :, 0]).mean().item(),
        }

    def distance(self, pixels: Tensor, name: str = "frechet") -> float:
        """Between the features of these clips and of the real ones."""
        return frechet.distance(frechet.fit(self.nets[name].extract(pixels)), self.fits[name])
