"""The single-process engine: nothing is sharded.

A trained bfloat16 parameter has an fp32 master, which the optimizer updates and which is then copied to the
parameter; so has its average.  Student, average, teacher, masters and 32-bit moments: 22 bytes a parameter.
"""

import torch
from torch import Tensor, nn

from swiftvideo_fast.config import Config, Optim
from swiftvideo_fast.train.checkpoint import Shard
from swiftvideo_fast.train.ema import Ema
from swiftvideo_fast.train.optimizer import adamw, moments, prime, set_rate, set_steps
from swiftvideo_fast.train.ranks import SINGLE_RANK, local_device, micro_batches, use_deterministic_kernels


class Single:
    """engine.Engine in one process."""

    mapped = False

    def __init__(self, cfg: Config):
        if cfg.engine.deterministic:
            use_deterministic_kernels()
        self.device, self.ranks = local_device(), SINGLE_RANK
        self.passes, _ = micro_batches(cfg, SINGLE_RANK)

    def trained(self, net: nn.Module, optim: Optim) -> "Trained":
        return Trained(net.to(self.device), optim, self.passes)

    def averaged(self, net: nn.Module, optim: Optim, decay: float) -> tuple["Trained", Ema]:
        trained = self.trained(net, optim)
        return trained, Ema(trained, decay)

    def frozen(self, net: nn.Module) -> nn.Module:
        return net.to(self.device).requires_grad_(False).eval()


class Trained:
    """engine.Trained in one process.  masters: fp32 weights by name; for fp32 parameters, the parameters."""

    def __init__(self, net: nn.Module, optim: Optim, passes: int):
        self.net, self.optim, self.passes = net, optim, passes
        self.named = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self.masters = {name: p if p.dtype.itemsize >= 4 else p.detach().float()
                        for name, p in self.named.items()}
        self.optimizer = adamw(self.masters.values(), optim)
        prime(self.optimizer, self.masters.values())
        self.steps = torch.zeros(1)

    def backward(self, loss: Tensor) -> None:
        (loss / self.passes).backward()

    def step(self, lr: float) -> float:
        norm = nn.utils.clip_grad_norm_(self.named.values(), self.optim.clip)
        if norm.isfinite():
            set_rate(self.optimizer, lr)
            self._update()
            self.steps += 1
        for p in self.named.values():
            p.grad = None
        return norm.item()

    def _update(self) -> None:
        """One optimizer step.  Masters are stepped one at a time, so only one fp32 gradient is alive."""
        separate = {name for name, master in self.masters.items() if master is not self.named[name]}
        if not separate:
            self.optimizer.step()
            return
        group = self.optimizer.param_groups[0]
        kept = group["params"]
        for name, master in self.masters.items():
            p = self.named[name]
            if name in separate:
                master.grad, p.grad = p.grad.float(), None
            group["params"] = [master]
            self.optimizer.step()
            if name in separate:
                master.grad = None
                p.data.copy_(master)
        group["params"] = kept

    def shards(self) -> dict[str, Shard]:
        """Master weights, buffers, AdamW moments and the step count."""
        found = {f"weight/{name}": p for name, p in self.masters.items()}
        found |= {f"buffer/{name}": b for name, b in self.net.named_buffers()}
        for name, p in self.masters.items():
            found |= {f"{kind}/{name}": x for kind, x in moments(self.optimizer.state[p]).items()}
        return {name: Shard.whole(x) for name, x in found.items()} | {"steps": Shard.whole(self.steps)}

    def after_restore(self) -> None:
        set_steps(self.optimizer, int(self.steps))
        for name, p in self.named.items():
            if self.masters[name] is not p:
                p.data.copy_(self.masters[name])
