"""Trajectory alignment: DPO with many-step samples preferred over few-step ones (eq. 11), and reflow.

    e(net, x0) = mean over elements of (v - net(x_t, t))^2      v = x1 - x0, x_t = (1 - t) x0 + t x1
    win, lose  = e(student, .) - e(reference, .)                on the winner and on the loser
    loss       = -log sigmoid(-beta / 2 (win - lose)) + lambda_RF e(student, winner)        mean over pairs

Winner and loser share x1 and t.  beta applies to the *mean* over a clip's D elements, as in published code;
for summed errors it would be beta / D.  At the start, where student equals reference, the first term is
log 2 and its gradient is beta / 4 times that of e(winner) - e(loser).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from swiftvideo_fast import path
from swiftvideo_fast.config.strict import NATURAL, POSITIVE, Limit, one_of, option
from swiftvideo_fast.data.pairs import Pairs, PairShards
from swiftvideo_fast.data.source import Source
from swiftvideo_fast.objectives.base import STUDENT, Frozen, Loss, Network, Objective, WithoutAdapters

REFERENCE = "reference"


@dataclass(frozen=True)
class Ta:
    """Trajectory alignment: DPO on the student's own samples (eq. 11), and reflow on the winners.

    steps: sampling steps of winner and loser.  count: number of pairs.  winner: sampled, or real (Figure 6).
    pairs: folder written by `swiftvideo pairs`, default run.dir/pairs.  beta: for errors averaged over a
    clip's elements; 0 leaves reflow alone.  reflow: lambda_RF.  noise: fresh (eq. 11 as printed), or paired:
    the noise the pair was sampled from.  rank: LoRA rank on every linear layer; 0 trains all weights.
    """

    name: ClassVar[str] = "ta"
    steps: tuple[int, int] = option(Limit(lambda pair: pair[0] > pair[1] > 0, "two positive numbers, the "
                                               "first larger: winner's and loser's steps"), (8, 4))
    count: int = option(POSITIVE, 5000)
    winner: str = option(one_of("sampled", "real"), "sampled")
    pairs: str | None = None
    beta: float = option(NATURAL, 2500.0)
    reflow: float = option(NATURAL, 2.0)
    noise: str = option(one_of("fresh", "paired"), "fresh")
    rank: int = option(NATURAL, 64)


class TrajectoryAlignment(Objective):
    """TA.  student: trained.  reference: the student's initial weights, frozen."""

    Options = Ta

    def networks(self) -> dict[str, Network]:
        reference = WithoutAdapters(STUDENT) if self.options.rank else Frozen(self.setup.reference)
        return super().networks() | {REFERENCE: reference}

    def source(self, clips: Source) -> PairShards:
        return PairShards(self.cfg, self.setup.codec().identity)

    def loss(self, turn, nets, batch: Pairs, rng: torch.Generator, step, carry=None) -> Loss:
        """Logs win_diff and lose_diff (Figure 8); accuracy: fraction of pairs with win < lose; saturation:
        mean sigmoid, 1/2 at the start, 1 where the gradient vanishes; reflow: the winners' error."""
        o, B = self.options, len(batch)
        fresh, t = path.draw_noise(batch.x0, rng), path.draw_times(batch.x0, rng, self.cfg.times)
        both = torch.arange(2 * B) % B                                  # winners, then losers
        x0 = torch.cat([batch.x0, batch.loser])
        x1, t = (fresh if o.noise == "fresh" else batch.noise)[both], t[both]
        x_t, condition = path.interpolate(x0, x1, t), batch.condition[both]

        def error(net: Any) -> Tensor:
            return (x1 - x0 - self.velocity(net, x_t, t, condition)).square().flatten(1).mean(1)

        with torch.no_grad():
            initial = error(nets[REFERENCE])
        ours = error(nets[STUDENT])
        win, lose = (ours - initial).chunk(2)
        margin = -o.beta / 2 * (win - lose)
        reflow = ours[:B].mean()
        loss = o.reflow * reflow - logsigmoid(margin).mean()
        log = {"win_diff": win.mean(), "lose_diff": lose.mean(), "accuracy": (win < lose).to(win).mean(),
               "saturation": margin.sigmoid().mean(), "reflow": reflow}
        return Loss(loss, {name: x.item() for name, x in log.items()})
