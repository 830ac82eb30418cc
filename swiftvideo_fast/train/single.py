"""The engine of one process: every tensor whole.

Stored as bfloat16, a trained parameter has an fp32 master, which the optimizer moves and the stored copy
follows; the average likewise: 22 bytes a parameter for student, average, teacher, masters and 32-bit moments.
"""

import torch
from torch import Tensor, nn

from swiftvideo_fast.config import Config, Optim
from swiftvideo_fast.train.checkpoint import Shard
from swiftvideo_fast.train.ema import Ema
from swiftvideo_fast.train.optimizer import adamw, moments, prime, set_rate, set_steps
from swiftvideo_fast.train.ranks import ALONE, micro_batches, own_device, use_deterministic_kernels


class Single:
    """As engine.Engine."""

    mapped = False

    def __init__(self, cfg: Config):
        if cfg.engine.deterministic:
            use_deterministic_kernels()
        self.device, self.ranks = own_device(), ALONE
        self.passes, _ = micro_batches(cfg, ALONE)

    def trained(self, net: nn.Module, optim: Optim) -> "Trained":
        return Trained(net.to(self.device), optim, self.passes)

    def averaged(self, net: nn.Module, optim: Optim, decay: float) -> tuple["Trained", Ema]:
        trained = self.trained(net, optim)
        return trained, Ema(trained, decay)

    def frozen(self, net: nn.Module) -> nn.Module:
        return net.to(self.device).requires_grad_(False).eval()


class Trained:
    """As engine.Trained.  masters: the fp32 weights by name; the parameters themselves where fp32."""

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
            self._move()
            self.steps += 1
        for p in self.named.values():
            p.grad = None
        return norm.item()

    def _move(self) -> None:
        """One step of all; of masters one after the other, so that one fp32 gradient is alive at a time."""
        apart = {name: master for name, master in self.masters.items() if master is not self.named[name]}
        if not apart:
            self.optimizer.step()
            return
        group = self.optimizer.param_groups[0]
        kept = group["params"]
        for name, master in self.masters.items():
            p = self.named[name]
            if name in apart:
                master.grad, p.grad = p.grad.float(), None
            group["params"] = [master]
            self.optimizer.step()
            if name in apart:
                master.grad = None
                p.data.copy_(master)
        group["params"] = kept

    def shards(self) -> dict[str, Shard]:
        """Weights (of masters), buffers, moments and the count of steps."""
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
