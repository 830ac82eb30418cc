"""Flow matching (eq. 2), which trains the demo's teacher."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from swiftvideo_fast import path
from swiftvideo_fast.config.strict import SHARE, option
from swiftvideo_fast.objectives.base import STUDENT, Loss, Objective


@dataclass(frozen=True)
class Flow:
    """Flow matching (eq. 2).  drop_text: fraction of clips whose text is dropped, for guidance."""

    name: ClassVar[str] = "flow"
    drop_text: float = option(SHARE, 0.1)


class FlowMatching(Objective):
    """|| v - v_theta(x_t, t) ||^2, mean over elements; text is dropped from a fraction of clips."""

    Options = Flow
    from_scratch = True

    def loss(self, turn, nets, batch, rng, step, carry=None) -> Loss:
        point = path.draw(batch.x0, rng, self.cfg.times)
        dropped = (torch.rand(len(point.t), generator=rng) < self.options.drop_text).to(point.t.device)
        v = self.velocity(nets[STUDENT], point.x_t, point.t, batch.condition.drop_text(dropped))
        return Loss((v - point.velocity).square().mean(), {})
