"""One training step of public repositories, with their jvp and with ours: loss, gradients, time, memory.

    git clone https://github.com/zhuyu-cs/MeanFlow /tmp/clones/zhuyu-cs-MeanFlow      a folder OWNER-NAME each
    python tests/loops_of_others.py /tmp/clones                                       every clone there, as a
    table

Their code is read from the clones, never copied.  Each step is their loss on their network, small and
randomly initialised, on a CPU; the two runs differ only in the jvp function that their module calls.
Differences are from float64 runs, times and memory from float32.  Needs timm, einops, scipy, omegaconf,
loguru.
"""

import argparse
import ast
import importlib
import math
import sys
import types
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from statistics import median
from time import process_time
from typing import Optional
from unittest import mock

import torch
from torch import nn

from bench.harness import allocated
from swiftvideo_fast import functional_jvp, jvp

SIDE, WIDTH, DEPTH, BATCH = 16, 96, 4, 4
FUNC, FUNCTIONAL = (torch.func, "jvp", jvp), (torch.autograd.functional, "jvp", functional_jvp)


@contextmanager
def imports_of(folder: Path, *unused: str) -> Generator[None]:
    """A clone's modules by their own names, gone after; unused: packages they import and this does not
    call."""
    before = dict(sys.modules)
    sys.path.insert(0, str(folder))
    sys.modules.update({name: mock.MagicMock(__spec__=ModuleSpec(name, None)) for name in unused})
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - set(before):
            if str(folder) in str(getattr(sys.modules[name], "__file__", "")) or name in unused:
                del sys.modules[name]


@contextmanager
def draws_in(dtype: torch.dtype) -> Generator[None]:
    """torch.tensor and torch.randn give this dtype, as the loops draw in the default one."""
    tensor, before = torch.tensor, torch.get_default_dtype()
    torch.set_default_dtype(dtype)

    def wide(*args, **kwargs):
        made = tensor(*args, **kwargs)
        return made.to(dtype) if made.is_floating_point() else made
    try:
        with mock.patch.object(torch, "tensor", wide):
            yield
    finally:
        torch.set_default_dtype(before)


def stirred(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Perturbs zero weights, which would give zero tangents."""
    torch.manual_seed(1)
    for p in net.parameters():
        p.data += 0.05 * torch.randn_like(p) if p.requires_grad else 0
    # embeddings of the time are made in float32
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(lambda layer, args: (args[0].to(layer.weight.dtype), *args[1:]))
    return net.to(dtype)


class Wrapped(nn.Module):
    """A module in `.module`, as DDP holds it."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def images(dtype: torch.dtype, classes: int, channels: int = 4):
    return torch.randn(BATCH, channels, SIDE, SIDE, dtype=dtype), torch.randint(classes, (BATCH,))


def sit(folder: Path, dtype: torch.dtype):
    """zhuyu-cs/MeanFlow: guidance, a batch split in two jvp calls."""
    with imports_of(folder):
        loss, network = importlib.import_module("loss"), importlib.import_module("sit")
    net = stirred(network.SiT(input_size=SIDE, hidden_size=WIDTH, decoder_hidden_size=WIDTH, depth=DEPTH,
        num_heads=4,
                              num_classes=10, qk_norm=False, fused_attn=False), dtype)
    x, y = images(dtype, 10)
    objective = loss.SILoss(cfg_omega=0.2, cfg_kappa=0.92, weighting="adaptive")
    return net, lambda: objective(Wrapped(net), x, {"y": y})[0].mean(), (loss, "jvp", jvp)


def meanflow(folder: Path, dtype: torch.dtype):
    """haidog-yaqub/MeanFlow: torch.autograd.functional.jvp, two heads, keyword arguments bound."""
    with imports_of(folder):
        module, network = importlib.import_module("meanflow"), importlib.import_module("models.dit")
    net = stirred(network.MFDiT(input_size=SIDE, dim=WIDTH, depth=DEPTH, num_heads=4, num_classes=10), dtype)
    x, y = images(dtype, 10)
    objective = module.MeanFlow(channels=4, image_size=SIDE, num_classes=10)

    def step():
        module.np.random.seed(0)
        return objective.loss(net, x, y)[0]
    return net, step, FUNCTIONAL


def facm(folder: Path, dtype: torch.dtype, name: str = "FACMLoss"):
    """ali-vilab/FACM: the state of the random numbers set inside the function, attention unfused for the
    call."""
    rms_norm = types.SimpleNamespace(RMSNorm=nn.RMSNorm)               # theirs is imported with fairscale
    helpers = types.SimpleNamespace(mean_flat=lambda x: x.flatten(1).mean(1))
    with imports_of(folder), mock.patch.dict(sys.modules, {"ldit.rmsnorm": rms_norm, "utils": helpers}):
        losses, network = importlib.import_module("losses"), importlib.import_module("ldit.lightningdit")
    net = stirred(network.LightningDiT(
        input_size=SIDE, in_channels=4, hidden_size=WIDTH, depth=DEPTH, num_heads=4, use_qknorm=True,
        use_swiglu=True,
        use_rope=True, wo_shift=True, auxiliary_time_cond=name != "sCMLoss"), dtype)
    net.AdaLoss = lambda t, loss: loss
    x, y = images(dtype, 1000)
    arguments = types.SimpleNamespace(mean=0.8, std=1.0, t_type="default", p=0.5, cfgw=1.75, distill=False,
        glow=0.0,
                                      ghigh=1.0, r2t_ratio=0.25, accumulation=1)

    def step():
        with mock.patch.multiple(torch.cuda, get_rng_state=torch.get_rng_state,
            set_rng_state=torch.set_rng_state):
            return getattr(losses, name)()(None, net, net, None, x, 1, {"y": y}, arguments)[0]
    return net, step, FUNC


def method_of(path: Path, name: str, known: dict):
    """A function, method or class of a file, without the file's imports: `known` holds what it uses."""
    found = next(n for n in ast.walk(ast.parse(path.read_text())) if getattr(n, "name", None) == name)
    if isinstance(found, ast.FunctionDef):
        found.decorator_list, found.returns = [], None
        for argument in found.args.args:
            argument.annotation = None
    exec(compile(ast.Module([found], []), str(path), "exec"), known)
    return known[name]


@cache
def fastgen_modules(folder: Path):
    """Once: they configure the log as they are imported."""
    with imports_of(folder, "wandb", "boto3"):
        return (importlib.import_module("fastgen.networks.EDM.network"),
                importlib.import_module("fastgen.networks.network").FastGenNetwork,
                importlib.import_module("fastgen.utils").expand_like)


def fastgen(folder: Path, dtype: torch.dtype, kind: str = "sCM"):
    """NVlabs/FastGen: their EDM UNet, whose attention is an autograd.Function with a jvp, in their `_jvp`."""
    network, base, expand_like = fastgen_modules(folder)
    file = folder / f"fastgen/methods/consistency_model/{'sCM' if kind == 'sCM' else 'mean_flow'}.py"
    known = {"torch": torch, "expand_like": expand_like, "FastGenNetwork": base, "Optional": Optional,
             "temp_disable_efficient_attn": lambda device: nullcontext()}
    by_their_jvp = method_of(file, "_jvp", known)
    net = stirred(network.EDMPrecond(
        img_resolution=SIDE, img_channels=3, model_channels=64, channel_mult=[1, 2], num_blocks=1,
        attn_resolutions=[SIDE // 2], dropout=0.1, r_timestep=kind != "sCM"), dtype)
    x, _ = images(dtype, 10, 3)
    z = torch.randn(x.shape, dtype=dtype)
    self = types.SimpleNamespace(precision_amp_jvp=None, device=torch.device("cpu"), net=net,
                                 loss_config=types.SimpleNamespace(use_jvp_finite_diff=False))
    if kind == "sCM":
        self.net_trigflow = method_of(file, "TrigFlowPrecond", known)(net)
        self._compute_vt = lambda t: t.cos() * t.sin()

    def step():
        t = torch.rand(BATCH, dtype=dtype) * 0.8 + 0.3
        side = t.view(-1, 1, 1, 1)
        with torch.no_grad():
            if kind == "sCM":
                x_t, v = side.cos() * x + side.sin() * z, side.cos() * z - side.sin() * x
                tangent = by_their_jvp(self, x, z, x_t, t, v)
            else:
                x_t, v = (1 - side) * x + side * z, z - x
                tangent = by_their_jvp(self, x_t, t, t / 2, v)
        out = self.net_trigflow(x_t, t) if kind == "sCM" else net(x_t, t, r=t / 2, fwd_pred_type="flow")
        return (out - out.detach() - 0.1 * tangent).square().mean()
    return net, step, FUNC


def sana_sprint(folder: Path, dtype: torch.dtype):
    """diffusers' SANA-Sprint script: their SanaTrigFlow around diffusers' network, has_aux."""
    from diffusers import SanaTransformer2DModel

    file = folder / "examples/research_projects/sana/train_sana_sprint_diffusers.py"
    wrapper = method_of(file, "SanaTrigFlow", {"torch": torch,
        "SanaTransformer2DModel": SanaTransformer2DModel})
    plain = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=WIDTH // 4, num_layers=DEPTH,
        num_cross_attention_heads=4, cross_attention_head_dim=WIDTH // 4, cross_attention_dim=WIDTH,
        caption_channels=32, sample_size=SIDE, patch_size=1, guidance_embeds=True,
        qk_norm="rms_norm_across_heads")
    attend = method_of(file, "SanaVanillaAttnProcessor", {"torch": torch, "math": math, "Attention": None,
                                                          "Optional": Optional})
    for block in plain.transformer_blocks:
        block.attn2.set_processor(attend())
    net = stirred(wrapper(plain, guidance=True), dtype)
    x, _ = images(dtype, 10)
    text, mask = torch.randn(BATCH, 7, 32, dtype=dtype), torch.ones(BATCH, 7, dtype=dtype)
    guidance = torch.full((BATCH,), 0.45, dtype=dtype)

    def step():
        t = (torch.rand(BATCH, dtype=dtype) + 0.2).view(-1, 1, 1, 1)
        noise = torch.randn(x.shape, dtype=dtype)
        x_t, v = t.cos() * x + t.sin() * noise, t.cos() * noise - t.sin() * x
        call = partial(net, encoder_hidden_states=text, encoder_attention_mask=mask, guidance=guidance,
                       return_logvar=True)
        with torch.no_grad():
            out, tangent, logvar = torch.func.jvp(
                lambda x, t: call(hidden_states=x, timestep=t.flatten(), jvp=True), (x_t, t),
                (t.cos() * t.sin() * v, t.cos() * t.sin()), has_aux=True)
        out, logvar = call(hidden_states=x_t, timestep=t.flatten())
        g = -t.cos().square() * (out.detach() - v) - (t.cos() * t.sin() * x_t + tangent)
        g = g / (torch.linalg.vector_norm(g, dim=(1, 2, 3), keepdim=True) + 0.1)
        logvar = logvar.view(-1, 1, 1, 1)
        return ((out - out.detach() - g).square() / logvar.exp() + logvar).mean()
    return net, step, FUNC


LOOPS: dict[str, tuple[str, Callable]] = {
    "SiT, MeanFlow": ("zhuyu-cs-MeanFlow", sit),
    "DiT, MeanFlow": ("haidog-yaqub-MeanFlow", meanflow),
    "LightningDiT, FACM": ("ali-vilab-FACM", facm),
    "LightningDiT, MeanFlow": ("ali-vilab-FACM", partial(facm, name="MeanFlowLoss")),
    "LightningDiT, sCM": ("ali-vilab-FACM", partial(facm, name="sCMLoss")),
    "EDM UNet, sCM": ("NVlabs-FastGen", fastgen),
    "EDM UNet, MeanFlow": ("NVlabs-FastGen", partial(fastgen, kind="MeanFlow")),
    "SANA-Sprint, sCM": ("huggingface-diffusers", sana_sprint),
}


def run(net: nn.Module, step: Callable, theirs, ours: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(loss, gradients) of one step, from one state of the random numbers."""
    home, name, function = theirs
    torch.manual_seed(2)
    net.zero_grad()
    with mock.patch.object(home, name, function) if ours else nullcontext():
        loss = step()
    loss.backward()
    return loss.detach(), [p.grad for p in net.parameters() if p.grad is not None]


def row(build: Callable, folder: Path, repeats: int) -> str:
    with draws_in(torch.float64):
        net, step, theirs = build(folder, torch.float64)
        (loss, want), (by_ours, got) = (run(net, step, theirs, ours) for ours in (False, True))
    apart = max(((a - b).norm() / b.norm().clamp_min(1e-12)).item() for a, b in zip(got, want, strict=True))
    net, step, theirs = build(folder, torch.float32)
    times = {False: [], True: []}
    for _ in range(repeats):
        for ours in times:
            start = process_time()
            run(net, step, theirs, ours)
            times[ours].append(process_time() - start)
    peaks = {ours: allocated(lambda ours=ours: run(net, step, theirs, ours), "cpu") for ours in times}
    speed = median(a / b for a, b in zip(times[False], times[True], strict=True))
    return (f"| {(loss - by_ours).abs().item() / loss.abs().item():.0e} | {apart:.0e} | {speed:.2f} | "
            f"{peaks[True] / peaks[False]:.2f} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clones", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| repository | network, loss | lines changed | loss differs | gradients differ | speed | memory |")
    print("|---|---|---|---|---|---|---|")
    failed = 0
    for title, (name, build) in LOOPS.items():
        if not (arguments.clones / name).exists():
            continue
        try:
            told = row(build, (arguments.clones / name).resolve(), arguments.repeats)
        except Exception as error:                                # the others continue
            if arguments.repeats == 1:
                raise
            failed, told = failed + 1, f"| {type(error).__name__}: {str(error)[:200]} |"
        print(f"| {name} | {title} | 1 {told}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
