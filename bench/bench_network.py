"""The network's JVP pass, one block of it, and a CCD step's loss and gradients, against torch.func.jvp.

On the other side are the reference ops with math attention, which at the published sizes fits on no device:
there only ours is run.  Ratios are of whole passes, matmuls that both sides share included.
"""

from unittest.mock import patch

import torch
from torch import Tensor

from bench.harness import Case, case
from bench.passes import Setting, plain_torch
from swiftvideo_fast import jvp, path
from swiftvideo_fast.config import Ccd
from swiftvideo_fast.data.latents import Latents
from swiftvideo_fast.models.conditioning import Condition, velocity
from swiftvideo_fast.models.wan import Block, Wan, rotary_tables
from swiftvideo_fast.objectives import ccd
from swiftvideo_fast.ops import reference

SHAPES = dict(cpu=("tiny", 17, 128, 128), wan_1_3b=("1.3b", 61, 832, 480))


def draw(preset: str, frames: int, width: int, height: int, device: str, dtype: torch.dtype,
         *, trained: bool = False) -> tuple[Setting, Wan, path.Point, Condition]:
    """A network of small random weights, and what to run it on."""
    setting = Setting(preset, frames, (width, height), dtype)
    with torch.device(device):
        net = setting.network(trained=trained)
        for p in net.parameters():
            p.data.normal_(std=0.02)
        return setting, net, setting.point(), setting.condition()


def fits(setting: Setting) -> bool:
    return setting.tokens < 8192


def token_flops(setting: Setting, block: Block) -> int:
    """Of one block's primal: its linear maps of tokens, and self-attention's two products."""
    maps = [m.weight for m in block.modules() if isinstance(m, torch.nn.Linear)]
    of_context = [block.cross_attn.k, block.cross_attn.v]
    width = block.self_attn.o.weight.shape[0]
    weights = sum(w.numel() for w in maps) - sum(m.weight.numel() for m in of_context)
    return 2 * setting.tokens * weights + 4 * setting.tokens**2 * width


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

    return Case(ours, by_torch if fits(setting) else lambda: None, flops=2 * token_flops(setting, block))


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

    flops = 2 * len(net.blocks) * token_flops(setting, net.blocks[0])
    return Case(ours, by_torch if fits(setting) else lambda: None, flops=flops)


@case("ccd_step", **SHAPES)
def build_step(*shape, device: str, dtype: torch.dtype) -> Case:
    setting, net, point, condition = draw(*shape, device, dtype, trained=True)
    objective = ccd.ConsistencyDistillation(Ccd(), net, net, net)

    def ours() -> list[Tensor]:
        net.zero_grad()
        loss, _ = objective(point, Latents(point.x0, condition, []), 500, None)
        loss.backward()
        return [loss.detach(), net.blocks[0].self_attn.q.weight.grad, net.head.head.weight.grad]

    def by_torch() -> list[Tensor]:
        with plain_torch(), patch.object(ccd, "jvp", torch.func.jvp):
            return ours()

    # guided teacher: two forwards; jvp: two; student: forward, recompute, and a backward of two
    flops = 8 * len(net.blocks) * token_flops(setting, net.blocks[0])
    return Case(ours, by_torch if fits(setting) else lambda: None, flops=flops)
