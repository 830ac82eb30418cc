"""The demo's CCD step, loss and gradients at its own sizes, against reference ops and torch.func.jvp."""

from unittest.mock import patch

import torch
from torch import Tensor

from bench.bench_network import STEP, block_flops
from bench.harness import Case, case
from bench.passes import ccd_of, plain_torch
from swiftvideo_fast import path
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.models.wan.network import Wan
from swiftvideo_fast.models.wan.sizes import PRESETS
from swiftvideo_fast.objectives import ccd


@case("demo_step", cpu_demo=(16, 5, 8, 8))
def build(B: int, T: int, H: int, W: int, device: str, dtype: torch.dtype) -> Case:
    c = PRESETS["tiny"]
    net = Wan(c).to(device, dtype)
    x0, x1 = torch.randn(2, B, c.latent, T, H, W, device=device, dtype=dtype)
    frames = torch.randn(B, c.condition, T, H, W, device=device, dtype=dtype)
    text = torch.randn(B, 8, c.text_dim, device=device, dtype=dtype)
    t = torch.rand(B, device=device)
    point = path.Point(x0, x1, t, path.interpolate(x0, x1, t))
    condition = Condition(frames, text, torch.randn_like(text[0]))
    objective, nets = ccd_of(net)

    def ours() -> list[Tensor]:
        loss = objective.jump_from(point, nets, condition, 500).loss
        loss.backward()
        found = [loss.detach(), *(p.grad for p in net.blocks.parameters())]
        net.zero_grad()
        return found

    def by_torch() -> list[Tensor]:
        with plain_torch(), patch.object(ccd, "jvp", torch.func.jvp):
            return ours()

    tokens = T * H * W // 4
    flops = B * len(net.blocks) * block_flops(net.blocks[0], tokens, *STEP)
    return Case(ours, by_torch, flops=flops)
