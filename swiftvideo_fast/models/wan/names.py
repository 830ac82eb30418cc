"""Tensor names in Wan's four released files, and in diffusers' and transformers' classes.

A table maps modules and parameters; N stands for a block's index.  `Names.of` maps released names to the
class's, `Names.back` the reverse.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Names:
    """A two-way name table; unknown names raise ValueError.  what: its model, for errors."""

    what: str
    table: dict[str, str]

    def of(self, name: str) -> str:
        return self._renamed(name, self.table)

    def back(self, name: str) -> str:
        return self._renamed(name, {theirs: ours for ours, theirs in self.table.items()})

    def _renamed(self, name: str, table: dict[str, str]) -> str:
        number = re.search(r"\.(\d+)\.", name)
        generic = f"{name[:number.start()]}.N.{name[number.end():]}" if number else name
        for key in (generic, name):
            module, _, leaf = key.rpartition(".")
            if key in table:
                return table[key].replace("N", number[1] if number else "N")
            if module in table:
                return f"{table[module]}.{leaf}".replace("N", number[1] if number else "N")
        raise ValueError(f"{name}: not a parameter of {self.what}; want one of {', '.join(table)} "
                         "(.weight, .bias)")


def or_itself(rename: Callable[[str], str], name: str) -> str:
    """Returns the new name, or an unknown name unchanged, so that a later check lists all unknown names."""
    try:
        return rename(name)
    except ValueError:
        return name


DIT = Names("Wan", {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
} | {f"blocks.N.{ours}": f"blocks.N.{theirs}" for ours, theirs in {
    **{f"{a}.{ours}": f"{b}.{theirs}" for a, b in (("self_attn", "attn1"), ("cross_attn", "attn2"))
       for ours, theirs in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"),
                            ("norm_q", "norm_q"), ("norm_k", "norm_k"))},
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "norm3": "norm2",                   # diffusers numbers norms in execution order
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}.items()})

UMT5 = Names("the umT5 encoder", {
    "token_embedding": "shared",
    "norm": "encoder.final_layer_norm",
} | {f"blocks.N.{ours}": f"encoder.block.N.layer.{theirs}" for ours, theirs in {
    "norm1": "0.layer_norm",
    **{f"attn.{p}": f"0.SelfAttention.{p}" for p in "qkvo"},
    "pos_embedding.embedding": "0.SelfAttention.relative_attention_bias",
    "norm2": "1.layer_norm",
    "ffn.gate.0": "1.DenseReluDense.wi_0",
    "ffn.fc1": "1.DenseReluDense.wi_1",
    "ffn.fc2": "1.DenseReluDense.wo",
}.items()})

CLIP = Names("CLIP's image encoder", {              # after `split_clip`
    "visual.patch_embedding": "vision_model.embeddings.patch_embedding",
    "visual.cls_embedding": "vision_model.embeddings.class_embedding",
    "visual.pos_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.pre_norm": "vision_model.pre_layrnorm",
    "visual.post_norm": "vision_model.post_layernorm",
    "visual.head": "visual_projection.weight",
} | {f"visual.transformer.N.{ours}": f"vision_model.encoder.layers.N.{theirs}" for ours, theirs in {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    **{f"attn.{p}": f"self_attn.{p}_proj" for p in "qkv"},
    "attn.proj": "self_attn.out_proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}.items()})

RESNET = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2",
          "shortcut": "conv_shortcut"}
LEVELS, RESNETS = 4, 3                              # levels of the VAE's decoder, residual blocks per level


def _vae_table() -> dict[str, str]:
    table = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
    for part in ("encoder", "decoder"):
        table |= {f"{part}.conv1": f"{part}.conv_in", f"{part}.head.0": f"{part}.norm_out",
                  f"{part}.head.2": f"{part}.conv_out"}
        table |= {f"{part}.middle.1.{p}": f"{part}.mid_block.attentions.0.{p}"
                  for p in ("norm", "to_qkv", "proj")}
        table |= {f"{part}.middle.{2 * i}.{ours}": f"{part}.mid_block.resnets.{i}.{theirs}"
                  for i in (0, 1) for ours, theirs in RESNET.items()}
    resample = {p: p for p in ("resample.1", "time_conv")}
    table |= {f"encoder.downsamples.N.{ours}": f"encoder.down_blocks.N.{theirs}"
              for ours, theirs in (RESNET | resample).items()}
    for level in range(LEVELS):
        first = level * (RESNETS + 1)
        table |= {f"decoder.upsamples.{first + i}.{ours}": f"decoder.up_blocks.{level}.resnets.{i}.{theirs}"
                  for i in range(RESNETS) for ours, theirs in RESNET.items()}
        table |= {f"decoder.upsamples.{first + RESNETS}.{p}": f"decoder.up_blocks.{level}.upsamplers.0.{p}"
                  for p in resample}
    return table


VAE = Names("the Wan 2.1 VAE", _vae_table())


def split_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the image encoder of the released CLIP with transformers' shapes, under released names.

    Splits query, key and value; flattens the class embedding; transposes the projection.
    """
    split = {}
    for name, tensor in tensors.items():
        if not name.startswith("visual."):
            continue
        if ".attn.to_qkv." in name:
            split |= {name.replace("to_qkv", p): part for p, part in zip("qkv", tensor.chunk(3), strict=True)}
        elif name == "visual.cls_embedding":
            split[name] = tensor.reshape(-1)
        elif name == "visual.pos_embedding":
            split[name] = tensor[0]
        elif name == "visual.head":
            split[name] = tensor.T
        else:
            split[name] = tensor
    return split
