"""jvp of Wan against torch.func.jvp of the network in plain torch with math attention, also compiled.

Depth 4, width 256, 4 heads, fp32 on a CPU.
"""

from collections.abc import Callable

import torch

from bench.bench_network import JVP, block_flops
from bench.harness import Case, case
from bench.passes import plain_torch
from swiftvideo_fast import jvp
from swiftvideo_fast.models.wan.network import Wan
from swiftvideo_fast.models.wan.sizes import WanConfig

CONFIG = WanConfig(dim=256, heads=4, layers=4, ffn_dim=1024, text_dim=64, freq_dim=64, time_scale=10.0)
SIDE = 32                                                          # latent pixels: 16 x 16 tokens a frame


def ways(N: int, device: str, dtype: torch.dtype) -> tuple[Wan, Callable, Callable]:
    """Returns (network, our jvp, torch's jvp) at N tokens."""
    frames = N // (SIDE // 2) ** 2
    net = Wan(CONFIG).to(device, dtype).requires_grad_(False)
    x, v = (torch.randn(1, CONFIG.latent, frames, SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    condition = torch.randn(1, CONFIG.condition, frames, SIDE, SIDE, device=device, dtype=dtype)
    text = torch.randn(1, 32, CONFIG.text_dim, device=device, dtype=dtype)
    t = torch.full((1,), 0.5, device=device)

    def run(transform):
        with torch.no_grad():
            return transform(lambda x, t: net(x, t, text, condition), (x, t), (v, torch.ones_like(t)))

    def by_torch():
        with plain_torch():
            return run(torch.func.jvp)

    return net, lambda: run(jvp), by_torch


@case("jvp", cpu_1k=(1024,), cpu_4k=(4096,), gpu_4k=(4096,))
def build(N: int, device: str, dtype: torch.dtype) -> Case:
    torch.manual_seed(0)
    net, ours, by_torch = ways(N, device, dtype)
    return Case(ours=ours, torch=by_torch, peers={"compiled": torch.compile(by_torch)},
                flops=CONFIG.layers * block_flops(net.blocks[0], N, *JVP))
