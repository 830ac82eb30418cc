"""Forward-mode rule of scaled_dot_product_attention.

    S = c q k' + mask    P = softmax S    o = P v
    S' = c (q' k + q k') + mask'          o' = (P S' - mu P) v + P v',   mu = rowsum(P S')
Calls that ops.attention supports use it.  With a mask or another layout, torch's kernel computes the value;
the tangent is computed by blocks of query rows, without an N x M matrix.  With dropout both are unfused.
"""

from types import FunctionType

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import CausalBias

from swiftvideo_fast import ops
from swiftvideo_fast.dispatch import SUBCLASS_AWARE, make_duals, rule
from swiftvideo_fast.dual import Dual, has_tangent, parts, primals
from swiftvideo_fast.ops.check import FLOATS

BLOCK_ELEMENTS = 1 << 22                       # elements of one block's S over all heads: 16 MB in fp32


@rule(F.scaled_dot_product_attention)
def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
              enable_gqa=False):
    query, key, value = _autocast(query, key, value)
    if isinstance(attn_mask, CausalBias):
        attn_mask = attn_mask._materialize(query.device)
    if dropout_p > 0:
        return _unfused(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if attn_mask is None and _fused(query, key, value, enable_gqa):
        q, k, v = map(_unit_stride, (query, key, value))
        return ops.attention(q, k, v, scale=scale, causal=is_causal)
    q, k, v, mask = primals([query, key, value, attn_mask])
    o = F.scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
    if not has_tangent((query, key, value, attn_mask)):
        return o
    with torch.no_grad():
        return make_duals(o, _tangent(query, key, value, attn_mask, is_causal, scale, enable_gqa))


SUBCLASS_AWARE.add(F.scaled_dot_product_attention)                   # the rule handles CausalBias


def _autocast(*qkv):
    """Returns q, k, v in autocast's dtype, cast as torch does before its kernels."""
    device = qkv[0].device.type
    if not torch.is_autocast_enabled(device):
        return qkv
    dtype = torch.get_autocast_dtype(device)
    return [x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in qkv]


def _fused(query, key, value, enable_gqa: bool) -> bool:
    """True if ops.attention supports q (B, H, N, D), k v (B, G, M, D): one dtype, none empty."""
    q, k, v = primals([query, key, value])
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape:
        return False
    if not (q.dtype == k.dtype == v.dtype) or q.dtype not in FLOATS or q.numel() * k.numel() == 0:
        return False
    if q.dtype == torch.float16 and q.device.type == "cpu":
        return False
    (B, H, _, D), G = q.shape, k.shape[1]
    return k.shape[0] == B and k.shape[3] == D and (H % G == 0 if enable_gqa else H == G)


def _unit_stride(x):
    p, t = parts(x)
    p, t = (a if a is None or a.stride(-1) == 1 else a.contiguous() for a in (p, t))
    return p if t is None else Dual(p, t)


def _tangent(query, key, value, attn_mask, is_causal, scale, enable_gqa):
    (q, tq), (k, tk), (v, tv), (mask, tmask) = map(parts, (query, key, value, attn_mask))
    wide = torch.promote_types(q.dtype, torch.float32)
    if enable_gqa:
        k, tk, v, tv = (x if x is None else x.repeat_interleave(q.shape[-3] // x.shape[-3], -3)
                        for x in (k, tk, v, tv))
    N, M = q.shape[-2], k.shape[-2]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    k, tk, v, tv = (x if x is None else x.to(wide) for x in (k, tk, v, tv))
    rows = max(1, BLOCK_ELEMENTS // max(1, q.shape[:-2].numel() * M))
    blocks = []
    for begin in range(0, N, rows):
        block = slice(begin, min(begin + rows, N))
        q_rows = q[..., block, :].to(wide) * scale
        s = q_rows @ k.mT
        if is_causal:
            later = torch.arange(M, device=q.device) > torch.arange(N, device=q.device)[block, None]
            s = s.masked_fill(later, -torch.inf)
        if mask is not None:
            here = _rows(mask, block)
            s = s.masked_fill(~here, -torch.inf) if mask.dtype == torch.bool else s + here
        p = torch.softmax(s, -1).nan_to_num(0.0)            # a fully masked row gives 0, as in torch
        ts = [] if tq is None else [(tq[..., block, :].to(wide) * scale) @ k.mT]
        ts += [] if tk is None else [q_rows @ tk.mT]
        ts += [] if tmask is None else [_rows(tmask, block)]
        to = 0
        if ts:
            h = p * sum(ts[1:], ts[0])
            to = (h - p * h.sum(-1, keepdim=True)) @ v
        blocks.append(to if tv is None else to + p @ tv)
    return torch.cat(blocks, -2)


def _rows(mask, block):
    return mask if mask.dim() < 2 or mask.shape[-2] == 1 else mask[..., block, :]


def _unfused(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa):
    """Computes attention with dropout by rules: value and tangent share one dropout mask."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    s = torch.matmul(query, key.transpose(-2, -1)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).triu(1), -torch.inf)
    if attn_mask is not None:
        s = s.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else s + attn_mask
    return torch.matmul(torch.dropout(torch.softmax(s, -1), dropout_p, True), value)


def _without_overload_check(function: FunctionType) -> FunctionType:
    """Returns a copy of a torch Python function without its overload check: its body is dispatched."""
    checks = [name for name in function.__globals__ if name.startswith("has_torch_function")]
    unchecked = function.__globals__ | dict.fromkeys(checks, lambda *_: False)
    return FunctionType(function.__code__, unchecked, function.__name__, function.__defaults__)


rule(F.multi_head_attention_forward)(_without_overload_check(F.multi_head_attention_forward))
