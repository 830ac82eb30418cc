"""What watches a run: steps that are no steps, and samples that say it collapses.

The alarms are of what has happened to few-step students of Wan: a copy of the first frame that does not move,
one colour, a first frame that is not the one that was given.
"""

import math
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from swiftvideo_fast import sampler
from swiftvideo_fast.config import Config
from swiftvideo_fast.data.latents import Latents
from swiftvideo_fast.models.codec import PcaCodec
from swiftvideo_fast.sampler import Sampling
from swiftvideo_fast.seeds import generator
from swiftvideo_fast.train import checkpoint
from swiftvideo_fast.train.plain import Engine

STEPS = {"teacher": 25, "student": 4, "average": 4}     # that each is sampled at
ALARMS = {      # figure: (what is below this share of the real clips', what that means)
    "motion": (0.1, "its clips hardly move: copies of the first frame?"),
    "contrast": (0.3, "its clips are nearly of one colour"),
    "first_frame": (0.5, "their first frames are not those that were given"),
}


class Guard:
    """Counts the steps in a row that were skipped, their gradient not being finite, and gives up."""

    def __init__(self, limit: int, skipped: int):
        self.limit, self.skipped = limit, skipped

    def __call__(self, run: Path, done: int, log: dict) -> int:
        """How many have been skipped; FloatingPointError when these are more than the limit."""
        self.skipped = 0 if math.isfinite(log["grad_norm"]) else self.skipped + 1
        if self.skipped > self.limit:
            raise FloatingPointError(
                f"{run}: at step {done - 1} the loss is {log['loss']}, its gradient norm {log['grad_norm']}, "
                f"and {self.skipped - 1} steps before it were skipped; the last good checkpoint is "
                f"{checkpoint.newest(run)}; lower optim.lr, in another run.dir")
        return self.skipped


class Watch:
    """Every cfg.run.watch_every steps: held-out clips as the networks make them now, beside the real ones.

    nets: "student", "average" and, where there is one, "teacher".
    """

    def __init__(self, cfg: Config, nets: dict[str, nn.Module], clips: Latents, codec: PcaCodec,
                 engine: Engine):
        self.cfg, self.nets, self.codec, self.engine = cfg, nets, codec, engine
        self.clips = clips.to(engine.device)
        self.pixels = {"real": codec.decode(clips.x0)}

    def __call__(self, step: int) -> tuple[dict[str, float], Tensor]:
        """({"average motion": 0.8, ...}, strips (3, H, W) in [0, 1]); warns of what looks like a collapse."""
        for name, net in self.nets.items():
            if name != "teacher" or name not in self.pixels:
                self.pixels[name] = self._sampled(name, net)
        real, found = self.pixels["real"], {}
        for name in self.nets:
            figures = likeness(self.pixels[name], real)
            found |= {f"{name} {figure}": value for figure, value in figures.items()}
            for alarm in alarms(figures) if self.engine.ranks.rank == 0 else ():
                warnings.warn(f"{self.cfg.run.dir}: step {step}, {name}: {alarm}", stacklevel=2)
        return found, strips(self.pixels)

    @torch.no_grad()
    def _sampled(self, name: str, net: nn.Module) -> Tensor:
        s, rng = self.cfg.sample, generator(self.cfg.run.seed, "watch")
        how = Sampling(STEPS[name], s.sampler, s.shift, s.guidance)
        if name == "teacher":
            how = Sampling(STEPS[name], guidance=self.cfg.objective.guidance)
        x1 = torch.randn(self.clips.x0.shape, generator=rng).to(self.engine.device)
        return self.codec.decode(sampler.generate(net, x1, self.clips.condition, how, rng).cpu())


def likeness(clips: Tensor, real: Tensor) -> dict[str, float]:
    """Shares of the real clips' motion and contrast, correlation of first frames.  Clips: (B, 3, T, H, W)."""
    def motion(x: Tensor) -> Tensor:
        return x.diff(dim=2).abs().mean()

    a, b = (x[:, :, 0].flatten(1) - x[:, :, 0].flatten(1).mean(1, keepdim=True) for x in (clips, real))
    return {"motion": float(motion(clips) / motion(real)), "contrast": float(clips.std() / real.std()),
            "first_frame": float(torch.cosine_similarity(a, b).mean())}


def alarms(figures: dict[str, float]) -> list[str]:
    return [words for name, (least, words) in ALARMS.items() if not figures[name] >= least]


def strips(pixels: dict[str, Tensor]) -> Tensor:
    """A row a clip: the first, the middle and the last frame of each of the networks', side by side."""
    ends = [x[:, :, [0, x.shape[2] // 2, -1]] for x in pixels.values()]
    B, C, _, H, _ = ends[0].shape
    rows = torch.cat(ends, 2).permute(1, 0, 3, 2, 4).reshape(C, B * H, -1)
    return (rows.clamp(-1, 1) + 1) / 2
