"""The Wan image-to-video transformer, written once: call it with Duals and it is its own forward mode.

Parameter names are the released checkpoint's (Wan-Video/Wan2.1, WanModel, model_type "i2v"), so its state
dict loads as it is.  Differences from that code are in arithmetic only: time, norms and modulation are fp32
whatever the storage (`cast`); the first convolution has kernel = stride, so it is a linear map of patches,
noisy and condition channels apart: the condition has no tangent and costs none.

Letters: B clips, T H W latent frames, height, width, N = T H/2 W/2 tokens, C channels, L text tokens.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
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

from swiftvideo_fast import ops
from swiftvideo_fast.dual import Dual
from swiftvideo_fast.models.ulysses import Ulysses


@dataclass(frozen=True)
class WanConfig:
    """Sizes.  latent: channels of the codec; condition: 4 mask channels + the masked video's latent.

    time_scale: model time is time_scale * t, t in [0, 1]: 1000 for Wan.  A network trained for minutes wants
    about 10: with 1000 its time derivative explodes.
    image_dim: width of the image encoder's tokens, None for a network without image cross-attention.
    second_time: whether it is a flow map u(x_t, t, s); published checkpoints are not (`add_second_time`).
    """

    dim: int
    heads: int
    layers: int
    ffn_dim: int
    text_dim: int
    image_dim: int | None = None
    latent: int = 16
    condition: int = 20
    freq_dim: int = 256
    time_scale: float = 1000.0
    eps: float = 1e-6
    second_time: bool = False

    def __post_init__(self):
        for name in ("dim", "heads", "layers", "ffn_dim", "text_dim", "latent", "condition", "freq_dim"):
            size = getattr(self, name)
            if type(size) is not int or not 0 <= size <= MOST or not size and name in ("dim", "heads"):
                raise ValueError(f"WanConfig: {name} is {size!r}; want a whole number up to {MOST:,}")
        if self.dim % self.heads or self.dim // self.heads % 2:
            raise ValueError(f"WanConfig: dim {self.dim} over {self.heads} heads is no even head width")


MOST = 100_000      # of any size: far more than a network has, few enough to build one on meta
PRESETS = {
    "tiny": WanConfig(dim=160, heads=5, layers=4, ffn_dim=640, text_dim=32, freq_dim=64, time_scale=10.0),
    "1.3b": WanConfig(dim=1536, heads=12, layers=30, ffn_dim=8960, text_dim=4096, image_dim=1280),
    "14b": WanConfig(dim=5120, heads=40, layers=40, ffn_dim=13824, text_dim=4096, image_dim=1280),
}
PATCH = 2           # patches are (1, 2, 2)
MLP_ROWS = 4096     # tokens a clip that the MLP holds at once without grad: enough for a matmul at full speed
BLOCK = 21          # planes of a block run again, beside three of the MLP's width (39 at 1.3B, 29 at 14B)
KEPT, LAST = 19, 11     # planes of a block kept whole, beside two of the MLP's width; beside all blocks
THETA = 10000.0     # base of the rotary and of the time frequencies


def _keep_self_attention(context, op, *args, **kwargs) -> CheckpointPolicy:
    """(o, lse) of self-attention: 3 % of a block's planes at 1.3B, a third of its time."""
    if op is torch.ops.swiftvideo_fast.attention.default and args[0].shape[2] == args[1].shape[2]:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


RECOMPUTE = {       # policy: context_fn of torch's checkpoint
    "nothing": None,
    "blocks": noop_context_fn,
    "blocks but attention": partial(create_selective_checkpoint_contexts, _keep_self_attention),
}


def activations(sizes: WanConfig, tokens: int, recompute: str, stored: int) -> int:
    """Bytes that a pass with a backward holds, in planes of tokens x dim (counted by `python -m bench
    memory`).  tokens: of all its clips.  stored: bytes of an element."""
    plane, wide = tokens * sizes.dim * stored, sizes.ffn_dim / sizes.dim
    attention = plane + 4 * tokens * sizes.heads                                    # o and lse
    if recompute == "nothing":
        return int(plane * (sizes.layers * (KEPT + 2 * wide) + LAST))
    kept = (sizes.layers - 1) * attention if recompute == "blocks but attention" else 0
    return int(plane * (sizes.layers + BLOCK + 3 * wide) + kept)


class Wan(nn.Module):
    """F(x_t, t): the velocity x1 - x0 at x_t = (1 - t) x0 + t x1; or, with a second time s, u(x_t, t, s).

    recompute: what the backward runs again, of RECOMPUTE; the bits are the same.
        nothing                 every activation is kept
        blocks                  each block's input is kept, and the block runs again
        blocks but attention    also self-attention's (o, lse) is kept, which is not run again
    ulysses: the ranks that share the tokens of a clip, all of them given the same arguments.
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
        """Velocity (B, 16, T, H, W).

        x: (B, 16, T, H, W), H and W even.  t: (B,) fp32 in [0, 1].  text: (B, L, text_dim).
        condition: (B, 20, T, H, W) = [mask 4 | masked video 16] (models/conditioning.py).
        image: (B, 257, image_dim), if the network has image cross-attention.  s: (B,) fp32, if it has a
        second time; None is s = t.  x, t and s may be Duals.
        The stream has the network's storage dtype, whatever the inputs have; the velocity has x's.
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
        """The modules that a sharding engine gathers whole, one at a time."""
        return (Block,)

    def share_tokens(self, ulysses: Ulysses) -> None:
        """Have the ranks of one group take each a part of every clip's tokens."""
        self.ulysses = ulysses
        for block in self.blocks:
            block.self_attn.ulysses = ulysses

    def _embed_patches(self, x_BCTHW, condition_BCTHW: Tensor):
        weight = self.patch_embedding.weight
        w_x, w_c = weight[:, :self.config.latent], weight[:, self.config.latent:]
        constant = F.linear(_patches(condition_BCTHW), w_c.flatten(1), self.patch_embedding.bias)
        return F.linear(_patches(x_BCTHW), w_x.flatten(1)) + constant

    def _sinusoid(self, t_B):
        """[cos | sin] of model time at freq_dim / 2 frequencies, computed in float64, fp32 out."""
        half = self.config.freq_dim // 2
        frequency = THETA ** (-torch.arange(half, dtype=torch.float64, device=t_B.device) / half)
        angle = (t_B.double() * self.config.time_scale)[:, None] * frequency
        return torch.cat([angle.cos(), angle.sin()], 1).to(_wide(self.time_embedding[0].weight).dtype)

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


class Block(nn.Module):
    """Self-attention and MLP, each modulated and gated by time; cross-attention with neither."""

    def __init__(self, c: WanConfig):
        super().__init__()
        self.eps = c.eps
        self.modulation = nn.Parameter(torch.randn(1, 6, c.dim) / c.dim**0.5)
        self.self_attn = SelfAttention(c)
        self.norm3 = LayerNorm(c.dim, eps=c.eps)
        self.cross_attn = CrossAttention(c)
        self.ffn = nn.Sequential(nn.Linear(c.dim, c.ffn_dim), Gelu(), nn.Linear(c.ffn_dim, c.dim))

    def forward(self, x_BNC, e_B6C, context: tuple, rotary: tuple) -> Tensor | Dual:
        shift_sa, scale_sa, gate_sa, shift_ff, scale_ff, gate_ff = (self.modulation + e_B6C).unbind(1)

        def norm1(x_BNC):
            return ops.modulate(x_BNC, scale_sa, shift_sa, self.eps)

        x_BNC = ops.gate(x_BNC, self.self_attn(x_BNC, norm1, rotary), gate_sa)
        x_BNC = x_BNC + self.cross_attn(x_BNC, self.norm3, *context)
        if torch.is_grad_enabled():
            return self._mlp(x_BNC, scale_ff, shift_ff, gate_ff)
        chunks = x_BNC.chunk(-(-x_BNC.shape[1] // MLP_ROWS), 1)
        return torch.cat([self._mlp(rows, scale_ff, shift_ff, gate_ff) for rows in chunks], 1)

    def _mlp(self, x_BNC, scale, shift, gate):
        return ops.gate(x_BNC, self.ffn(ops.modulate(x_BNC, scale, shift, self.eps)), gate)


class WideLinear(nn.Linear):
    """Of time: in fp32 even where an engine stores every weight as bf16."""

    def forward(self, x) -> Tensor | Dual:
        return F.linear(x, _wide(self.weight), _wide(self.bias))


class LayerNorm(nn.LayerNorm):
    """The affine one: ops.modulate by a gain and a shift that all clips share, fp32 beside a bf16 stream."""

    def forward(self, x_BNC) -> Tensor | Dual:
        s_BC, b_BC = (a.repeat(x_BNC.shape[0], 1) for a in (_wide(self.weight) - 1, _wide(self.bias)))
        return ops.modulate(x_BNC, s_BC, b_BC, self.eps)


class RMSNorm(nn.Module):
    """The gain of an RMSNorm over all channels, heads together; ops.norm_rope applies it."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))


class SelfAttention(nn.Module):
    ulysses: Ulysses | None = None

    def __init__(self, c: WanConfig):
        super().__init__()
        self.heads, self.eps = c.heads, c.eps
        self.q, self.k, self.v, self.o = (nn.Linear(c.dim, c.dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(c.dim), RMSNorm(c.dim)

    def forward(self, x_BNC, norm: Callable, rotary: tuple) -> Tensor | Dual:
        """Of norm(x): normalised here, because a module's arguments live as long as its call."""
        x_BNC = norm(x_BNC)
        q = ops.norm_rope(self.q(x_BNC), self.norm_q.weight, *rotary, self.eps)
        k = ops.norm_rope(self.k(x_BNC), self.norm_k.weight, *rotary, self.eps)
        v = self.v(x_BNC)
        del x_BNC                       # attention is the peak: only its operands live beside the stream
        if self.ulysses:
            q, k, v = self.ulysses.heads(q, k, v)
        y_BNC = _attend(q, k, v, self.heads // (self.ulysses.ranks if self.ulysses else 1))
        del q, k, v
        if self.ulysses:
            y_BNC = self.ulysses.tokens(y_BNC)
        return self.o(y_BNC)


class CrossAttention(SelfAttention):
    """To the text and, apart, to the image: one query, two softmaxes, their outputs added.

    Padded text is attended to, as in the released model: no mask.
    """

    def __init__(self, c: WanConfig):
        super().__init__(c)
        if c.image_dim:
            self.k_img, self.v_img = nn.Linear(c.dim, c.dim), nn.Linear(c.dim, c.dim)
            self.norm_k_img = RMSNorm(c.dim)

    def forward(self, x_BNC, norm: Callable, text_BLC: Tensor, image_BMC: Tensor | None) -> Tensor | Dual:
        q = ops.norm_rope(self.q(norm(x_BNC)), self.norm_q.weight, None, None, self.eps)
        k = ops.norm_rope(self.k(text_BLC), self.norm_k.weight, None, None, self.eps)
        y_BNC = _attend(q, k, self.v(text_BLC), self.heads)
        if image_BMC is not None:
            k = ops.norm_rope(self.k_img(image_BMC), self.norm_k_img.weight, None, None, self.eps)
            z_BNC = _attend(q, k, self.v_img(image_BMC), self.heads)
            del q
            y_BNC = y_BNC + z_BNC
            del z_BNC
        return self.o(y_BNC)


class Gelu(nn.Module):
    def forward(self, x) -> Tensor | Dual:
        return ops.gelu(x)


class Head(nn.Module):
    def __init__(self, c: WanConfig):
        super().__init__()
        self.eps = c.eps
        self.modulation = nn.Parameter(torch.randn(1, 2, c.dim) / c.dim**0.5)
        self.head = nn.Linear(c.dim, PATCH * PATCH * c.latent)

    def forward(self, x_BNC, e_BC) -> Tensor | Dual:
        shift, scale = (self.modulation + e_BC[:, None]).unbind(1)
        return self.head(ops.modulate(x_BNC, scale, shift, self.eps))


class ImageEmbedding(nn.Module):
    """CLIP tokens to the network's width: norm, linear, GELU, linear, norm."""

    def __init__(self, image_dim: int, dim: int):
        super().__init__()
        self.proj = nn.Sequential(LayerNorm(image_dim), nn.Linear(image_dim, image_dim), nn.GELU(),
                                  nn.Linear(image_dim, dim), LayerNorm(dim))

    def forward(self, image_BME: Tensor) -> Tensor:
        return self.proj(image_BME)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _attend(q_BNC, k_BMC, v_BMC, heads: int):
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q_BNC, k_BMC, v_BMC))
    return ops.attention(q, k, v).transpose(1, 2).flatten(2)


def _patches(x_BCTHW):
    """(B, C, T, 2h, 2w) -> (B, T h w, 4 C), the order of the convolution's flattened weight."""
    B, C, T, H, W = x_BCTHW.shape
    x = x_BCTHW.reshape(B, C, T, H // PATCH, PATCH, W // PATCH, PATCH)
    return x.permute(0, 2, 3, 5, 1, 4, 6).reshape(B, T * (H // PATCH) * (W // PATCH), C * PATCH * PATCH)


def _fits(shape: tuple, want: tuple) -> bool:
    """Whether the sizes are the wanted ones; L and M stand for any."""
    return len(shape) == len(want) and all(w in (n, "L", "M") for n, w in zip(shape, want, strict=True))


def rotary_tables(T: int, H: int, W: int, D: int, device) -> tuple[Tensor, Tensor]:
    """(cos, sin), each (T H W, D / 2) fp32, of the 3-D rotary embedding of head width D.

    The channel pairs are shared out to time, height and width as D - 4 (D // 6), 2 (D // 6), 2 (D // 6)
    channels: 44, 42, 42 of 128.  Computed in float64.
    """
    widths = D - 4 * (D // 6), 2 * (D // 6), 2 * (D // 6)
    angles = []
    for axis, (size, width) in enumerate(zip((T, H, W), widths, strict=True)):
        frequency = THETA ** (-torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
        angle = torch.arange(size, dtype=torch.float64, device=device)[:, None] * frequency
        shape = [1, 1, 1, width // 2]
        shape[axis] = size
        angles.append(angle.view(shape).expand(T, H, W, width // 2))
    angle = torch.cat(angles, 3).flatten(0, 2)
    return angle.cos().float(), angle.sin().float()


@torch.no_grad()
def initialise(net: Wan, rng: torch.Generator) -> None:
    """Weights for training from scratch: Xavier linears, small time and text embeddings, a zero head."""
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
    """Make a network of one time a flow map, in place: u(x_t, t, s) = F(x_t, t), as the embedding of s ends
    in zeros; its first layer is a copy of time's.  One that is a flow map already stays as it is."""
    if not net.config.second_time:
        net.config = replace(net.config, second_time=True)
        net.second_time_embedding = copy.deepcopy(net.time_embedding)
        for p in net.second_time_embedding[2].parameters():
            nn.init.zeros_(p)
    return net


def cast(net: Wan, dtype: torch.dtype) -> Wan:
    """Store the stream's linear maps as dtype, in place; all of time, norms and modulations stay fp32."""
    of_time = {*net.time_embedding, *net.time_projection, *getattr(net, "second_time_embedding", ())}
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv3d) and module not in of_time:
            module.to(dtype)
    return net
