"""Networks of diffusers and transformers, small and randomly initialised, as functions of float tensors.

Each builder returns (function, arguments) in the dtype D: the unmodified module with its constant inputs
bound.
"""

from collections.abc import Callable

import torch
from torch import Tensor

D = torch.float64


def wan() -> tuple[Callable, tuple[Tensor, ...]]:
    """diffusers' image-to-video Wan, in the published layout (36 channels in, CLIP image tokens)."""
    from diffusers import WanTransformer3DModel

    net = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=36, out_channels=16, text_dim=32,
        freq_dim=32, ffn_dim=64, num_layers=2, image_dim=20, added_kv_proj_dim=48, rope_max_seq_len=32).to(D)
    text, image = torch.randn(2, 5, 32, dtype=D), torch.randn(2, 257, 20, dtype=D)
    return (lambda x, t: net(x, t, text, image, return_dict=False)[0],
            (torch.randn(2, 36, 2, 4, 6, dtype=D), 1000 * torch.rand(2, dtype=D)))


def sd3():
    from diffusers import SD3Transformer2DModel

    net = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=16, pooled_projection_dim=24,
        pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm").to(D)
    text, pooled = torch.randn(2, 5, 16, dtype=D), torch.randn(2, 24, dtype=D)
    return (lambda x, t: net(x, text, pooled, t, return_dict=False)[0],
            (torch.randn(2, 4, 8, 8, dtype=D), 1000 * torch.rand(2, dtype=D)))


def flux():
    from diffusers import FluxTransformer2DModel

    net = FluxTransformer2DModel(
        patch_size=1, in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=12, pooled_projection_dim=10, guidance_embeds=True,
        axes_dims_rope=(4, 6, 6)).to(D)
    text, pooled = torch.randn(2, 5, 12, dtype=D), torch.randn(2, 10, dtype=D)
    text_ids, image_ids = torch.zeros(5, 3, dtype=D), torch.randint(0, 4, (9, 3)).to(D)
    return (lambda x, t, g: net(x, text, pooled, t, image_ids, text_ids, g, return_dict=False)[0],
            (torch.randn(2, 9, 8, dtype=D), torch.rand(2, dtype=D), 3 * torch.rand(2, dtype=D)))


def pixart():
    from diffusers import PixArtTransformer2DModel

    net = PixArtTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=8, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, cross_attention_dim=16, caption_channels=12,
        use_additional_conditions=False).to(D)
    text, mask = torch.randn(2, 5, 12, dtype=D), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    return (lambda x, t: net(x, text, t, {"resolution": None, "aspect_ratio": None},
                             encoder_attention_mask=mask, return_dict=False)[0],
            (torch.randn(2, 4, 8, 8, dtype=D), 1000 * torch.rand(2, dtype=D)))


def cogview4():
    from diffusers import CogView4Transformer2DModel

    net = CogView4Transformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=12,
        num_attention_heads=2,
        text_embed_dim=16, time_embed_dim=16, condition_dim=8, pos_embed_max_size=16, sample_size=8).to(D)
    text = torch.randn(2, 5, 16, dtype=D)
    size = torch.full((2, 2), 64.0, dtype=D)
    return (lambda x, t: net(x, text, t, size, size, torch.zeros_like(size), return_dict=False)[0],
            (torch.randn(2, 4, 8, 8, dtype=D), 1000 * torch.rand(2, dtype=D)))


def lumina2():
    """Grouped-query attention, masks, complex rotary."""
    from diffusers import Lumina2Transformer2DModel

    net = Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, hidden_size=24, num_layers=2,
        num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1, multiple_of=16, norm_eps=1e-5,
        axes_dim_rope=(4, 2, 2), axes_lens=(32, 32, 32), cap_feat_dim=16).to(D)
    text, mask = torch.randn(2, 5, 16, dtype=D), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    return (lambda x, t: net(x, t, text, mask, return_dict=False)[0],
            (torch.randn(2, 4, 8, 8, dtype=D), torch.rand(2, dtype=D)))


def dinov2():
    from transformers import Dinov2Config, Dinov2Model

    net = Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=28,
                                   patch_size=7)).to(D).eval()
    return lambda x: net(x).last_hidden_state, (torch.randn(2, 3, 28, 28, dtype=D),)


def umt5():
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    net = UMT5EncoderModel(config).to(D)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1] * 7])
    net.eval()
    return (lambda x: net(inputs_embeds=x, attention_mask=mask).last_hidden_state,
            (torch.randn(2, 7, 32, dtype=D),))


ALL = [wan, sd3, flux, pixart, cogview4, lumina2, dinov2, umt5]
