"""Health checks: non-finite (skipped) steps, and collapse alarms on held-out samples.

The alarms detect failures seen in few-step students of Wan: static copies of the first frame, a single
colour, a first frame unlike the conditioning frame.
"""

import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from swiftvideo_fast import sampler
from swiftvideo_fast.config import Config, Sample
from swiftvideo_fast.data.batch import Batch
from swiftvideo_fast.metrics.fidelity import motion_ratio
from swiftvideo_fast.models.family import Codec
from swiftvideo_fast.seeds import generator
from swiftvideo_fast.train import checkpoint
from swiftvideo_fast.train.ranks import Ranks
from swiftvideo_fast.train.samples import Samples

FEW_STEPS = {"teacher": 25, "student": 4, "average": 4}     # sampling steps by role: distillation
MANY_STEPS = dict.fromkeys(FEW_STEPS, 25)                   # training from data
ALARMS = {      # figure: (threshold relative to the real clips' value, message)
    "motion": (0.1, "its clips hardly move: copies of the first frame?"),
    "contrast": (0.3, "its clips are nearly one colour"),
    "first_frame": (0.5, "its first frames differ from the conditioning frames"),
}


class Guard:
    """Counts one network's consecutive non-finite-gradient steps; aborts after more than `limit`."""

    def __init__(self, role: str, limit: int, skipped: int):
        self.role, self.limit, self.skipped = role, limit, skipped

    def __call__(self, run: Path, step: int, loss: float, norm: float) -> int:
        """Returns the count; FloatingPointError when it exceeds the limit."""
        self.skipped = 0 if math.isfinite(norm) else self.skipped + 1
        if self.skipped > self.limit:
            raise FloatingPointError(
                f"{run}: {self.role}: at step {step} the loss is {loss}, its gradient norm {norm}, and "
                f"{self.skipped - 1} steps before it were skipped; the last good checkpoint is "
                f"{checkpoint.newest(run)}; lower its learning rate, in another run.dir")
        return self.skipped


class Watch:
    """Samples held-out clips every `every` steps and compares them with the real ones.

    nets: role -> network; student, average and teacher are sampled.  steps: role -> sampling steps.
    call: Family.call.
    """

    def __init__(self, cfg: Config, every: int, nets: dict[str, Callable], call: Callable, clips: Batch,
                 codec: Codec, device: torch.device, ranks: Ranks, steps: dict[str, int]):
        self.cfg, self.every, self.codec, self.ranks, self.call = cfg, every, codec, ranks, call
        self.nets = {role: nets[role] for role in ("student", "average", "teacher") if role in nets}
        self.clips, self.steps = clips.to(device), steps
        self.pixels = {"real": codec.decode(clips.x0)}

    def __call__(self, step: int) -> tuple[dict[str, float], Samples]:
        """Returns ({"average motion": 0.8, ...}, samples); warns when an alarm is raised."""
        for role, net in self.nets.items():
            if role != "teacher" or role not in self.pixels:
                self.pixels[role] = self._sampled(role, net)
        real, found = self.pixels["real"], {}
        for role in self.nets:
            figures = compare(self.pixels[role], real)
            found |= {f"{role} {figure}": value for figure, value in figures.items()}
            for alarm in alarms(figures) if self.ranks.rank == 0 else ():
                warnings.warn(f"{self.cfg.run.dir}: step {step}, {role}: {alarm}", stacklevel=2)
        names = {role: f"{role}, {self.steps[role]} steps" for role in self.nets}
        return found, Samples({names.get(role, role): x for role, x in self.pixels.items()},
                              self.clips.captions)

    @torch.no_grad()
    def _sampled(self, role: str, net: Callable) -> Tensor:
        rng = generator(self.cfg.run.seed, "watch")
        o, s = self.cfg.objective, self.cfg.sample
        options = Sample(guidance=o.guidance, shift=s.shift) if role == "teacher" else s
        x1 = torch.randn(self.clips.x0.shape, generator=rng).to(self.clips.x0.device)
        call = partial(self.call, net)
        z = sampler.generate(call, x1, self.clips.condition, self.steps[role], options, rng)
        return self.codec.decode(z.cpu())


def compare(clips: Tensor, real: Tensor) -> dict[str, float]:
    """Returns motion and contrast relative to the real clips, and the correlation of first frames.

    clips, real: (B, 3, T, H, W).
    """
    a, b = (x[:, :, 0].flatten(1) - x[:, :, 0].flatten(1).mean(1, keepdim=True) for x in (clips, real))
    return {"motion": motion_ratio(clips, real), "contrast": float(clips.std() / real.std()),
            "first_frame": float(torch.cosine_similarity(a, b).mean())}


def alarms(figures: dict[str, float]) -> list[str]:
    """Returns the messages of figures below their thresholds, or NaN."""
    return [words for name, (least, words) in ALARMS.items() if not figures[name] >= least]
