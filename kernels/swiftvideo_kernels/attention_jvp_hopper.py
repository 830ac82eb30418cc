"""Attention and its tangent on Hopper (sm_90a), hand-scheduled in Triton's Gluon.

Per query row (attention_jvp.py), m the running max, p = exp2(c S - m), h = p (scale tS):

    O = Σ p v    A = Σ h v + p tv    l = Σ p    lr = Σ rounded(p)    r = Σ rounded(h)
    o = O / lr   to = (A - (r / lr) O) / lr     lse = (m + log2 l) / log2 e

A program has 128 query rows and three roles: one producer (one warp, TMA only) and two consumers (four
warps, 64 rows each), which do not synchronise with each other.  A consumer issues the products of a key block
in this order and overlaps the softmax with later ones, so its tensor cores idle for one issue per block:

    S = q k'  |  tS = tq k' + q tk'  |  O += p v,  A += p tv  |  A += h v  |
                 m, p, rescale O, A     h

Products of one warp group complete in issue order, so "at most n in flight" tells which have completed.  No
product is in flight across the loop's back edge: ptxas would then wait after every HGMMA (C7514).  Key blocks
of BLOCK_N rows pass through rings of STAGES slots.  Barriers: kernels/README.md, tests/test_hopper.py.

Shapes as in attention_jvp.py, bf16 or fp16.  Head widths up to BLOCK_D, 64 or 128: TMA reads zeros beyond
WIDTH.  Launched by hopper.py.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

LOG2E = gl.constexpr(1.4426950408889634)
ROWS = gl.constexpr(64)                                         # query rows per consumer
load_async = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared    # the name before 3.8
store_async = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global


@gluon.jit
def _rounded(x, dtype: gl.constexpr):
    """Returns x in dtype, and that value in float32.  bf16 is converted in pairs, as in blocks.rounded."""
    if dtype == gl.bfloat16:
        narrow = gl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=gl.bfloat16, is_pure=True, pack=2)
        wide = gl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=&r,=r,r", [narrow], dtype=gl.float32,
            is_pure=True, pack=2)
    else:
        narrow = x.to(dtype)
        wide = narrow.to(gl.float32)
    return narrow, wide


@gluon.jit
def _blocks(end_row, M, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr):
    """Returns the number of key blocks for rows below end_row.  Only the last needs a mask."""
    if CAUSAL:
        M = gl.minimum(M, end_row)
    return (M + BLOCK_N - 1) // BLOCK_N


@gluon.jit
def _slot(ring, j, STAGES: gl.constexpr):
    """Returns the slot of key block j in `ring`: [BLOCK_N, BLOCK_D]."""
    return ring.index(j % STAGES).reshape([ring.shape[3], ring.shape[4]])


@gluon.jit
def _scores(q, tq, k_ring, tk_ring, j, STAGES: gl.constexpr, L: gl.constexpr):
    """Issues S and tS of key block j.  Returns S for tS if neither q nor k has a tangent."""
    BLOCK_N: gl.constexpr = k_ring.shape[3]
    zero = gl.zeros([ROWS, BLOCK_N], gl.float32, L)
    k = _slot(k_ring, j, STAGES).permute((1, 0))
    s = warpgroup_mma(q, k, zero, use_acc=False, is_async=True)
    ts = s
    if tq is not None:
        ts = warpgroup_mma(tq, k, zero, use_acc=False, is_async=True)
        if tk_ring is not None:
            ts = warpgroup_mma(q, _slot(tk_ring, j, STAGES).permute((1, 0)), ts, is_async=True)
    elif tk_ring is not None:
        ts = warpgroup_mma(q, _slot(tk_ring, j, STAGES).permute((1, 0)), zero, use_acc=False, is_async=True)
    return s, ts


@gluon.jit
def _block(state, q, tq, memory, bars, j, row, M, scale, LAST: gl.constexpr, CAUSAL: gl.constexpr,
           STAGES: gl.constexpr, H_FIRST: gl.constexpr):
    """Processes key block j.  LAST: keys may be masked.  H_FIRST: A += p tv after h v: fewer registers."""
    _, _, k_ring, tk_ring, v_ring, tv_ring = memory
    _, k_full, k_free, v_full, v_free = bars
    acc_o, acc_to, m, l, l_rounded, r = state
    S: gl.constexpr = m.type.layout.parent
    O: gl.constexpr = acc_o.type.layout
    P: gl.constexpr = gl.DotOperandLayout(0, O, 2)
    BLOCK_N: gl.constexpr = k_ring.shape[3]
    SCORES: gl.constexpr = (tq is not None) + (tk_ring is not None)             # products of tS
    VALUES: gl.constexpr = 1 + (tv_ring is not None and not H_FIRST)            # products between tS and h v
    slot, phase = j % STAGES, j // STAGES & 1
    c = scale * LOG2E

    mbarrier.wait(k_full.index(slot), phase)
    s, ts = _scores(q, tq, k_ring, tk_ring, j, STAGES, S)
    s = warpgroup_mma_wait(SCORES, deps=(s,))                   # tS is in flight
    if LAST:
        col = j * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(0, S))
        keep = (col < M)[None, :]
        if CAUSAL:
            rows = row + gl.arange(0, ROWS, gl.SliceLayout(1, S))
            keep = keep & (col[None, :] <= rows[:, None])
        s = gl.where(keep, s, -float("inf"))
    m_new = gl.maximum(m, gl.max(s, 1) * c)
    alpha = gl.exp2(m - m_new)
    p = gl.exp2(s * c - m_new[:, None])
    l = l * alpha + gl.sum(p, 1)
    p_narrow, p_used = _rounded(p, q.dtype)
    l_rounded = l_rounded * alpha + gl.sum(p_used, 1)
    alpha_o = gl.convert_layout(alpha, gl.SliceLayout(1, O))[:, None]
    acc_o = acc_o * alpha_o
    acc_to = acc_to * alpha_o

    mbarrier.wait(v_full.index(slot), phase)
    v = _slot(v_ring, j, STAGES)
    p_a = gl.convert_layout(p_narrow, P)
    acc_o = warpgroup_mma(p_a, v, acc_o, is_async=True)
    if tv_ring is not None and not H_FIRST:
        acc_to = warpgroup_mma(p_a, _slot(tv_ring, j, STAGES), acc_to, is_async=True)

    if SCORES > 0:
        ts = warpgroup_mma_wait(VALUES, deps=(ts,))             # O, A in flight; k and tk are free
    mbarrier.arrive(k_free.index(slot))
    if SCORES > 0:
        h_narrow, h_used = _rounded(p * (ts * scale), q.dtype)
        r = r * alpha + gl.sum(h_used, 1)
        acc_to = warpgroup_mma(gl.convert_layout(h_narrow, P), v, acc_to, is_async=True)
    if tv_ring is not None and H_FIRST:
        acc_to = warpgroup_mma(p_a, _slot(tv_ring, j, STAGES), acc_to, is_async=True)
    acc_o, acc_to = warpgroup_mma_wait(0, deps=(acc_o, acc_to))
    mbarrier.arrive(v_free.index(slot))
    return acc_o, acc_to, m_new, l, l_rounded, r


@gluon.jit
def _over_keys(state, args, CAUSAL: gl.constexpr, STAGES: gl.constexpr, H_FIRST: gl.constexpr):
    """Processes all key blocks, at least one; the last outside the loop, which needs no mask."""
    q, tq, memory, bars, blocks, row, M, scale = args
    mbarrier.wait(bars[0].index(0), 0)
    for j in range(blocks - 1):
        state = _block(state, q, tq, memory, bars, j, row, M, scale, False, CAUSAL, STAGES, H_FIRST)
    return _block(state, q, tq, memory, bars, blocks - 1, row, M, scale, True, CAUSAL, STAGES, H_FIRST)


@gluon.jit
def _store(x, through, at_ptr, row, N, stride, WIDTH: gl.constexpr):
    """Writes [ROWS, BLOCK_D] to rows row .. of [N, WIDTH], through shared memory: 16 bytes per thread."""
    D: gl.constexpr = through.shape[1]
    L: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    through.store(x)
    rows = row + gl.arange(0, ROWS, gl.SliceLayout(1, L))
    col = gl.arange(0, D, gl.SliceLayout(0, L))
    at = rows.to(gl.int64)[:, None] * stride + col[None, :]
    gl.store(at_ptr + at, through.load(L), (rows < N)[:, None] & (col < WIDTH)[None, :])


@gluon.jit
def _send(x, own, desc, clip, head, row):
    """Starts a TMA store of [ROWS, BLOCK_D] from `own` to rows row .. of desc, clipped at its end."""
    own.reshape([ROWS, own.shape[3]]).store(x)
    fence_async_shared()
    store_async(desc, [clip, head, row, 0], own)


@gluon.jit
def _consume(WHO: gl.constexpr, out, memory, bars, place, H, N, M, scale, PACKED: gl.constexpr,
             BY_TMA: gl.constexpr, WIDTH: gl.constexpr, CAUSAL: gl.constexpr, STAGES: gl.constexpr,
             H_FIRST: gl.constexpr):
    """Computes one consumer's 64 rows."""
    o, to, lse_ptr = out
    first_row, head, clip, start, total = place
    if PACKED:                                                  # first row of o and of lse
        token, lse_at = start.to(gl.int64), head.to(gl.int64) * total + start
    else:
        token, lse_at = clip.to(gl.int64) * N, (clip * H + head).to(gl.int64) * N
    BLOCK_N: gl.constexpr = memory[2].shape[3]
    BLOCK_D: gl.constexpr = memory[2].shape[4]
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    O: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_D, 16])
    row = first_row + WHO * ROWS
    q_own = memory[0].index(WHO)
    q = q_own.reshape([ROWS, BLOCK_D])
    tq, to_own = None, q_own                                    # stores reuse the memory of q and tq
    if memory[1] is not None:
        to_own = memory[1].index(WHO)
        tq = to_own.reshape([ROWS, BLOCK_D])
    acc = gl.zeros([ROWS, BLOCK_D], gl.float32, O)
    none = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, S))
    state = acc, acc, none - float("inf"), none, none, none     # O, A, m, l, lr, r
    blocks = _blocks(row + ROWS, M, BLOCK_N, CAUSAL)
    args = q, tq, memory, bars, blocks, row, M, scale
    if PACKED:
        if blocks > 0:                                          # unpacked calls have keys
            state = _over_keys(state, args, CAUSAL, STAGES, H_FIRST)
    else:
        state = _over_keys(state, args, CAUSAL, STAGES, H_FIRST)
    acc_o, acc_to, m, l, l_rounded, r = state
    some = l > 0                                                # without keys o = to = 0, lse = -inf
    inverse = 1 / gl.where(some, l_rounded, 1.0)
    mean = gl.convert_layout(r * inverse, gl.SliceLayout(1, O))[:, None]
    inverse_o = gl.convert_layout(inverse, gl.SliceLayout(1, O))[:, None]
    o_block, to_block = (acc_o * inverse_o).to(q.dtype), ((acc_to - mean * acc_o) * inverse_o).to(q.dtype)
    rows = row + gl.arange(0, ROWS, gl.SliceLayout(1, S))
    gl.store(lse_ptr + lse_at + rows, (m + gl.log2(gl.where(some, l, 1.0))) / LOG2E, rows < N)
    if BY_TMA:                                                  # staged in this consumer's q and tq
        _send(o_block, q_own, o, clip, head, row)
        if tq is None:
            tma.store_wait(0)
        _send(to_block, to_own, to, clip, head, row)
        tma.store_wait(0)
    else:
        at_row = (token * H + head) * WIDTH
        _store(o_block, q, o + at_row, row, N, H * WIDTH, WIDTH)
        _store(to_block, to_own.reshape([ROWS, BLOCK_D]), to + at_row, row, N, H * WIDTH, WIDTH)


@gluon.jit
def _fill(full, free, ring, t_ring, desc, t_desc, j, group, clip, STAGES: gl.constexpr):
    """Loads key block j of an operand and its tangent once their slot is free."""
    BYTES: gl.constexpr = ring.shape[3] * ring.shape[4] * 2
    slot, row = j % STAGES, j * ring.shape[3]
    mbarrier.wait(free.index(slot), (j // STAGES & 1) ^ 1)      # passes at once in the first round
    mbarrier.expect(full.index(slot), BYTES if t_desc is None else 2 * BYTES)
    load_async(desc, [clip, group, row, 0], full.index(slot), ring.index(slot))
    if t_desc is not None:
        load_async(t_desc, [clip, group, row, 0], full.index(slot), t_ring.index(slot))


@gluon.jit
def _described(x_ptr, start, heads, rows, strides, ring, WIDTH: gl.constexpr):
    """Returns a descriptor of one packed sequence, [1, heads, rows, WIDTH], of at least one row."""
    head, row = strides[0].to(gl.int64), strides[1].to(gl.int64)
    return tma.make_tensor_descriptor(
        x_ptr + start * row, [1, heads, gl.maximum(rows, 1), WIDTH], [row, head, row, 1],
        [1, 1, ring.shape[3], ring.shape[4]], ring.type.layout)


@gluon.jit
def _produce(sources, strides, memory, bars, place, starts, H, GROUP, N, M, PACKED: gl.constexpr,
             WIDTH: gl.constexpr, CAUSAL: gl.constexpr, STAGES: gl.constexpr):
    """Producer warp: loads the program's queries, then its key blocks."""
    q, tq, k, tk, v, tv = sources
    q_s, tq_s, k_ring, tk_ring, v_ring, tv_ring = memory
    q_full, k_full, k_free, v_full, v_free = bars
    first_row, head, clip = place
    group = head // GROUP
    if PACKED:
        G = H // GROUP
        q = _described(q, starts[0], H, N, strides[0], q_s, WIDTH)
        k = _described(k, starts[1], G, M, strides[1], k_ring, WIDTH)
        v = _described(v, starts[1], G, M, strides[2], k_ring, WIDTH)
        if tq is not None:
            tq = _described(tq, starts[0], H, N, strides[0], q_s, WIDTH)
        if tk is not None:
            tk = _described(tk, starts[1], G, M, strides[1], k_ring, WIDTH)
        if tv is not None:
            tv = _described(tv, starts[1], G, M, strides[2], k_ring, WIDTH)
    BYTES: gl.constexpr = 2 * ROWS * q_s.shape[4] * 2
    blocks = _blocks(first_row + 2 * ROWS, M, k_ring.shape[3], CAUSAL)
    if blocks > 0:
        full = q_full.index(0)
        mbarrier.expect(full, BYTES if tq is None else 2 * BYTES)
        for who in gl.static_range(2):
            load_async(q, [clip, head, first_row + who * ROWS, 0], full, q_s.index(who))
            if tq is not None:
                load_async(tq, [clip, head, first_row + who * ROWS, 0], full, tq_s.index(who))
    for j in range(blocks):
        _fill(k_full, k_free, k_ring, tk_ring, k, tk, j, group, clip, STAGES)
        _fill(v_full, v_free, v_ring, tv_ring, v, tv, j, group, clip, STAGES)


@gluon.jit
def _slots(n: gl.constexpr, dtype: gl.constexpr, rows: gl.constexpr, width: gl.constexpr, L: gl.constexpr):
    return gl.allocate_shared_memory(dtype, [n, 1, 1, rows, width], L)


@gluon.jit
def _barriers(count: gl.constexpr, arrivals: gl.constexpr):
    bars = gl.allocate_shared_memory(gl.int64, [count, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(count):
        mbarrier.init(bars.index(i), count=arrivals)
    return bars


@gluon.jit(do_not_specialize=[
    "q_head", "q_row", "k_head", "k_row", "v_head", "v_row", "H", "GROUP", "N", "M"])
def attention_jvp_hopper_kernel(
    q, tq, k, tk, v, tv,                # (B, H or G, N or M, WIDTH): descriptors; pointers if packed; or None
    o_ptr, to_ptr,                      # [B, N, H, WIDTH]
    o_desc, to_desc,                    # the same as (B, H, N, WIDTH), or None where TMA cannot write it
    lse_ptr,                            # [B, H, N]
    cu_q_ptr, cu_k_ptr,                 # [sequences + 1] int32, or None
    q_head, q_row, k_head, k_row, v_head, v_row,                # strides, where packed
    H, GROUP, N, M, scale,              # GROUP query heads share a key head
    WIDTH: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
    CAUSAL: gl.constexpr, H_FIRST: gl.constexpr, REGISTERS: gl.constexpr,
    Q_LAYOUT: gl.constexpr, K_LAYOUT: gl.constexpr,
):
    block, head, clip = gl.program_id(0), gl.program_id(1), gl.program_id(2)
    if CAUSAL:
        block = gl.num_programs(0) - 1 - block                  # the longest rows first
    first_row, start_q, start_k, total = block * 2 * ROWS, 0, 0, N
    if cu_q_ptr is not None:
        start_q, start_k = gl.load(cu_q_ptr + clip), gl.load(cu_k_ptr + clip)
        N, M = gl.load(cu_q_ptr + clip + 1) - start_q, gl.load(cu_k_ptr + clip + 1) - start_k
        M = gl.where(first_row < N, M, 0)                       # the program is past its sequence's end
        clip = 0

    dtype: gl.constexpr = o_ptr.dtype.element_ty
    q_s = _slots(2, dtype, ROWS, BLOCK_D, Q_LAYOUT)
    k_ring = _slots(STAGES, dtype, BLOCK_N, BLOCK_D, K_LAYOUT)
    v_ring = _slots(STAGES, dtype, BLOCK_N, BLOCK_D, K_LAYOUT)
    tq_s, tk_ring, tv_ring = None, None, None
    if tq is not None:
        tq_s = _slots(2, dtype, ROWS, BLOCK_D, Q_LAYOUT)
    if tk is not None:
        tk_ring = _slots(STAGES, dtype, BLOCK_N, BLOCK_D, K_LAYOUT)
    if tv is not None:
        tv_ring = _slots(STAGES, dtype, BLOCK_N, BLOCK_D, K_LAYOUT)
    q_full, k_full, v_full = _barriers(1, 1), _barriers(STAGES, 1), _barriers(STAGES, 1)
    k_free, v_free = _barriers(STAGES, 2), _barriers(STAGES, 2)         # two consumers arrive
    fence_async_shared()

    memory = q_s, tq_s, k_ring, tk_ring, v_ring, tv_ring
    bars = q_full, k_full, k_free, v_full, v_free
    where, place = (first_row, head, clip, start_q, total), (first_row, head, clip)
    strides = (q_head, q_row), (k_head, k_row), (v_head, v_row)
    out = (o_ptr, to_ptr, lse_ptr) if o_desc is None else (o_desc, to_desc, lse_ptr)
    gl.warp_specialize(
        [(_consume, (0, out, memory, bars, where, H, N, M, scale, cu_q_ptr is not None,
                     o_desc is not None, WIDTH, CAUSAL, STAGES, H_FIRST)),
         (_consume, (1, out, memory, bars, where, H, N, M, scale, cu_q_ptr is not None,
                     o_desc is not None, WIDTH, CAUSAL, STAGES, H_FIRST)),
         (_produce, ((q, tq, k, tk, v, tv), strides, memory, bars, place, (start_q, start_k), H, GROUP, N, M,
                     cu_q_ptr is not None, WIDTH, CAUSAL, STAGES))],
        [4, 1], [REGISTERS, 24])
