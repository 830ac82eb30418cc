"""The multi-process engine: DeepSpeed ZeRO-3.  No other file imports DeepSpeed.

Every network is sharded.  Of each parameter a rank holds the flat slice [rank c, (rank + 1) c) with
c = ceil(numel / world), and gathers the rest block by block during compute.  A trained network's slice is
held twice: as stored (bf16 or fp32) and as an fp32 master with AdamW moments.  The average is a separate
frozen network with fp32 slices updated from the masters: updates of 1e-6, lost in bf16, are kept, and no
communication is needed.
"""

import copy
import logging
import os
import socket
import warnings
from types import ModuleType

import torch
from torch import Tensor, nn
from torch import distributed as dist

from swiftvideo_fast.config import Config, Optim
from swiftvideo_fast.models.ulysses import Ulysses
from swiftvideo_fast.train import ema
from swiftvideo_fast.train.checkpoint import Shard
from swiftvideo_fast.train.optimizer import adamw, moments, prime, set_rate, set_steps
from swiftvideo_fast.train.ranks import (
    Ranks,
    local_device,
    micro_batches,
    rank_and_world,
    use_deterministic_kernels,
)

BUCKET = 100_000_000        # gradients reduced at once


class Zero3:
    """engine.Engine over all processes of the launcher (torchrun or deepspeed).

    From a memory-mapped weight file, a rank holds at most its slices and one full module at a time.
    """

    mapped = True

    def __init__(self, cfg: Config):
        self.options, self.ranks = cfg.engine, Ranks(*rank_and_world(), sequence=cfg.engine.sequence)
        self.passes, _ = micro_batches(cfg, self.ranks)
        if self.options.deterministic:
            use_deterministic_kernels()
        self.device = local_device()
        self.deepspeed = _start(self.device)
        self.ulysses = _sequence_group(self.ranks)

    def averaged(self, net: nn.Module, optim: Optim, decay: float) -> tuple["ShardedTrained", "ShardedEma"]:
        same = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in net.parameters()}
        average = copy.deepcopy(net, same)                  # shares the weights until each is sharded
        trained = self.trained(net, optim)
        return trained, ShardedEma(self.frozen(average), trained, decay)

    def trained(self, net: nn.Module, optim: Optim) -> "ShardedTrained":
        optimizer = adamw([p for p in net.parameters() if p.requires_grad], optim)
        config = self._config(net, optim.clip)
        engine, *_ = self.deepspeed.initialize(model=self._prepared(net, config), optimizer=optimizer,
                                               config=config)
        return ShardedTrained(engine, self.ranks, self.passes)

    def frozen(self, net: nn.Module) -> nn.Module:
        config = self._config(net)
        net = self._prepared(net.requires_grad_(False).eval(), config)
        engine, *_ = self.deepspeed.initialize(model=net, config=config)
        return engine.module

    def _prepared(self, net: nn.Module, config: dict) -> nn.Module:
        """Shards a network that lists `leaves` module by module; each leaf is gathered once for its values
        and tangents.  Any other network is left to DeepSpeed's own sharding."""
        if hasattr(net, "leaves"):
            self.deepspeed.utils.set_z3_leaf_modules(net, list(net.leaves))
            dtype = getattr(torch, self.options.dtype)
            for module in reversed([*net.modules()]):       # children before parents
                for p in module.parameters(recurse=False):
                    p.data = p.data.to(dtype, copy=True)
                self.deepspeed.zero.Init(module=module, config_dict_or_path=config)
            if self.ulysses:
                net.share_tokens(self.ulysses)
        return net

    def _config(self, net: nn.Module, clip: float = 0.0) -> dict:
        o = self.options
        zero = {
            "stage": 3,
            "memory_efficient_linear": False,           # DeepSpeed's F.linear would drop tangents
            "stage3_param_persistence_threshold": 0,    # a persistent parameter would miss the EMA's updates
            "reduce_bucket_size": min(BUCKET, sum(p.numel() for p in net.parameters())),
        }
        if o.offload:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self.device.type == "cuda"}
        return {
            "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,     # set by the loop
            "gradient_clipping": clip,
            "bf16": {"enabled": o.dtype == "bfloat16"},
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
        }


class ShardedTrained:
    """engine.Trained under ZeRO-3.  net: its parameters are empty between calls."""

    def __init__(self, engine, ranks: Ranks, passes: int):
        self.engine, self.net = engine, EngineModule(engine)
        self.ranks, self.passes = ranks, passes
        self.named = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
        self.zero, self.optimizer = engine.optimizer, engine.optimizer.optimizer
        self.steps, self.done = torch.zeros(1), 0
        prime(self.optimizer, self.zero.fp32_partitioned_groups_flat)

    def backward(self, loss: Tensor) -> None:
        self.done += 1
        self.engine.set_gradient_accumulation_boundary(self.done == self.passes)
        self.engine.backward(loss / self.passes)

    def step(self, lr: float) -> float:
        self.done = 0
        set_rate(self.optimizer, lr)
        self.engine.step()
        if self.zero.overflow:
            return float("nan")
        self.steps += 1
        return float(self.engine.get_global_grad_norm())

    def master(self, name: str, kind: str | None = None) -> Tensor:
        """Returns this rank's padded slice of the fp32 weight or of the moment `kind`, as a view."""
        group, begin, length = self._flat_slice(self.named[name])
        flat = self.zero.fp32_partitioned_groups_flat[group]
        return (flat if kind is None else self.optimizer.state[flat][kind]).narrow(0, begin, length)

    def shards(self) -> dict[str, Shard]:
        """As single.Trained.shards.  8-bit moments share scales across parameters and are saved per rank."""
        found = {f"weight/{name}": self._local_shard(name) for name in self.named}
        for i, flat in enumerate(self.zero.fp32_partitioned_groups_flat):
            state = moments(self.optimizer.state[flat])
            if all(x.shape == flat.shape for x in state.values()):
                found |= {f"{kind}/{name}": self._local_shard(name, kind) for kind in state
                          for name, p in self.named.items() if self._flat_slice(p)[0] == i}
            else:
                found |= {f"{kind}/group {i}": self._per_rank(x) for kind, x in state.items()}
        found |= {f"buffer/{name}": Shard.whole(b) for name, b in self.net.named_buffers()}
        return found | {"steps": Shard.whole(self.steps)}

    def after_restore(self) -> None:
        set_steps(self.optimizer, int(self.steps))
        for name, p in self.named.items():
            p.ds_tensor.data.copy_(self.master(name))

    def _flat_slice(self, p: nn.Parameter) -> tuple[int, int, int]:
        """(group, begin, length) of this rank's slice in DeepSpeed's flat groups."""
        return self.zero.grad_position[self.zero.get_param_id(p)]

    def _per_rank(self, x: Tensor) -> Shard:
        return Shard(x.view(-1), (self.ranks.world * x.numel(),), self.ranks.rank * x.numel())

    def _local_shard(self, name: str, kind: str | None = None) -> Shard:
        return local_shard(self.master(name, kind), self.named[name], self.ranks.rank)


class EngineModule:
    """Callable that goes through the DeepSpeed engine in training mode with grad enabled, else to the module.

    DeepSpeed counts micro-batches by engine calls; a call whose gradient is only inspected would be counted
    and leave stale gradients.  Calls without a backward bypass the engine.
    """

    def __init__(self, engine):
        self.engine = engine

    def __call__(self, *args, **kwargs):
        if not (self.engine.module.training and torch.is_grad_enabled()):
            return self.engine.module(*args, **kwargs)
        return self.engine(*args, **kwargs)

    def __getattr__(self, name: str):
        return getattr(self.engine.module, name)


class ShardedEma:
    """As ema.Ema.  net: a frozen sharded network; its slices average the trained network's masters."""

    def __init__(self, net: nn.Module, trained: ShardedTrained, decay: float):
        self.net, self.trained, self.decay = net, trained, decay
        self.parameters = {name: net.get_parameter(name) for name in trained.named}
        self.averages = {name: self._start(name) for name in self.parameters}

    def _start(self, name: str) -> Tensor:
        stored, master = self.parameters[name].ds_tensor.data, self.trained.master(name)
        return stored if stored.dtype == master.dtype else master.clone()

    @property
    def copies(self) -> dict[str, Tensor]:
        """Stored slices by name; for fp32 storage, the averages themselves."""
        stored = {name: p.ds_tensor.data for name, p in self.parameters.items()}
        return {name: average if stored[name].dtype == average.dtype else stored[name]
                for name, average in self.averages.items()}

    @torch.no_grad()
    def update(self) -> None:
        masters = {name: self.trained.master(name) for name in self.averages}
        ema.update(self.averages, masters, self.copies, self.decay)

    def shards(self) -> dict[str, Shard]:
        return {f"weight/{name}": local_shard(average, self.parameters[name], self.trained.ranks.rank)
                for name, average in self.averages.items()}

    def after_restore(self) -> None:
        """Copies the fp32 averages to the stored slices."""
        for name, average in self.averages.items():
            self.parameters[name].ds_tensor.data.copy_(average)


def local_shard(padded: Tensor, p: nn.Parameter, rank: int) -> Shard:
    """Returns the rank's slice of parameter p, without its padding."""
    begin = min(rank * padded.numel(), p.ds_numel)
    return Shard(padded.detach()[:p.ds_numel - begin], tuple(p.ds_shape), begin)


def require_deepspeed(device: torch.device) -> ModuleType:
    """Returns the module; ValueError when it is not installed."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as why:
        raise ValueError("engine.name zero3 needs DeepSpeed: pip install swiftvideo_fast[deepspeed]") from why
    return deepspeed


def _start(device: torch.device):
    """Returns the DeepSpeed module, its process group initialised."""
    deepspeed = require_deepspeed(device)
    log = logging.getLogger("DeepSpeed")
    log.setLevel(logging.WARNING)
    log.addFilter(lambda record: "unknown inputs or outputs" not in record.getMessage())    # Duals
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    # DeepSpeed would compile a C++ all-reduce on first use, and hang on the lock of a killed compile.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        rank, world = rank_and_world()
        for key, value in {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1",
                           "MASTER_PORT": _free_port()}.items():
            os.environ.setdefault(key, str(value))
        deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo")
    return deepspeed


def _sequence_group(ranks: Ranks) -> Ulysses | None:
    """Returns the group of ranks that share this rank's clip.  Every rank creates every group."""
    if ranks.sequence == 1:
        return None
    groups = [dist.new_group(range(first, first + ranks.sequence))
              for first in range(0, ranks.world, ranks.sequence)]
    return Ulysses(groups[ranks.replica])


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
