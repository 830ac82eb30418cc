"""Flow matching (eq. 2): how the demo's teacher is trained."""

import torch
from torch import Tensor, nn

from swiftvideo_fast import path
from swiftvideo_fast.config import Flow
from swiftvideo_fast.data.latents import Latents
from swiftvideo_fast.models.conditioning import Condition, velocity
from swiftvideo_fast.objectives import Log, Objective


class FlowMatching(Objective):
    """|| v - v_theta(x_t, t) ||^2, mean over elements, the text dropped from some clips."""

    def __init__(self, options: Flow, student: nn.Module):
        self.options, self.student = options, student

    def __call__(self, point: path.Point, batch: Latents, step: int,
                 rng: torch.Generator) -> tuple[Tensor, Log]:
        condition = batch.condition
        keep = (torch.rand(len(point.t), generator=rng) >= self.options.drop_text).to(point.t.device)
        text = torch.where(keep[:, None, None], condition.text, condition.null_text)
        dropped = Condition(condition.frames, text, condition.null_text, condition.image)
        loss = (velocity(self.student, point.x_t, point.t, dropped) - point.velocity).square().mean()
        return loss, {}
