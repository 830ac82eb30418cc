"""Random programs of views and writes, by jvp and by torch.func.jvp: `python tests/opdb_sweep.py --programs
3000`.

A program holds its input, views of it, its own buffers and constants.  Each step is a view, a copy, an
arithmetic op, a write through any of them, or a detached alias.  It returns all tensors it holds.
"""

import random
from collections.abc import Callable, Iterator

import torch

from swiftvideo_fast import NoTangent, jvp

D = torch.float64
VIEWS = [
    lambda x, r: x[r.randrange(len(x)):] if x.dim() and len(x) else x, lambda x,
    r: x.transpose(0, -1) if x.dim() else x,
    lambda x, r: x[..., ::2] if x.dim() else x, lambda x, r: x.unsqueeze(r.randrange(x.dim() + 1)),
    lambda x, r: x.reshape(-1), lambda x, r: x.flatten(), lambda x, r: x.contiguous(), lambda x,
    r: x.squeeze(),
    lambda x, r: x.diagonal() if x.dim() == 2 else x, lambda x, r: x.expand(2, *x.shape), lambda x,
    r: x.T if x.dim() == 2 else x,
    lambda x, r: x.narrow(0, 0, 1) if x.dim() and len(x) else x, lambda x,
    r: x.unbind(0)[0] if x.dim() and len(x) else x,
    lambda x, r: x.view(x.shape), lambda x, r: x.to(D), lambda x, r: x.chunk(2, -1)[0] if x.dim() else x,
    lambda x, r: x.movedim(0, -1) if x.dim() else x, lambda x, r: x.as_strided(x.shape, x.stride()),
    lambda x, r: x.detach(), lambda x, r: x.clone(), lambda x, r: x * 1.5, lambda x, r: x.sin(), lambda x,
    r: x + 1,
    lambda x, r: torch.zeros_like(x), lambda x, r: x.new_zeros(x.shape), lambda x,
    r: torch.ones(x.shape, dtype=D),
    lambda x, r: torch.zeros(x.shape, dtype=D), lambda x, r: x.sum(-1) if x.dim() else x, lambda x,
    r: torch.cat([x.reshape(-1)] * 2),
]
WRITES = [
    lambda x, y, r: x.mul_(0.5), lambda x, y, r: x.add_(y), lambda x, y, r: x.copy_(y), lambda x, y,
    r: x.zero_(),
    lambda x, y, r: x.__setitem__(..., y), lambda x, y,
    r: x.__setitem__(0, y[0] if y.dim() == x.dim() else y),
    lambda x, y, r: x.sub_(y, alpha=2), lambda x, y, r: x.clamp_(-1, 1), lambda x, y, r: x.fill_(0.25),
    lambda x, y, r: x.lerp_(y, 0.3), lambda x, y, r: x.masked_fill_(x > 0.5, 0.1), lambda x, y, r: x.tanh_(),
    lambda x, y, r: x.addcmul_(y, y), lambda x, y, r: x.__imul__(y), lambda x, y, r: torch.sigmoid_(x),
    lambda x, y, r: x.index_fill_(0, torch.tensor([0]), 0.5), lambda x, y, r: x.unsqueeze_(0),
    lambda x, y, r: x.__setitem__(slice(None, None, 2), y[::2] if y.shape == x.shape else 0.5),
]


def program(seed: int, steps: int = 9) -> Callable:
    """fn(x) -> all tensors it held, of the steps that torch itself takes."""
    def run(x: torch.Tensor) -> list:
        r = random.Random(seed)
        held = [x * 1, torch.linspace(-1, 1, x.numel(), dtype=D).view(x.shape)]
        for _ in range(steps):
            at = r.randrange(len(held))
            if r.random() < 0.5:
                held.append(r.choice(VIEWS)(held[at], r))
                continue
            fits = [i for i, y in enumerate(held) if y.shape == held[at].shape]
            write, other = r.choice(WRITES), held[r.choice(fits)]
            if held[at].numel() and not overlapping(held[at]) and held[at].dim():
                write(held[at], other.clone(), r)       # torch's own y.mul_(y) has a wrong tangent
        return held
    return run


def overlapping(x: torch.Tensor) -> bool:
    return any(s == 0 and n > 1 for s, n in zip(x.stride(), x.shape))


def run(count: int, first: int = 0) -> Iterator[tuple[str, str, str]]:
    """(seed, "program", outcome) of each."""
    for seed in range(first, first + count):
        yield f"seed {seed}", "program", outcome(seed)


def outcome(seed: int) -> str:
    rng = torch.Generator().manual_seed(seed)
    shape = ((2, 4), (4, 4), (3, 2, 2), (5,))[seed % 4]
    x, v = (torch.randn(shape, generator=rng, dtype=D) for _ in range(2))
    try:
        want = torch.func.jvp(program(seed), (x,), (v,))
    except Exception:
        return "skipped"
    # torch's own, after unsqueeze_ of a base
    if any(y.shape != t.shape for y, t in zip(*want, strict=True)):
        return "skipped"
    try:
        got = jvp(program(seed), (x,), (v,))
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    except NoTangent:
        return "refused"
    except Exception as error:
        return f"wrong: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return "right"
