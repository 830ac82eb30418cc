"""Sequence parallelism by heads (DeepSpeed Ulysses, arXiv 2309.14509): a clip's tokens over several ranks.

    elsewhere           n = N / R tokens, all channels
    in self-attention   N tokens, C / R channels: whole heads, so softmax sees every key
An all-to-all before attention and one after it convert between the two; q, k, v and their tangents share one.
An all-to-all is its own transpose, so the backward is the same exchange of the cotangents.

Every rank computes the full loss from the gathered velocity; its backward yields the part of the gradient
that passes through its own tokens.  Engines average gradients over ranks, so `gather` scales its cotangent by
R.

Letters as in wan/network.py; R ranks, n = N / R tokens, c = C / R channels.  Accepts tensors and Duals.
"""

import torch
from torch import Tensor
from torch import distributed as dist

from swiftvideo_fast.dual import Dual, has_tangent, parts


class Ulysses:
    """A sequence-parallel group; ranks are in the order of their tokens."""

    def __init__(self, group: dist.ProcessGroup):
        self.group, self.rank, self.ranks = group, dist.get_rank(group), dist.get_world_size(group)

    def check(self, tokens: int, heads: int) -> None:
        """Raises ValueError unless the number of ranks divides both."""
        if tokens % self.ranks or heads % self.ranks:
            raise ValueError(f"Ulysses: {tokens} tokens and {heads} heads on {self.ranks} ranks; "
                             "want engine.sequence to divide both")

    def scatter(self, x) -> Tensor | Dual:
        """Returns this rank's slice (B, n, ...) of (B, N, ...)."""
        n = x.shape[1] // self.ranks
        return x.narrow(1, self.rank * n, n)

    def gather(self, x_BnC) -> Tensor | Dual:
        """All-gathers (B, n, C) to (B, N, C)."""
        def all_gather(x: Tensor) -> Tensor:            # (K, B, n, C) of K values and tangents
            slices = [torch.empty_like(x) for _ in range(self.ranks)]
            dist.all_gather(slices, x.contiguous(), self.group)
            return torch.cat(slices, 2)

        def own_slice(dy: Tensor) -> Tensor:
            n = dy.shape[2] // self.ranks
            return dy.narrow(2, self.rank * n, n) * self.ranks

        y, = _exchange([x_BnC], all_gather, own_slice)
        return y

    def heads(self, *x_BnC) -> list:
        """Converts q, k, v (B, n, C) to (B, N, c) in one all-to-all."""
        return _exchange(x_BnC, self._heads, self._tokens)

    def tokens(self, x_BNc) -> Tensor | Dual:
        """Converts (B, N, c) to (B, n, C)."""
        y, = _exchange([x_BNc], self._tokens, self._heads)
        return y

    def _heads(self, x_KBnC: Tensor) -> Tensor:
        return self._swap(x_KBnC.unflatten(3, (self.ranks, -1)).movedim(3, 0)).movedim(0, 2).flatten(2, 3)

    def _tokens(self, x_KBNc: Tensor) -> Tensor:
        return self._swap(x_KBNc.unflatten(2, (self.ranks, -1)).movedim(2, 0)).movedim(0, 3).flatten(3, 4)

    def _swap(self, x: Tensor) -> Tensor:
        """All-to-all: rank r sends x[s] to rank s and receives its x[r] as y[s]."""
        x = x.contiguous()
        y = torch.empty_like(x)
        dist.all_to_all_single(y, x, group=self.group)
        return y


def _exchange(xs, forward, backward) -> list:
    """Applies `forward` to each of xs in one message; `backward` maps the cotangents of the values."""
    values, tangents = zip(*map(parts, xs))
    if not has_tangent(list(xs)):
        return list(_Exchange.apply(torch.stack(values), forward, backward).unbind())
    with torch.no_grad():
        tangents = [torch.zeros_like(p) if t is None else t for p, t in zip(values, tangents)]
        tangents = torch.stack(tangents)
    y, ty = _DualExchange.apply(torch.stack(values), tangents, forward, backward)
    return [Dual(p, t) for p, t in zip(y.unbind(), ty.unbind())]


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, forward, backward) -> Tensor:
        ctx.transpose = backward
        return forward(x)

    @staticmethod
    def backward(ctx, dy: Tensor):
        return ctx.transpose(dy), None, None


class _DualExchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, tx: Tensor, forward, backward) -> tuple[Tensor, Tensor]:
        ctx.transpose = backward
        y, ty = (part.clone() for part in forward(torch.cat([x, tx])).split(len(x)))
        ctx.mark_non_differentiable(ty)
        return y, ty

    @staticmethod
    def backward(ctx, dy: Tensor, _):
        return ctx.transpose(dy), None, None, None
