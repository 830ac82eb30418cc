"""The elementwise kernels against torch in float64: on the GPU, or interpreted where there is none."""

import pytest
import torch
from backends import DEVICE, gpu_backend
from closeness import assert_no_worse
from swiftvideo_kernels.ccd_gradient import BLOCK
from torch.utils._pytree import tree_leaves, tree_map

from bench.arguments import arguments
from swiftvideo_fast import ops
from swiftvideo_fast.ops import reference
from swiftvideo_fast.ops.ccd_gradient import NORMS, ccd_gradient_op
from swiftvideo_fast.ops.ccd_loss import ccd_loss_op
from swiftvideo_fast.ops.ema import ema_op
from swiftvideo_fast.ops.gate import gate_backward, gate_jvp, gate_op
from swiftvideo_fast.ops.gelu import gelu_backward, gelu_jvp, gelu_op
from swiftvideo_fast.ops.modulate import modulate_backward, modulate_jvp, modulate_op
from swiftvideo_fast.ops.norm_rope import norm_rope_backward, norm_rope_jvp, norm_rope_op

F32, BF16 = torch.float32, torch.bfloat16
SHAPES = [                      # (B, N, C)
    (1, 1, 8),                  # smallest
    (2, 5, 88),                 # C not a sum of two powers of two, N not a multiple of a tile's rows
    (2, 67, 8),                 # more rows than one backward program sums, short rows
    (1, 3, 1536),               # Wan 1.3B's width
]
EPS = 1e-6


def draw(rng, *shape, dtype=F32):
    return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)


def exact(fn, *args):
    return tree_map(lambda x: x.double() if isinstance(x, torch.Tensor) else x, fn)(*tree_map(
        lambda x: x.double() if isinstance(x, torch.Tensor) else x, args))


def check(names, op, args, meaning):
    """op(*args) on the GPU backend errs at most twice as much as `meaning` in the same dtypes, and returns
    the CPU backend's shapes and dtypes."""
    moved = tree_map(lambda x: x.to(DEVICE) if isinstance(x, torch.Tensor) else x, args)
    got = tree_leaves(gpu_backend(op)(*moved))
    assert [(g.shape, g.dtype) for g in got] == [(c.shape, c.dtype) for c in tree_leaves(op(*args))]
    same, true = tree_leaves(meaning(*args)), tree_leaves(exact(meaning, *args))
    for name, g, s, t in zip(names.split(), got, same, true, strict=True):
        assert_no_worse(name, g.cpu(), s, t)
    return got


def forward_mode(fn, pairs, *constants):
    """(fn, its tangent) over (primal, tangent or None) pairs, by torch's own forward mode."""
    tangents = tuple(torch.zeros_like(p) if t is None else t for p, t in pairs)
    return torch.func.jvp(lambda *p: fn(*p, *constants), tuple(p for p, _ in pairs), tangents)


def gradients(fn, inputs, cotangent):
    inputs = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(fn(*inputs), inputs, cotangent)


def rotation(rng, N, R):
    angle = draw(rng, N, R)
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("B, N, C", SHAPES)
class TestMatchesTorch:
    def test_modulate(self, rng, B, N, C, dtype):
        x, tx = (draw(rng, B, N, C, dtype=dtype) for _ in range(2))
        s, ts, b, tb = (draw(rng, B, C) for _ in range(4))
        check("y ty", modulate_jvp, (x, tx, s, ts, b, tb, EPS),
              lambda x, tx, s, ts, b, tb, eps: forward_mode(reference.modulate,
                                                            [(x, tx), (s, ts), (b, tb)], eps))
        check("y", modulate_op, (x, s, b, EPS), reference.modulate)

    def test_modulate_backward(self, rng, B, N, C, dtype):
        dy, x = (draw(rng, B, N, C, dtype=dtype) for _ in range(2))
        check("dx ds db", modulate_backward, (dy, x, draw(rng, B, C), EPS),
              lambda dy, x, s, eps: gradients(lambda x, s, b: reference.modulate(x, s, b, eps),
                                              (x, s, torch.zeros_like(s)), dy))

    @pytest.mark.parametrize("rotated", [True, False])
    def test_norm_rope(self, rng, B, N, C, dtype, rotated):
        x, tx = (draw(rng, B, N, C, dtype=dtype) for _ in range(2))
        w, (cos, sin) = draw(rng, C), rotation(rng, N, C // 8) if rotated else (None, None)
        check("y ty", norm_rope_jvp, (x, tx, w, cos, sin, EPS),
              lambda x, tx, *rest: forward_mode(reference.norm_rope, [(x, tx)], *rest))
        check("y", norm_rope_op, (x, w, cos, sin, EPS), reference.norm_rope)

    @pytest.mark.parametrize("rotated", [True, False])
    def test_norm_rope_backward(self, rng, B, N, C, dtype, rotated):
        dy, x = (draw(rng, B, N, C, dtype=dtype) for _ in range(2))
        angles = rotation(rng, N, C // 4) if rotated else (None, None)
        check("dx dw", norm_rope_backward, (dy, x, draw(rng, C), *angles, EPS),
              lambda dy, x, w, *rest: gradients(lambda x, w: reference.norm_rope(x, w, *rest), (x, w), dy))

    def test_gate(self, rng, B, N, C, dtype):
        x, tx, y, ty = (draw(rng, B, N, C, dtype=dtype) for _ in range(4))
        g, tg = (draw(rng, B, C) for _ in range(2))
        check("z tz", gate_jvp, (x, tx, y, ty, g, tg),
              lambda x, tx, y, ty, g, tg: forward_mode(reference.gate, [(x, tx), (y, ty), (g, tg)]))
        check("z", gate_op, (x, y, g), reference.gate)
        check("dy dg", gate_backward, (x, y, g),
              lambda dz, y, g: gradients(lambda y, g: reference.gate(torch.zeros_like(y), y, g), (y, g), dz))

    def test_gelu(self, rng, B, N, C, dtype):
        x, tx = 3 * draw(rng, B, N, C, dtype=dtype), draw(rng, B, N, C, dtype=dtype)
        check("y ty", gelu_jvp, (x, tx), lambda x, tx: forward_mode(reference.gelu, [(x, tx)]))
        check("y", gelu_op, (x,), reference.gelu)
        check("dx", gelu_backward, (tx, x), lambda dy, x: gradients(reference.gelu, (x,), dy))

    @pytest.mark.parametrize("norm", NORMS)
    def test_ccd_gradient(self, rng, B, N, C, dtype, norm):
        v, F, dF = (draw(rng, B, N, C, dtype=dtype) for _ in range(3))

        def meaning(v, F, dF, t, *rest):
            return reference.ccd_gradient(*(x.to(t.dtype) for x in (v, F, dF)), t, *rest)

        check("g size", ccd_gradient_op, (v, F, dF, draw(rng, B).sigmoid(), 0.3, norm, 0.1), meaning)

    def test_ccd_loss(self, rng, B, N, C, dtype):
        F_student, F = (draw(rng, B, N, C, dtype=dtype) for _ in range(2))
        check("loss residual", ccd_loss_op, (F_student, F, draw(rng, B, N, C)),
              lambda F_student, F, g: (reference.ccd_loss(F_student, F, g), F_student - F - g))


# The interpreter truncates float32 to bfloat16 instead of rounding, so there the copy is float16.
@pytest.mark.parametrize("copied", [BF16 if DEVICE == "cuda" else torch.float16, F32, None], ids=str)
def test_ema_moves_the_average_and_fills_the_copy(rng, copied):
    average, master = ([draw(rng, *s).to(DEVICE) for s in ((3,), (130, 70))] for _ in range(2))
    want = [reference.ema(a.double(), m.double(), 0.95) for a, m in zip(average, master, strict=True)]
    copy = [] if copied is None else [torch.full_like(a, torch.nan, dtype=copied) for a in average]
    gpu_backend(ema_op)(average, master, 0.95, copy)
    for a, w in zip(average, want, strict=True):
        torch.testing.assert_close(a.double(), w, rtol=2e-7, atol=1e-7)
    for a, c in zip(average, copy, strict=False):
        assert torch.equal(a.to(copied), c)


def test_a_clip_longer_than_all_programs_blocks_is_summed_whole(rng):
    """At most 1024 programs per clip: the first two process a second block, one full, one ragged."""
    D = 1025 * BLOCK + 5
    x, y, z = (draw(rng, 1, D) for _ in range(3))
    check("g size", ccd_gradient_op, (x, y, z, torch.ones(1), 0.3, "l2", 0.1), reference.ccd_gradient)
    check("loss residual", ccd_loss_op, (x, y, z), lambda x, y, z: (reference.ccd_loss(x, y, z), x - y - z))


def apart(x):
    """x's values in memory with NaN between."""
    return torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0] if isinstance(x, torch.Tensor) else x


def test_any_layout_is_read(rng):
    for name in ops.OPS:
        for op in ops.custom_ops(name).values() if name not in ("attention", "ema") else ():
            given = arguments(op, 2, 3, 24, F32, lambda *shape, dtype: draw(rng, *shape).to(DEVICE)).values()
            want, got = (tree_leaves(gpu_backend(op)(*args)) for args in (given, map(apart, given)))
            assert all(map(torch.equal, want, got)), op
    x, y = (draw(rng, 2, 3, 24).to(DEVICE) for _ in range(2))
    average = [x.clone(), x.clone()]
    gpu_backend(ema_op)(average[:1], [y], 0.95, [])
    gpu_backend(ema_op)(average[1:], [apart(y)], 0.95, [])
    assert torch.equal(*average)


def test_norm_rope_reads_float64_angles(rng):
    x, y = (draw(rng, 2, 3, 24).to(DEVICE) for _ in range(2))
    w, angles = draw(rng, 24).to(DEVICE), [table.to(DEVICE) for table in rotation(rng, 3, 4)]
    for op, *given in (norm_rope_op, x), (norm_rope_jvp, x, y), (norm_rope_backward, y, x):
        want, got = (tree_leaves(gpu_backend(op)(*given, w, *tables, EPS))
                     for tables in (angles, [table.double() for table in angles]))
        assert all(map(torch.equal, want, got)), op


@pytest.mark.parametrize("given", [(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 0)])
def test_a_missing_tangent_is_zero(rng, given):
    x, tx, y, ty = (draw(rng, 2, 3, 24).to(DEVICE) for _ in range(4))
    s, ts, b, tb = (draw(rng, 2, 24).to(DEVICE) for _ in range(4))

    def tangents(*full):
        return [t if here else None for t, here in zip(full, given, strict=True)], [
            t if here else torch.zeros_like(t) for t, here in zip(full, given, strict=True)]

    for none, zero in [tangents(tx, ts, tb)]:
        a, b_ = (gpu_backend(modulate_jvp)(x, t[0], s, t[1], b, t[2], EPS) for t in (none, zero))
        torch.testing.assert_close(a, b_)
    for none, zero in [tangents(tx, ty, ts)]:
        a, b_ = (gpu_backend(gate_jvp)(x, t[0], y, t[1], s, t[2]) for t in (none, zero))
        torch.testing.assert_close(a, b_)


def test_float64_is_refused(rng):
    x = draw(rng, 1, 2, 8, dtype=torch.float64).to(DEVICE)
    with pytest.raises(ValueError, match="gelu_jvp: float64 .* want float32, bfloat16 or float16"):
        gpu_backend(gelu_jvp)(x, x)
    with pytest.raises(ValueError, match="modulate: float64 .* want float32, bfloat16 or float16"):
        gpu_backend(modulate_op)(x.float(), x[:, 0], x[:, 0], EPS)
