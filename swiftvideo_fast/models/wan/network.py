"""The Wan image-to-video transformer, written once: called with Duals, it computes its own JVP.

Parameter names are the released checkpoint's (Wan-Video/Wan2.1, WanModel, model_type "i2v"), so its state
dict loads unchanged.  Only the arithmetic differs from that code: time, norms and modulation are fp32 in any
storage dtype (`cast`).  The first convolution has kernel = stride, so it is a linear map of patches, computed
separately for noisy and condition channels: the condition has no tangent, so none is computed.

Letters: B clips, T H W latent frames, height, width, N = T H/2 W/2 tokens, C channels, L text tokens.
"""

import copy
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from swiftvideo_fast.dual import Dual
from swiftvideo_fast.models.ulysses import Ulysses
from swiftvideo_fast.models.wan.blocks import Block, Head, ImageEmbedding, WideLinear, rotary_tables, wide
from swiftvideo_fast.models.wan.sizes import PATCH, THETA, WanConfig


def _keep_self_attention(context, op, *args, **kwargs) -> CheckpointPolicy:
    """Saves (o, lse) of self-attention: 3 % of a block's planes at 1.3B, a third of its time."""
    if op is torch.ops.swiftvideo_fast.attention.default and args[0].shape[2] == args[1].shape[2]:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


RECOMPUTE = {       # policy: context_fn of torch's checkpoint
    "nothing": None,
    "blocks": noop_context_fn,
    "blocks but attention": partial(create_selective_checkpoint_contexts, _keep_self_attention),
}


class Wan(nn.Module):
    """F(x_t, t): the velocity x1 - x0 at x_t = (1 - t) x0 + t x1; with a second time, u(x_t, t, s).

    recompute: the activation checkpointing, a key of RECOMPUTE; results are equal bit for bit.
        nothing                 every activation is kept
        blocks                  each block's input is kept; the backward recomputes the block
        blocks but attention    self-attention's (o, lse) is kept too, and not recomputed
    ulysses: the ranks that share a clip's tokens (sequence parallelism), all called with the same arguments.
    """

    recompute = "nothing"
    ulysses: Ulysses | None = None

    def __init__(self, config: WanConfig):
        super().__init__()
        self.config = c = config
        self.patch_embedding = nn.Conv3d(c.latent + c.condition, c.dim, (1, PATCH, PATCH), (1, PATCH, PATCH))
        self.text_embedding = nn.Sequential(
            nn.Linear(c.text_dim, c.dim), nn.GELU(approximate="tanh"), nn.Linear(c.dim, c.dim))
        self.time_embedding = nn.Sequential(
            WideLinear(c.freq_dim, c.dim), nn.SiLU(), WideLinear(c.dim, c.dim))
        if c.second_time:
            self.second_time_embedding = copy.deepcopy(self.time_embedding)
        self.time_projection = nn.Sequential(nn.SiLU(), WideLinear(c.dim, 6 * c.dim))
        if c.image_dim:
            self.img_emb = ImageEmbedding(c.image_dim, c.dim)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.head = Head(c)

    def forward(self, x_BCTHW, t_B, text_BLE: Tensor, condition_BCTHW: Tensor,
                image_BME: Tensor | None = None, s_B=None) -> Tensor | Dual:
        """Returns the velocity (B, 16, T, H, W), in x's dtype.  Raises ValueError on another shape.

        x: (B, 16, T, H, W), H and W even.  t: (B,) fp32 in [0, 1].  text: (B, L, text_dim).
        condition: (B, 20, T, H, W) = [mask 4 | masked video 16] (models/condition.py).
        image: (B, 257, image_dim), if the network has image cross-attention.  s: (B,) fp32, if it has a
        second time; None means s = t.  x, t and s may be Duals.
        The residual stream has the network's storage dtype, whatever the inputs' dtype.
        """
        self._check(x_BCTHW, t_B, text_BLE, condition_BCTHW, image_BME, s_B)
        B, _, T, H, W = x_BCTHW.shape
        D = self.config.dim // self.config.heads
        stored = self.patch_embedding.weight.dtype
        x_BNC = self._embed_patches(x_BCTHW.to(stored), condition_BCTHW.to(stored))
        text_BLC = self.text_embedding(text_BLE.to(stored))
        context = text_BLC, None if image_BME is None else self.img_emb(image_BME.to(stored))
        e_BC = self.time_embedding(self._sinusoid(t_B))
        if self.config.second_time:
            e_BC = e_BC + self.second_time_embedding(self._sinusoid(t_B if s_B is None else s_B))
        e_B6C = self.time_projection(e_BC).unflatten(1, (6, self.config.dim))
        rotary = rotary_tables(T, H // PATCH, W // PATCH, D, x_BCTHW.device)
        if self.ulysses:
            self.ulysses.check(x_BNC.shape[1], self.config.heads)
            x_BNC = self.ulysses.scatter(x_BNC)
            rotary = tuple(self.ulysses.scatter(table[None])[0] for table in rotary)
        context_fn = RECOMPUTE[self.recompute] if torch.is_grad_enabled() else None
        for block in self.blocks:
            if context_fn:
                block = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False,
                                context_fn=context_fn)
            x_BNC = block(x_BNC, e_B6C, context, rotary)
        patches = self.head(x_BNC, e_BC)
        if self.ulysses:
            patches = self.ulysses.gather(patches)
        patches = patches.unflatten(2, (PATCH, PATCH, self.config.latent))
        patches = patches.unflatten(1, (T, H // PATCH, W // PATCH))                # (B, T, h, w, p, q, 16)
        velocity = patches.permute(0, 6, 1, 2, 4, 3, 5).reshape(B, self.config.latent, T, H, W)
        return velocity.to(x_BCTHW.dtype)

    @property
    def leaves(self) -> tuple[type[nn.Module], ...]:
        """Returns the modules that a sharding engine gathers whole, one at a time."""
        return (Block,)

    def share_tokens(self, ulysses: Ulysses) -> None:
        """Splits every clip's tokens over the ranks of one group (Ulysses)."""
        self.ulysses = ulysses
        for block in self.blocks:
            block.self_attn.ulysses = ulysses

    def _embed_patches(self, x_BCTHW, condition_BCTHW: Tensor):
        weight = self.patch_embedding.weight
        w_x, w_c = weight[:, :self.config.latent], weight[:, self.config.latent:]
        constant = F.linear(_patches(condition_BCTHW), w_c.flatten(1), self.patch_embedding.bias)
        return F.linear(_patches(x_BCTHW), w_x.flatten(1)) + constant

    def _sinusoid(self, t_B):
        """Returns [cos | sin] of model time, (B, freq_dim) fp32, computed in float64."""
        half = self.config.freq_dim // 2
        frequency = THETA ** (-torch.arange(half, dtype=torch.float64, device=t_B.device) / half)
        angle = (t_B.double() * self.config.time_scale)[:, None] * frequency
        return torch.cat([angle.cos(), angle.sin()], 1).to(wide(self.time_embedding[0].weight).dtype)

    def _check(self, x, t, text, condition, image, s) -> None:
        c = self.config
        if len(x.shape) != 5 or x.shape[1] != c.latent or x.shape[3] % PATCH or x.shape[4] % PATCH:
            raise ValueError(f"Wan: x is {tuple(x.shape)}; want (B, {c.latent}, T, H, W) with H and W even")
        if (image is None) != (c.image_dim is None):
            found = "missing" if image is None else "given"
            raise ValueError(f"Wan: image is {found} and image_dim is {c.image_dim}")
        if s is not None and not c.second_time:
            raise ValueError("Wan: s is given and the network has no second time; train it as a flow map "
                             "(objective.name: flowmap), or sample it by another sample.sampler")
        B, _, T, H, W = x.shape
        for name, given, want in (("t", t, (B,)), ("s", s, (B,)), ("text", text, (B, "L", c.text_dim)),
                                  ("condition", condition, (B, c.condition, T, H, W)),
                                  ("image", image, (B, "M", c.image_dim))):
            if given is not None and not _fits(given.shape, want):
                wanted = str(want).replace("'", "")
                raise ValueError(f"Wan: {name} is {tuple(given.shape)}; want {wanted} for x {tuple(x.shape)}")


def _patches(x_BCTHW):
    """Maps (B, C, T, 2h, 2w) to (B, T h w, 4 C), in the order of the flattened weight."""
    B, C, T, H, W = x_BCTHW.shape
    x = x_BCTHW.reshape(B, C, T, H // PATCH, PATCH, W // PATCH, PATCH)
    return x.permute(0, 2, 3, 5, 1, 4, 6).reshape(B, T * (H // PATCH) * (W // PATCH), C * PATCH * PATCH)


def _fits(shape: tuple, want: tuple) -> bool:
    """Returns whether the sizes are the wanted ones; L and M match any size."""
    return len(shape) == len(want) and all(w in (n, "L", "M") for n, w in zip(shape, want, strict=True))


@torch.no_grad()
def initialise(net: Wan, rng: torch.Generator) -> None:
    """Initialises in place for training from scratch: Xavier, embeddings of std 0.02, a zero head."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            nn.init.xavier_uniform_(module.weight.flatten(1), generator=rng)
            nn.init.zeros_(module.bias)
    for embedding in (net.text_embedding, net.time_embedding):
        for layer in (embedding[0], embedding[2]):
            nn.init.normal_(layer.weight, std=0.02, generator=rng)
    for block in (*net.blocks, net.head):
        nn.init.normal_(block.modulation, std=net.config.dim**-0.5, generator=rng)
    nn.init.zeros_(net.head.head.weight)


def add_second_time(net: Wan) -> Wan:
    """Turns a velocity network into a flow map, in place, with u(x_t, t, s) = F(x_t, t): s's embedding
    ends in zeros and starts with a copy of t's first layer.  Leaves a flow map unchanged.  Returns net."""
    if not net.config.second_time:
        net.config = replace(net.config, second_time=True)
        net.second_time_embedding = copy.deepcopy(net.time_embedding)
        for p in net.second_time_embedding[2].parameters():
            nn.init.zeros_(p)
    return net


def cast(net: Wan, dtype: torch.dtype) -> Wan:
    """Casts the stream's linear layers to dtype in place; time, norms, modulations stay fp32."""
    of_time = {*net.time_embedding, *net.time_projection, *getattr(net, "second_time_embedding", ())}
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv3d) and module not in of_time:
            module.to(dtype)
    return net
