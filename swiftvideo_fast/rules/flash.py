"""flash_attn_func and its packed forms, versions 2 and 3: they go to the fused op.

They are Python functions around an autograd.Function, which torch's dispatch does not see: `intercept` calls
here.
Layout (B, N, H, D).  Where queries are fewer than keys, their causal mask ends at the last key: bottom right.
"""

import inspect

import torch
import torch.nn.functional as F

from swiftvideo_fast.dual import NoTangent

HOMES = ("flash_attn", "flash_attn_interface", "flash_attn.flash_attn_interface")
NAMES = ("flash_attn_func", "flash_attn_qkvpacked_func", "flash_attn_kvpacked_func")
TAKEN = {"q", "k", "v", "qkv", "kv", "softmax_scale", "causal", "dropout_p"}
SPEED = {"deterministic", "num_splits", "pack_gqa", "sm_margin"}            # these do not change the result


def flash(name: str, signature: inspect.Signature, args: tuple, kwargs: dict):
    """The call of `name`, whose signature this is, by scaled_dot_product_attention's rule."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    for argument, value in given.items():
        if argument in TAKEN or argument in SPEED:
            continue
        default = signature.parameters[argument].default
        if value is not default and value != default and list(value or ()) != list(default or ()):
            raise NoTangent(f"{name}: no tangent with {argument}={value}; want {default}")
    if "qkv" in given:
        q, k, v = given["qkv"].unbind(2)
    elif "kv" in given:
        q, (k, v) = given["q"], given["kv"].unbind(2)
    else:
        q, k, v = given["q"], given["k"], given["v"]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    causal, mask, N, M = given.get("causal", False), None, q.shape[2], k.shape[2]
    if causal and N != M:
        causal, mask = False, torch.ones(N, M, dtype=torch.bool, device=q.device).tril(M - N)
    o = F.scaled_dot_product_attention(q, k, v, mask, given.get("dropout_p", 0.0), causal,
                                       scale=given.get("softmax_scale"), enable_gqa=q.shape[1] != k.shape[1])
    return o.transpose(1, 2)
