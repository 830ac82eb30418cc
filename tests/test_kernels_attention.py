"""The attention kernels against torch in float64: on the GPU, or interpreted where there is none.

float16 replaces bfloat16 in the interpreter, whose bf16 products are wrong.
"""

import math
from itertools import product

import pytest
import torch
from backends import DEVICE, gpu_backend
from closeness import assert_no_worse
from swiftvideo_kernels import attention_jvp as kernel
from swiftvideo_kernels import tiles
from swiftvideo_kernels.attention_jvp import attention_jvp
from swiftvideo_kernels.attention_tangent import attention_tangent
from swiftvideo_kernels.blocks import match_strides, tma_aligned
from swiftvideo_kernels.tiles import TILES, Tile

from swiftvideo_fast.ops import reference
from swiftvideo_fast.ops.attention import attention_jvp as op

SHORT = torch.bfloat16 if DEVICE == "cuda" else torch.float16
SHAPES = [                      # (B, H, G, N, M, D); interpreted tiles are 32 queries by 16 keys
    (1, 1, 1, 1, 1, 16),        # smallest
    (1, 2, 2, 64, 32, 16),      # whole blocks only: no tail
    (2, 4, 2, 33, 37, 24),      # tails of one, two heads a key head, D no power of two
    (1, 2, 1, 20, 50, 96),      # fewer queries than a tile, more keys than queries; 3/4 of a row of the table
]
TILE = Tile(32, 16, 1, 1) if DEVICE == "cpu" else Tile(64, 32, 4, 1)
FORMS = [TILE, TILE._replace(descriptors=True)]


def draw(rng, B, H, G, N, M, D, dtype=torch.float64):
    """q, tq, k, tk, v, tv as views of (B, tokens, heads, D) memory, as a linear layer leaves them."""
    def one(tokens, heads):
        x = torch.randn(B, tokens, heads, D, generator=rng, dtype=torch.float64).to(dtype)
        return x.to(DEVICE).transpose(1, 2)
    return [one(N, H), one(N, H), one(M, G), one(M, G), one(M, G), one(M, G)]


def oracle(q, tq, k, tk, v, tv, scale, causal):
    return reference.jvp(lambda q, k, v: reference.attention(q, k, v, scale, causal), (q, k, v), (tq, tk, tv))


def wide(*tensors):
    return [x.double() for x in tensors]


def assert_right(o, to, args, scale, causal):
    """Asserts an error no worse than torch's, in the worst of four summation orders over channels."""
    exact, q_and_k = oracle(*wide(*args), scale, causal), args[:4]
    orders = [torch.randperm(args[0].shape[-1], generator=torch.Generator().manual_seed(i)) for i in range(4)]
    same = [oracle(*(x[..., order] for x in q_and_k), *args[4:], scale, causal) for order in orders]
    for name, got, true, torchs in zip(("o", "to"), (o, to), exact, zip(*same), strict=True):
        assert_no_worse(name, got, max(torchs, key=lambda x: (x.double() - true).abs().max()), true)  # noqa: B023


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dtype", [torch.float32, SHORT], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_forward_mode(rng, shape, dtype, causal):
    args, scale = draw(rng, *shape, dtype=dtype), 0.3
    o, to, lse = gpu_backend(op)(*args, scale, causal)
    assert_right(o, to, args, scale, causal)
    q, k = (x.double() for x in (args[0], args[2].repeat_interleave(shape[1] // shape[2], 1)))
    s = q @ k.mT * scale
    if causal:
        s = s.masked_fill(torch.ones_like(s, dtype=torch.bool).triu(1), -torch.inf)
    torch.testing.assert_close(lse.double(), s.logsumexp(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("tile", FORMS, ids=str)
def test_every_form_agrees(rng, tile, causal):
    args, scale = draw(rng, 2, 4, 2, 37, 37, 24, dtype=SHORT), 0.2
    o, to, lse = attention_jvp(*args, scale, causal, tile=tile)
    assert_right(o, to, args, scale, causal)
    assert_right(o, attention_tangent(*args, o, lse, scale, causal, tile=tile), args, scale, causal)


def test_rows_that_tma_cannot_read_are_copied(rng):
    tile = TILE._replace(descriptors=True)
    ragged = draw(rng, 1, 2, 1, 18, 37, 20, dtype=SHORT)                 # a row of one head is 40 bytes
    shifted = [x[..., 1:17] for x in draw(rng, 1, 2, 2, 18, 37, 24, dtype=SHORT)]
    for args in (ragged, shifted):
        for x in args:
            read = tma_aligned(x)
            assert torch.equal(read, x) and read is not x
            assert read.stride(2) % 8 == 0 == read.data_ptr() % 16
        o, to, lse = attention_jvp(*args, 0.2, False, tile=tile)
        assert_right(o, to, args, 0.2, False)
        assert_right(o, attention_tangent(*args, o, lse, 0.2, False, tile=tile), args, 0.2, False)
    on = draw(rng, 1, 2, 2, 5, 5, 24, dtype=SHORT)[0]
    one_clip = on.as_strided(on.shape, (on.stride(0) + 1, *on.stride()[1:]))
    assert tma_aligned(on) is on and tma_aligned(one_clip) is one_clip
    assert match_strides(on, one_clip)[1] is one_clip


def test_a_width_without_a_one_pass_tile_uses_two_passes(rng, monkeypatch):
    row = next(key for key in TILES if key[:2] == ("attention_jvp", "cpu" if DEVICE == "cpu" else "fp32"))
    monkeypatch.delitem(TILES, row)
    args = draw(rng, 1, 2, 1, 18, 37, row[2] or 16, dtype=torch.float32)

    def forward(q, k, v, scale, causal):
        o, _, lse = attention_jvp(q, None, k, None, v, None, scale, causal, tile=TILE)
        return o, lse

    monkeypatch.setattr(kernel, "attention", forward)
    o, to, _ = attention_jvp(*args, 0.2, False)
    assert_right(o, to, args, 0.2, False)
    cu = torch.tensor([0, 18], dtype=torch.int32, device=DEVICE)
    with pytest.raises(ValueError, match="packed head width .* want at most 128 on this card"):
        attention_jvp(*args, 0.2, False, cu_q=cu, cu_k=cu)


@pytest.mark.parametrize("given", list(product((0, 1), repeat=3))[:-1], ids=str)
def test_a_missing_tangent_is_zero(rng, given):
    q, tq, k, tk, v, tv = draw(rng, 1, 2, 2, 18, 20, 16, dtype=torch.float32)
    none = [t if here else None for t, here in zip((tq, tk, tv), given, strict=True)]
    zero = [t if here else torch.zeros_like(t) for t, here in zip((tq, tk, tv), given, strict=True)]
    got, want = (attention_jvp(q, t[0], k, t[1], v, t[2], 0.25, False) for t in (none, zero))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    two_pass = attention_tangent(q, none[0], k, none[1], v, none[2], got[0], got[2], 0.25, False)
    torch.testing.assert_close(two_pass, want[1], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("tile", FORMS, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_packed_sequences_do_not_see_each_other(rng, tile, causal):
    lengths = [(33, 17), (1, 40), (5, 0), (20, 20), (0, 7)]              # (queries, keys)
    args = draw(rng, 1, 2, 1, sum(n for n, _ in lengths), sum(m for _, m in lengths), 16, dtype=torch.float32)
    cu_q, cu_k = (torch.tensor([0, *x], dtype=torch.int32, device=DEVICE).cumsum(0, dtype=torch.int32)
                  for x in zip(*lengths, strict=True))
    o, to, lse = attention_jvp(*args, 0.25, causal, cu_q=cu_q, cu_k=cu_k, max_q=33, tile=tile)
    for i, (n, m) in enumerate(lengths):
        rows, keys = slice(cu_q[i], cu_q[i] + n), slice(cu_k[i], cu_k[i] + m)
        mine = [x[:, :, rows] for x in args[:2]] + [x[:, :, keys] for x in args[2:]]
        if m == 0:
            assert not o[:, :, rows].any() and not to[:, :, rows].any()
            assert (lse[:, :, rows] == -torch.inf).all()
            continue
        alone = attention_jvp(*mine, 0.25, causal, tile=tile)
        for got, want in zip((o, to, lse), alone, strict=True):
            torch.testing.assert_close(got[:, :, rows], want, rtol=1e-5, atol=1e-6)


def test_views_are_not_copied_and_outputs_are_token_major(rng):
    B, H, N, D = 2, 3, 18, 16
    q, k, v, tq, tk, tv = torch.randn(B, N, 6, H, D, generator=rng).to(DEVICE).permute(2, 0, 3, 1, 4)
    for launch_q in (q, q.contiguous()):                                 # a view, as tq is; its own memory
        o, to, _ = attention_jvp(launch_q, tq, k, tk, v, tv, 0.25, False)
        torch.testing.assert_close((o, to), oracle(q, tq, k, tk, v, tv, 0.25, False), rtol=1e-4, atol=1e-5)
        assert o.transpose(1, 2).is_contiguous() and to.transpose(1, 2).is_contiguous()
    for x, tx in ((q, tq), (k, tk), (v, tv)):
        assert all(a is b for a, b in zip(match_strides(x, tx), (x, tx), strict=True))


def test_every_input_may_have_its_own_strides(rng):
    """q is one clip for two; v lies in wider rows than k, and o, where given, by heads."""
    q, tq, k, tk, _, tv = draw(rng, 2, 2, 2, 18, 20, 16, dtype=torch.float32)
    q, v = q[:1].expand_as(q), draw(rng, 2, 2, 2, 18, 20, 24, dtype=torch.float32)[4][..., :16]
    o, to, lse = attention_jvp(q, tq, k, tk, v, tv, 0.25, False)
    args = q.contiguous(), tq, k, tk, v, tv
    assert_right(o, to, args, 0.25, False)
    two_pass = attention_tangent(q, tq, k, tk, v, tv, o.contiguous(), lse, 0.25, False)
    assert_right(o, two_pass, args, 0.25, False)


def test_a_negative_scale_is_refused(rng):
    args = draw(rng, 1, 1, 1, 2, 2, 16, dtype=torch.float32)
    with pytest.raises(ValueError, match="attention_jvp: scale is -0.1; want 0 or more"):
        attention_jvp(*args, -0.1, False)


def test_a_mean_in_v_cancels(rng):
    """(2) divides by the sums of what the products used; with exact sums the error is about 4 times this."""
    q, tq, k, tk, v, tv = draw(rng, 1, 1, 1, 64, 96, 32, dtype=SHORT)
    v = v + 30
    _, to, _ = attention_jvp(q, tq, k, tk, v, tv, 0.18, False)
    _, exact = oracle(*wide(q, tq, k, tk, v, tv), 0.18, False)
    error = ((to - exact).norm() / exact.norm()).item()
    assert error < 4 * torch.finfo(SHORT).eps, error


def test_a_tangent_common_to_all_scores_cancels():
    """With tS the same for every key, to is P tv, though r and v are large; p rounds as far as it can."""
    N, M, D = 3, 40, 16
    scale = -4 * math.log(0.75 + 0.45 * torch.finfo(SHORT).eps / 2)      # p: 0.45 of an ulp above 3/4
    q, tq, k, tk, v, tv = (torch.zeros(1, 1, n, D, dtype=SHORT, device=DEVICE) for n in (N, N, M, M, M, M))
    q[..., 0], k[..., 1:, 0], tk[..., 0], v[:] = 1, -0.25, 20, 30
    tv[:] = torch.linspace(-1, 1, M)[:, None]
    o, to, lse = attention_jvp(q, tq, k, tk, v, tv, scale, False)
    _, exact = oracle(*wide(q, tq, k, tk, v, tv), scale, False)
    for got in (to, attention_tangent(q, tq, k, tk, v, tv, o, lse, scale, False)):
        assert (got - exact).abs().max() < 4 * torch.finfo(SHORT).eps


def test_peaked_and_shifted_scores_stay_finite(rng):
    q, tq, k, tk, v, tv = draw(rng, 1, 1, 1, 20, 40, 16, dtype=torch.float32)
    for args in ([40 * q, tq, k, tk, v, tv], [q, tq, k - 300 * q[:, :, :1], tk, v, tv]):
        o, to, lse = attention_jvp(*args, 0.25, False)
        assert lse.isfinite().all()
        q_, tq_, k_, tk_, v_, tv_ = wide(*args)
        ts = 0.25 * (tq_ @ k_.mT + q_ @ tk_.mT)
        off = torch.finfo(torch.float32).eps * 0.25 * (q_ @ k_.mT).abs().max()     # of a score: so is log p
        exact, spread = oracle(*wide(*args), 0.25, False), v_.abs().max()
        assert (o - exact[0]).abs().max() < off * 2 * spread
        assert (to - exact[1]).abs().max() < off * 2 * (tv_.abs().max() + 2 * ts.abs().max() * spread)
        assert attention_tangent(*args, o, lse, 0.25, False).isfinite().all()     # exp(0 - lse) is not


def test_is_bitwise_linear_in_the_tangent_and_reproducible(rng):
    q, tq, k, tk, v, tv = draw(rng, 1, 2, 1, 33, 18, 16, dtype=SHORT)
    one, again = (attention_jvp(q, tq, k, tk, v, tv, 0.25, True) for _ in range(2))
    two = attention_jvp(q, 2 * tq, k, 2 * tk, v, 2 * tv, 0.25, True)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert torch.equal(2 * one[1], two[1])


def test_the_table_covers_every_card_and_width_without_length():
    for family in ("sm80", "sm90", "sm100", "fp32"):
        one_pass, two_passes = ({width for k, f, width in TILES if (k, f) == (kernel, family)}
                                for kernel in ("attention_jvp", "attention_tangent"))
        assert {64, 128} <= one_pass and two_passes == {64, 128, 256}


def test_too_wide_a_head_is_refused(rng):
    args = draw(rng, 1, 1, 1, 2, 2, 264, dtype=torch.float32)
    with pytest.raises(ValueError, match="attention_jvp: head width 264; want at most 256"):
        attention_jvp(*args, 0.1, False)


@pytest.mark.parametrize("triton, by_tma", [("3.6.0", False), ("3.8.0", False), ("3.9.0", True)])
def test_a_tile_that_compiles_to_a_trap_is_not_launched(triton, by_tma, monkeypatch):
    monkeypatch.setattr(tiles, "family", lambda dtype: "sm100")
    monkeypatch.setattr(tiles.triton, "__version__", triton)

    def served(kernel: str, width: int) -> Tile | None:
        return tiles.tile_for(kernel, torch.bfloat16, torch.device("cuda"), width)

    for width in (96, 128):
        assert served("attention_jvp", width).descriptors == by_tma
    assert bool(served("attention_jvp", 256)) == by_tma, "two passes where there is no tile"
    assert served("attention_jvp", 64) and served("attention_tangent", 256).descriptors
