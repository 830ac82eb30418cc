"""AdamW, and what the engines ask of it: states that are there from the start, a rate, a count of steps."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from swiftvideo_fast.config import Optim


def adamw(parameters: Iterable[nn.Parameter], optim: Optim) -> torch.optim.Optimizer:
    """AdamW at rate 0."""
    options = {"lr": 0.0, "betas": optim.betas, "weight_decay": optim.weight_decay}
    if optim.moments == 32:
        return torch.optim.AdamW(parameters, fused=True, **options)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as why:
        raise ValueError("optim.moments 8 wants bitsandbytes: pip install swiftvideo_fast[adam8bit]") from why
    return AdamW8bit(parameters, **options)


def prime(optimizer: torch.optim.Optimizer, tensors: Iterable[Tensor]) -> None:
    """A step of gradient 0 at rate 0, one tensor after the other: it makes moments and moves nothing."""
    group = optimizer.param_groups[0]
    kept = group["params"]
    for p in tensors:
        grad = p.grad
        group["params"], p.grad = [p], torch.zeros_like(p)
        optimizer.step()
        p.grad = grad
    group["params"] = kept
    set_steps(optimizer, 0)


def moments(state: dict) -> dict[str, Tensor]:
    """What a step changes of a tensor's state: not the count, nor the codes that all 8-bit moments share."""
    return {kind: x for kind, x in state.items() if kind not in ("step", "qmap1", "qmap2")}


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def set_steps(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Adam corrects its moments for the steps taken so far."""
    for state in optimizer.state.values():
        if isinstance(state["step"], int):
            state["step"] = steps
        else:
            state["step"].fill_(steps)
