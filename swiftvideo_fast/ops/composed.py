"""Stand-ins for the C++ twins, by composition: replaced as csrc/ fills up."""

import torch

from swiftvideo_fast.ops import reference


def _wide(x):
    return x if x is None or x.dtype == torch.float64 else x.float()


def _with_tangents(fn, primals, tangents):
    primals = [_wide(x) for x in primals]
    pairs = zip(primals, tangents, strict=True)
    tangents = [torch.zeros_like(x) if t is None else t.to(x.dtype) for x, t in pairs]
    return torch.func.jvp(fn, tuple(primals), tuple(tangents))


def _rows(o):
    return o.transpose(1, 2).contiguous().transpose(1, 2)


def _lse(q, k, scale, causal):
    s = _wide(q) @ _wide(k).repeat_interleave(q.shape[1] // k.shape[1], 1).mT * scale
    if causal:
        s = s.masked_fill(~torch.ones(s.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    return s.logsumexp(-1)


def attention(q, k, v, scale, causal):
    o = reference.attention(_wide(q), _wide(k), _wide(v), scale, causal).to(q.dtype)
    return _rows(o), _lse(q, k, scale, causal)


def attention_jvp(q, tq, k, tk, v, tv, scale, causal):
    o, to = _with_tangents(lambda *x: reference.attention(*x, scale, causal), (q, k, v), (tq, tk, tv))
    return _rows(o.to(q.dtype)), _rows(to.to(q.dtype)), _lse(q, k, scale, causal)


def modulate(x, s, b, eps):
    return reference.modulate(_wide(x), _wide(s), _wide(b), eps).to(x.dtype)


def modulate_jvp(x, tx, s, ts, b, tb, eps):
    y, ty = _with_tangents(lambda x, s, b: reference.modulate(x, s, b, eps), (x, s, b), (tx, ts, tb))
    return y.to(x.dtype), ty.to(x.dtype)


def _vjp(fn, primals, dy):
    wide = [_wide(x) for x in primals]
    grads = torch.func.vjp(fn, *wide)[1](dy.to(wide[0].dtype))
    return tuple(g.to(x.dtype) for g, x in zip(grads, primals, strict=True))


def modulate_backward(dy, x, s, eps):
    return _vjp(lambda x, s, b: reference.modulate(x, s, b, eps), (x, s, s), dy)


def norm_rope(x, w, cos, sin, eps):
    return reference.norm_rope(_wide(x), _wide(w), cos, sin, eps).to(x.dtype)


def norm_rope_jvp(x, tx, w, cos, sin, eps):
    y, ty = _with_tangents(lambda x: reference.norm_rope(x, _wide(w), cos, sin, eps), (x,), (tx,))
    return y.to(x.dtype), ty.to(x.dtype)


def norm_rope_backward(dy, x, w, cos, sin, eps):
    return _vjp(lambda x, w: reference.norm_rope(x, w, cos, sin, eps), (x, w), dy)


def gate(x, y, g):
    return reference.gate(_wide(x), _wide(y), _wide(g)).to(x.dtype)


def gate_jvp(x, tx, y, ty, g, tg):
    z, tz = _with_tangents(reference.gate, (x, y, g), (tx, ty, tg))
    return z.to(x.dtype), tz.to(x.dtype)


def gate_backward(dz, y, g):
    return _vjp(lambda y, g: reference.gate(torch.zeros_like(y), y, g), (y, g), dz)


def gelu_jvp(x, tx):
    y, ty = _with_tangents(reference.gelu, (x,), (tx,))
    return y.to(x.dtype), ty.to(x.dtype)


def tangent(v, F, dF, t, r, norm, c):
    return reference.tangent(_wide(v), _wide(F), _wide(dF), t.to(_wide(v).dtype), r, norm, c)


def ccd_loss(F_student, F, g):
    residual = _wide(F_student) - _wide(F) - g
    return residual.square().flatten(1).sum(1), residual.to(F_student.dtype)


def ema_(average, master, decay, copy):
    torch._foreach_lerp_(average, master, 1 - decay)
    for c, a in zip(copy, average, strict=False):
        c.copy_(a)
