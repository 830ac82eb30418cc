"""Trajectory alignment: DPO on samples of more steps against samples of fewer (eq. 11), and reflow.

    e(net, x0) = mean over elements of (v - net(x_t, t))^2      v = x1 - x0, x_t = (1 - t) x0 + t x1
    win, lose  = e(student, .) - e(reference, .)                of the winner and of the loser
    loss       = -log sigmoid(-beta / 2 (win - lose)) + lambda_RF e(student, winner)        mean over pairs

Winner and loser share x1 and t.  beta belongs to the *mean* over a clip's D elements, as published code has
it; for errors that are summed it would be beta / D.  At the start, where student and reference agree, the
first term is log 2 and its gradient beta / 4 of that of e(winner) - e(loser).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from swiftvideo_fast import path
from swiftvideo_fast.config import Ta
from swiftvideo_fast.data.pairs import Pairs
from swiftvideo_fast.models.conditioning import velocity
from swiftvideo_fast.objectives import Log, Objective


class TrajectoryAlignment(Objective):
    """student: trained.  reference: the student as it began, called as a network is."""

    def __init__(self, options: Ta, student: nn.Module, reference: Callable[..., Tensor]):
        self.options, self.student, self.reference = options, student, reference

    def __call__(self, point: path.Point, batch: Pairs, step: int,
                 rng: torch.Generator) -> tuple[Tensor, Log]:
        """Logged: win_diff and lose_diff (Figure 8); accuracy, the share of pairs told apart; saturation, the
        sigmoid's mean: 1/2 at the start, 1 where no pull is left; reflow, the winners' error."""
        o, B = self.options, len(batch)
        x1 = point.x1 if o.noise == "fresh" else batch.noise
        both = torch.arange(2 * B) % B                                  # winners, then losers
        x0, x1, t = torch.cat([batch.x0, batch.loser]), x1[both], point.t[both]
        x_t, condition = path.interpolate(x0, x1, t), batch.condition[both]

        def error(net: Callable[..., Tensor]) -> Tensor:
            return (x1 - x0 - velocity(net, x_t, t, condition)).square().flatten(1).mean(1)

        with torch.no_grad():
            began = error(self.reference)
        ours = error(self.student)
        win, lose = (ours - began).chunk(2)
        margin = -o.beta / 2 * (win - lose)
        reflow = ours[:B].mean()
        log = {"win_diff": win.mean(), "lose_diff": lose.mean(), "accuracy": (win < lose).to(win).mean(),
               "saturation": margin.sigmoid().mean(), "reflow": reflow}
        return o.reflow * reflow - logsigmoid(margin).mean(), {name: x.item() for name, x in log.items()}
