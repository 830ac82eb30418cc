"""One training step of public repositories, by their torch.func.jvp and by ours: loss, gradients, time, memory.

    git clone https://github.com/zhuyu-cs/MeanFlow /tmp/clones/zhuyu-cs-MeanFlow
    python tests/loops_of_others.py /tmp/clones            every clone found there, as a table

Their code is read from the clones and never copied here.  Each step is their loss on their network, small,
randomly initialised, in float64 and float32 on a CPU; what differs between the two runs is the jvp function that
their module calls.  Folders: OWNER-NAME.  Some want timm, einops, scipy, omegaconf and loguru.
"""

import argparse
import ast
import importlib
import math
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from time import process_time
from unittest import mock

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from swiftvideo_fast import functional_jvp, jvp


@contextmanager
def imports_of(folder: Path, *stubs: str) -> Iterator[None]:
    """A clone's modules by their own names, and nothing of them after; stubs: modules it imports and does not use."""
    before = dict(sys.modules)
    sys.path.insert(0, str(folder))
    for name in stubs:
        sys.modules[name] = mock.MagicMock()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - set(before):
            if str(folder) in str(getattr(sys.modules[name], "__file__", "")) or name in stubs:
                del sys.modules[name]


def stirred(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Weights that are not zero, else the tangent is."""
    torch.manual_seed(1)
    for p in net.parameters():
        if p.requires_grad:
            p.data += 0.05 * torch.randn_like(p)
    return net.to(dtype)


class Wrapped(nn.Module):
    """As DDP wraps: `.module`."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def zhuyu(folder: Path, dtype: torch.dtype):
    """MeanFlow's SiT: model.module, classifier-free guidance, split batches."""
    with imports_of(folder):
        loss, sit = importlib.import_module("loss"), importlib.import_module("sit")
    net = stirred(sit.SiT(input_size=SIDE, patch_size=2, in_channels=4, hidden_size=WIDTH, decoder_hidden_size=WIDTH,
                          depth=DEPTH, num_heads=4, num_classes=10, qk_norm=True, fused_attn=False), dtype)
    objective = loss.SILoss(cfg_omega=0.2, cfg_kappa=0.92, weighting="adaptive")
    x, y = torch.randn(BATCH, 4, SIDE, SIDE, dtype=dtype), torch.randint(10, (BATCH,))
    step = lambda: objective(Wrapped(net), x, {"y": y})[0].mean()                           # noqa: E731
    return net, step, [(loss, "jvp", jvp)], 1


def haidog(folder: Path, dtype: torch.dtype):
    """MeanFlow with torch.autograd.functional.jvp and two heads."""
    with imports_of(folder):
        meanflow, dit = importlib.import_module("meanflow"), importlib.import_module("models.dit")
    net = stirred(dit.MFDiT(input_size=SIDE, patch_size=2, in_channels=4, dim=WIDTH, depth=DEPTH, num_heads=4,
                            num_classes=10), dtype)
    objective = meanflow.MeanFlow(channels=4, image_size=SIDE, num_classes=10)
    x, y = torch.randn(BATCH, 4, SIDE, SIDE, dtype=dtype), torch.randint(10, (BATCH,))

    def step():
        import numpy
        numpy.random.seed(0)
        with widened(dtype):
            return objective.loss(net, x, y)[0]
    return net, step, [(torch.autograd.functional, "jvp", functional_jvp)], 1


@contextmanager
def widened(dtype: torch.dtype) -> Iterator[None]:
    """Draws and embeddings in this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    tensor = torch.tensor
    wide = lambda x, **kw: tensor(x, **kw).to(dtype) if tensor(x, **kw).is_floating_point() else tensor(x, **kw)  # noqa
    try:
        with mock.patch.object(torch, "tensor", wide):
            yield
    finally:
        torch.set_default_dtype(before)


def facm(folder: Path, dtype: torch.dtype, name: str = "FACMLoss"):
    """FACM's LightningDiT: the RNG state set inside the function, attention made unfused for the call."""
    with imports_of(folder, "fairscale", "fairscale.nn", "fairscale.nn.model_parallel",
                    "fairscale.nn.model_parallel.initialize", "fairscale.nn.model_parallel.layers"):
        with mock.patch.dict(sys.modules, utils=types.SimpleNamespace(
                mean_flat=lambda x: x.mean(dim=list(range(1, x.dim()))))):
            losses = importlib.import_module("losses")
        dit = importlib.import_module("ldit.lightningdit")
    net = stirred(dit.LightningDiT(
        input_size=SIDE, patch_size=2, in_channels=4, hidden_size=WIDTH, depth=DEPTH, num_heads=4, num_classes=1000,
        use_qknorm=True, use_swiglu=True, use_rope=True, wo_shift=True,
        auxiliary_time_cond=name != "sCMLoss"), dtype)
    net.AdaLoss = lambda t, loss: loss
    arguments = types.SimpleNamespace(mean=0.8, std=1.0, t_type="default", p=0.5, cfgw=1.75, distill=False, glow=0.0,
                                      ghigh=1.0, r2t_ratio=0.25, accumulation=1)
    x, y = torch.randn(BATCH, 4, SIDE, SIDE, dtype=dtype), torch.randint(1000, (BATCH,))
    state = dict(get_rng_state=torch.get_rng_state, set_rng_state=torch.set_rng_state)

    def step():
        with mock.patch.multiple(torch.cuda, **state), widened(dtype):
            return getattr(losses, name)()(None, net, net, None, x, 1, {"y": y}, arguments)[0]
    return net, step, [(torch.func, "jvp", jvp)], 1


def fastgen(folder: Path, dtype: torch.dtype, kind: str = "sCM"):
    """FastGen's EDM UNet under its own sCM and MeanFlow `_jvp` methods, and the squared error to the target."""
    with imports_of(folder, "fastgen.methods", "fastgen.datasets", "wandb", "boto3"):
        network = importlib.import_module("fastgen.networks.EDM.network")
    method = method_of(folder / "fastgen/methods/consistency_model" / ("sCM.py" if kind == "sCM" else "mean_flow.py"),
                       "_jvp", {"torch": torch, "expand_like": lambda a, b: a.view(-1, *[1] * (b.dim() - 1)),
                                "temp_disable_efficient_attn": lambda device: ExitStack()})
    net = stirred(network.EDM(img_resolution=SIDE, img_channels=3, model_channels=WIDTH // 2, num_blocks=1,
                              channel_mult=[1, 2], attn_resolutions=[SIDE // 2], label_dim=0, dropout=0.1,
                              r_timestep=kind != "sCM"), dtype)
    raise NotImplementedError(net, method, partial)


def method_of(path: Path, name: str, known: dict) -> Callable:
    """One method of a class in a file, without the file's imports."""
    tree = ast.parse(path.read_text())
    node = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name)
    node.decorator_list, node.returns = [], None
    for argument in node.args.args:
        argument.annotation = None
    exec(compile(ast.Module([node], []), str(path), "exec"), known)
    return known[name]


SIDE, WIDTH, DEPTH, BATCH = 16, 96, 4, 4


def main() -> None:
    pass
