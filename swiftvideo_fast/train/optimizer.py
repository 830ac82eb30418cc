"""AdamW with state allocated up front, and setters for its rate and step count."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from swiftvideo_fast.config import Optim


def adamw(parameters: Iterable[nn.Parameter], optim: Optim) -> torch.optim.Optimizer:
    """Returns AdamW at rate 0; 8-bit if optim.moments is 8 (ValueError without bitsandbytes)."""
    options = {"lr": 0.0, "betas": optim.betas, "weight_decay": optim.weight_decay}
    if optim.moments == 32:
        return torch.optim.AdamW(parameters, fused=True, **options)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as why:
        raise ValueError("optim.moments 8 needs bitsandbytes: pip install swiftvideo_fast[adam8bit]") from why
    return AdamW8bit(parameters, **options)


def prime(optimizer: torch.optim.Optimizer, tensors: Iterable[Tensor]) -> None:
    """Allocates the moments: a step with zero gradient at rate 0, one tensor at a time."""
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
    """Returns a tensor's moments (and 8-bit scales): its state without step count and shared 8-bit codes."""
    return {kind: x for kind, x in state.items() if kind not in ("step", "qmap1", "qmap2")}


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def set_steps(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Sets the step count, which Adam's bias correction uses."""
    for state in optimizer.state.values():
        if isinstance(state["step"], int):
            state["step"] = steps
        else:
            state["step"].fill_(steps)
