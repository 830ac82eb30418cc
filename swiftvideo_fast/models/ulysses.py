"""Sequence parallelism by heads (DeepSpeed Ulysses, arXiv 2309.14509): a clip's tokens over several ranks.

    everywhere          n = N / R tokens, all channels
    in self-attention   N tokens, C / R channels: whole heads, so softmax sees every key
An exchange before attention and one after it turn one into the other; q, k, v and their tangents travel
together.  An exchange is its own transpose, so the backward is the same exchange of the cotangents.

Every rank computes the whole loss from the gathered velocity, and its backward carries that part of the
gradient which passes through its own tokens; engines average gradients over ranks, so `gather` scales its
cotangent by R.

Letters as in wan/network.py; R ranks, n = N / R tokens, c = C / R channels.  Duals and tensors are
taken alike.
"""

import torch
from torch import Tensor
from torch import distributed as dist

from swiftvideo_fast.dual import Dual, has_tangent, parts


class Ulysses:
    """The ranks of one group, in the order of their tokens."""

    def __init__(self, group: dist.ProcessGroup):
        self.group, self.rank, self.ranks = group, dist.get_rank(group), dist.get_world_size(group)

    def check(self, tokens: int, heads: int) -> None:
        """ValueError unless both can be shared out."""
        if tokens % self.ranks or heads % self.ranks:
            raise ValueError(f"Ulysses: {tokens} tokens and {heads} heads on {self.ranks} ranks; "
                             "want engine.sequence to divide both")

    def scatter(self, x) -> Tensor | Dual:
        """(B, N, ...) -> this rank's (B, n, ...)."""
        n = x.shape[1] // self.ranks
        return x.narrow(1, self.rank * n, n)

    def gather(self, x_BnC) -> Tensor | Dual:
        """(B, n, C) -> (B, N, C)."""
        def joined(x: Tensor) -> Tensor:                # (K, B, n, C) of K values and tangents
            pieces = [torch.empty_like(x) for _ in range(self.ranks)]
            dist.all_gather(pieces, x.contiguous(), self.group)
            return torch.cat(pieces, 2)

        def own(dy: Tensor) -> Tensor:
            n = dy.shape[2] // self.ranks
            return dy.narrow(2, self.rank * n, n) * self.ranks

        y, = _together([x_BnC], joined, own)
        return y

    def heads(self, *x_BnC) -> list:
        """q, k, v (B, n, C) -> (B, N, c), in one exchange."""
        return _together(x_BnC, self._heads, self._tokens)

    def tokens(self, x_BNc) -> Tensor | Dual:
        """(B, N, c) -> (B, n, C)."""
        y, = _together([x_BNc], self._tokens, self._heads)
        return y

    def _heads(self, x_KBnC: Tensor) -> Tensor:
        return self._swap(x_KBnC.unflatten(3, (self.ranks, -1)).movedim(3, 0)).movedim(0, 2).flatten(2, 3)

    def _tokens(self, x_KBNc: Tensor) -> Tensor:
        return self._swap(x_KBNc.unflatten(2, (self.ranks, -1)).movedim(2, 0)).movedim(0, 3).flatten(3, 4)

    def _swap(self, x: Tensor) -> Tensor:
        """The s-th part of each rank's x, from rank s its r-th."""
        x = x.contiguous()
        y = torch.empty_like(x)
        dist.all_to_all_single(y, x, group=self.group)
        return y


def _together(xs, there, back) -> list:
    """Each of xs taken there, in one message; `back` takes the cotangents of the values."""
    values, tangents = zip(*map(parts, xs))
    if not has_tangent(list(xs)):
        return list(_Exchange.apply(torch.stack(values), there, back).unbind())
    with torch.no_grad():
        tangents = [torch.zeros_like(p) if t is None else t for p, t in zip(values, tangents)]
        tangents = torch.stack(tangents)
    y, ty = _DualExchange.apply(torch.stack(values), tangents, there, back)
    return [Dual(p, t) for p, t in zip(y.unbind(), ty.unbind())]


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, there, back) -> Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    def backward(ctx, dy: Tensor):
        return ctx.back(dy), None, None


class _DualExchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, tx: Tensor, there, back) -> tuple[Tensor, Tensor]:
        ctx.back = back
        y, ty = (part.clone() for part in there(torch.cat([x, tx])).split(len(x)))
        ctx.mark_non_differentiable(ty)
        return y, ty

    @staticmethod
    def backward(ctx, dy: Tensor, _):
        return ctx.back(dy), None, None, None
