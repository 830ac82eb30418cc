"""The layers of the Wan transformer: block, attention, norms, embeddings, head.  Letters as in network.py."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftvideo_fast import ops
from swiftvideo_fast.dual import Dual
from swiftvideo_fast.models.ulysses import Ulysses
from swiftvideo_fast.models.wan.sizes import PATCH, THETA, WanConfig

MLP_ROWS = 4096     # tokens per clip in one MLP call without grad: enough for a matmul at full speed


class Block(nn.Module):
    """Self-attention and MLP, each modulated and gated by time; cross-attention without either."""

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
    """The time embedding's linear layer: computed in fp32 even if an engine stores every weight as bf16."""

    def forward(self, x) -> Tensor | Dual:
        return F.linear(x, wide(self.weight), wide(self.bias))


class LayerNorm(nn.LayerNorm):
    """Affine LayerNorm: ops.modulate with the gain and shift of all clips, fp32 for a bf16 stream too."""

    def forward(self, x_BNC) -> Tensor | Dual:
        s_BC, b_BC = (a.repeat(x_BNC.shape[0], 1) for a in (wide(self.weight) - 1, wide(self.bias)))
        return ops.modulate(x_BNC, s_BC, b_BC, self.eps)


class RMSNorm(nn.Module):
    """The gain of an RMSNorm over the channels of all heads; ops.norm_rope applies it."""

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
        """Takes x and norm, not norm(x): an argument stays alive through attention, the peak."""
        x_BNC = norm(x_BNC)
        q = ops.norm_rope(self.q(x_BNC), self.norm_q.weight, *rotary, self.eps)
        k = ops.norm_rope(self.k(x_BNC), self.norm_k.weight, *rotary, self.eps)
        v = self.v(x_BNC)
        del x_BNC                       # frees all but attention's operands and the stream
        if self.ulysses:
            q, k, v = self.ulysses.heads(q, k, v)
        y_BNC = _attend(q, k, v, self.heads // (self.ulysses.ranks if self.ulysses else 1))
        del q, k, v
        if self.ulysses:
            y_BNC = self.ulysses.tokens(y_BNC)
        return self.o(y_BNC)


class CrossAttention(SelfAttention):
    """Attention to the text plus attention to the image, with one query and two softmaxes.

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
    """Maps CLIP tokens to the network's width: norm, linear, GELU, linear, norm."""

    def __init__(self, image_dim: int, dim: int):
        super().__init__()
        self.proj = nn.Sequential(LayerNorm(image_dim), nn.Linear(image_dim, image_dim), nn.GELU(),
                                  nn.Linear(image_dim, dim), LayerNorm(dim))

    def forward(self, image_BME: Tensor) -> Tensor:
        return self.proj(image_BME)


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _attend(q_BNC, k_BMC, v_BMC, heads: int):
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q_BNC, k_BMC, v_BMC))
    return ops.attention(q, k, v).transpose(1, 2).flatten(2)


def rotary_tables(T: int, H: int, W: int, D: int, device) -> tuple[Tensor, Tensor]:
    """Returns (cos, sin), each (T H W, D / 2) fp32, of the 3-D rotary embedding of head width D.

    The channels are split over time, height and width as D - 4 (D // 6), 2 (D // 6), 2 (D // 6)
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
