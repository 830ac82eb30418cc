"""The network's JVP pass, one block of it, and a CCD step's loss and gradients, against torch.func.jvp.

The baseline uses reference ops with math attention, which at the published sizes fits on no device: there
only ours runs.  Ratios are of whole passes, including the matmuls common to both sides.
"""

from unittest.mock import patch

import torch
from torch import Tensor

from bench.harness import Case, case
from bench.passes import Setting, ccd_of, plain_torch, velocity
from swiftvideo_fast import jvp, path
from swiftvideo_fast.models.condition import Condition
from swiftvideo_fast.models.wan.blocks import Block, rotary_tables
from swiftvideo_fast.models.wan.network import Wan
from swiftvideo_fast.objectives import ccd
from swiftvideo_fast.ops import reference

JVP = 2, 3                  # in primal costs: linear maps of tokens, attention
STEP = 8, 9.5               # teacher 2, 2; jvp 2, 3; student 1, 1, recomputed 1, 1, backward 2, 2.5
SHAPES = dict(cpu=("tiny", 17, 128, 128), wan_1_3b=("1.3b", 61, 832, 480))


def draw(preset: str, frames: int, width: int, height: int, device: str, dtype: torch.dtype,
         *, trained: bool = False) -> tuple[Setting, Wan, path.Point, Condition]:
    """Returns (setting, network with small random weights, point, condition)."""
    setting = Setting(preset, frames, (width, height), dtype)
    with torch.device(device):
        net = setting.network(trained=trained)
        for p in net.parameters():
            p.data.normal_(std=0.02)
        return setting, net, setting.point(), setting.condition()


def fits(setting: Setting) -> bool:
    return setting.tokens < 8192


def block_flops(block: Block, tokens: int, maps: float, attentions: float) -> int:
    """Returns the flops of `maps` times a block's linear maps and `attentions` times its self-attention."""
    of_context = {block.cross_attn.k, block.cross_attn.v}
    weights = sum(m.weight.numel() for m in block.modules()
                  if isinstance(m, torch.nn.Linear) and m not in of_context)
    width = block.self_attn.o.weight.shape[0]
    return int(maps * 2 * tokens * weights + attentions * 4 * tokens**2 * width)


@case("block_jvp", **SHAPES)
def build_block(*shape, device: str, dtype: torch.dtype) -> Case:
    setting, net, _, condition = draw(*shape, device, dtype)
    C, D = net.config.dim, net.config.dim // net.config.heads
    x, tx = (torch.randn(1, setting.tokens, C, device=device, dtype=dtype) for _ in range(2))
    e, te = (torch.randn(1, 6, C, device=device) for _ in range(2))
    T, H, W = setting.latent
    rotary = rotary_tables(T, H // 2, W // 2, D, x.device)
    image = net.img_emb(condition.image.to(dtype)) if condition.image is not None else None
    context = net.text_embedding(condition.text.to(dtype)), image
    block = net.blocks[0]

    def by_torch() -> tuple[Tensor, Tensor]:
        with torch.no_grad(), plain_torch():
            return reference.jvp(lambda x, e: block(x, e, context, rotary), (x, e), (tx, te))

    @torch.no_grad()
    def ours() -> tuple[Tensor, Tensor]:
        return jvp(lambda x, e: block(x, e, context, rotary), (x, e), (tx, te))

    return Case(ours, by_torch if fits(setting) else lambda: None,
                flops=block_flops(block, setting.tokens, *JVP))


@case("network_jvp", **SHAPES)
def build_network(*shape, device: str, dtype: torch.dtype) -> Case:
    setting, net, point, condition = draw(*shape, device, dtype)
    seeds = (point.x_t, point.t), (point.velocity, torch.ones_like(point.t))

    def by_torch() -> tuple[Tensor, Tensor]:
        with torch.no_grad(), plain_torch():
            return reference.jvp(lambda x, t: velocity(net, x, t, condition), *seeds)

    @torch.no_grad()
    def ours() -> tuple[Tensor, Tensor]:
        return jvp(lambda x, t: velocity(net, x, t, condition), *seeds)

    flops = len(net.blocks) * block_flops(net.blocks[0], setting.tokens, *JVP)
    return Case(ours, by_torch if fits(setting) else lambda: None, flops=flops)


@case("ccd_step", **SHAPES)
def build_step(*shape, device: str, dtype: torch.dtype) -> Case:
    setting, net, point, condition = draw(*shape, device, dtype, trained=True)
    objective, nets = ccd_of(net)

    def ours() -> list[Tensor]:
        loss = objective.jump_from(point, nets, condition, 500).loss
        loss.backward()
        found = [loss.detach(), net.blocks[0].self_attn.q.weight.grad, net.head.head.weight.grad]
        net.zero_grad()                 # here, not first: each call frees its own gradients
        return found

    def by_torch() -> list[Tensor]:
        with plain_torch(), patch.object(ccd, "jvp", torch.func.jvp):
            return ours()

    flops = len(net.blocks) * block_flops(net.blocks[0], setting.tokens, *STEP)
    return Case(ours, by_torch if fits(setting) else lambda: None, flops=flops)
