"""Redirects flash_attn_func and its packed forms, versions 2 and 3, to scaled_dot_product_attention's rule.

They wrap an autograd.Function, which torch's dispatch does not see; `intercept` calls `flash` instead.
Layout (B, N, H, D).  Their causal mask is aligned bottom-right where N != M.
"""

import inspect

import torch
import torch.nn.functional as F

from swiftvideo_fast.dual import NoTangent

MODULES = ("flash_attn", "flash_attn_interface", "flash_attn.flash_attn_interface")
FUNCTIONS = ("flash_attn_func", "flash_attn_qkvpacked_func", "flash_attn_kvpacked_func")
SUPPORTED = {"q", "k", "v", "qkv", "kv", "softmax_scale", "causal", "dropout_p"}
NO_EFFECT = {"deterministic", "num_splits", "pack_gqa", "sm_margin"}        # scheduling options: same result


def flash(name: str, signature: inspect.Signature, args: tuple, kwargs: dict):
    """Returns o (B, N, H, D) of a call of `name`.  Raises NoTangent for an option without a tangent."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    for argument, value in given.items():
        if argument in SUPPORTED or argument in NO_EFFECT:
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
