// Softmax attention and its tangent in one pass over the keys.
//
//   S  = c q k'         tS = c (tq k' + q tk')
//   o  = P v            P  = softmax S
//   to = P tv + (P*tS) v - diag(rowsum(P*tS)) o
// One pass over key blocks keeps, per query, with running max m, p = exp(S - m) and h = p tS:
//   l = sum p    r = sum h    O = sum p v    A = sum p tv + h v
// and at the end   o = O / l    to = (A - (r / l) O) / l.  tS is not exponentiated, so only the four sums rescale.
//
// Queries lie along the lanes: scores are S' = k q', outputs O' = v' p', and the row sums need no sums across lanes.
// Both products are then C = A B with A broadcast from memory, and their tangents tC = A tB + tA B: one tile for all.
// l and r add up the p and h that the second product uses: rounded, where storage is bfloat16, as a tensor core
// would.  The unrounded sum goes into lse = m + log sum p.
//
// Cost: 12 N M D flops a head (8 without tk and tv, 4 without any tangent); scratch is O(D) a thread.
// Arithmetic: float, double where storage is double; a block's products are summed before they join the running sum.
#pragma once

#include "vec.h"

namespace swiftvideo {

template <typename T> struct Strided {  // (B, H, N, D), unit stride along D; null: a zero tangent
  const T* data;
  int64_t clip, head, token;
};
template <typename T> struct Attention {
  Strided<T> q, tq, k, tk, v, tv;
  T *o, *to;     // (B, N, H, D), contiguous; to may be null
  Wide<T>* lse;  // (B, H, N)
  int64_t B, H, G, N, M, D;
  double scale;
  bool causal;
};
constexpr int64_t QUERIES = 128, KEYS = 64;  // a task's block of queries, a step's block of keys

namespace SV_ISA {

// C (+)= A B and tC (+)= A tB + tA B over `depth`, for ROWS rows and VECS registers of columns.
// A's element (row, k) is at row * row_stride + k * k_stride; B, C and their tangents have rows of QUERIES.
template <typename A, int ROWS, int VECS, bool TA, bool TB>
SV_INLINE void tile(const A* a, const A* ta, int64_t row_stride, int64_t k_stride, const A* b, const A* tb,
                    int64_t depth, A* c, A* tc, bool add) {
  V<A> sum[ROWS][VECS] = {}, tsum[ROWS][VECS] = {};
  for (int64_t k = 0; k < depth; ++k) {
    V<A> bk[VECS], tbk[VECS];
#pragma GCC unroll 4
    for (int v = 0; v < VECS; ++v) {
      bk[v] = load(b + k * QUERIES + v * LANES<A>);
      if (TB) tbk[v] = load(tb + k * QUERIES + v * LANES<A>);
    }
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; ++row) {
      const V<A> ak = splat(a[row * row_stride + k * k_stride]);
#pragma GCC unroll 4
      for (int v = 0; v < VECS; ++v) {
        sum[row][v] += ak * bk[v];
        if (TB) tsum[row][v] += ak * tbk[v];
      }
      if (TA) {
        const V<A> tak = splat(ta[row * row_stride + k * k_stride]);
#pragma GCC unroll 4
        for (int v = 0; v < VECS; ++v) tsum[row][v] += tak * bk[v];
      }
    }
  }
  for (int row = 0; row < ROWS; ++row)
    for (int v = 0; v < VECS; ++v) {
      const int64_t at = row * QUERIES + v * LANES<A>;
      store(c + at, add ? load(c + at) + sum[row][v] : sum[row][v]);
      if (TA || TB) store(tc + at, add ? load(tc + at) + tsum[row][v] : tsum[row][v]);
    }
}
// Eight accumulators (sixteen with a tangent) hide the latency of a fused multiply-add: 117 GFLOP/s on one Zen 4 core
// by AVX-512, its peak; 8 x 1 reached 88, 2 x 4 starves the primal.
constexpr int ROWS = 4, VECS = 2;

// The product for all `rows` (a multiple of ROWS) and `vecs` registers of columns.
template <typename A, bool TA, bool TB>
void product(const A* a, const A* ta, int64_t row_stride, int64_t k_stride, const A* b, const A* tb,
             int64_t depth, A* c, A* tc, int64_t rows, int64_t vecs, bool add) {
  for (int64_t v = 0; v < vecs; v += VECS)
    for (int64_t row = 0; row < rows; row += ROWS) {
      const int64_t in = v * LANES<A>, out = row * QUERIES + in, left = row * row_stride;
      if (v + VECS <= vecs)
        tile<A, ROWS, VECS, TA, TB>(a + left, ta + left, row_stride, k_stride, b + in, tb + in, depth,
                                    c + out, tc + out, add);
      else
        for (int64_t one = 0; one < vecs - v; ++one) {
          const int64_t skip = one * LANES<A>;
          tile<A, ROWS, 1, TA, TB>(a + left, ta + left, row_stride, k_stride, b + in + skip, tb + in + skip,
                                   depth, c + out + skip, tc + out + skip, add);
        }
    }
}
template <typename A>
void product(bool TA, bool TB, const A* a, const A* ta, int64_t row_stride, int64_t k_stride, const A* b,
             const A* tb, int64_t depth, A* c, A* tc, int64_t rows, int64_t vecs, bool add) {
  auto run = TA ? (TB ? product<A, true, true> : product<A, true, false>)
                : (TB ? product<A, false, true> : product<A, false, false>);
  run(a, ta, row_stride, k_stride, b, tb, depth, c, tc, rows, vecs, add);
}

SV_INLINE int64_t up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
SV_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// `tokens` rows of D, widened and padded with zeros to `padded` rows of `width`.
template <typename T>
void gather(const T* from, int64_t stride, int64_t tokens, int64_t D, Wide<T>* to, int64_t padded,
            int64_t width) {
  for (int64_t n = 0; n < padded; ++n) {
    Wide<T>* row = to + n * width;
    const int64_t valid = n < tokens ? D : 0;
    sweep<Wide<T>>(valid,
                   [&](int64_t d, auto some) { store(row + d, load(from + n * stride + d, some), some); });
    memset(row + valid, 0, (width - valid) * sizeof *row);
  }
}

// A square at `from`, `rows` x `columns` of it there and the rest zero, transposed.
template <typename T, typename F>
SV_INLINE void turn(const T* from, int64_t stride, int64_t rows, int64_t columns, F use) {
  using A = Wide<T>;
  V<A> square[LANES<A>];
#pragma GCC unroll 16
  for (int row = 0; row < LANES<A>; ++row) {
    const T* at = from + row * stride;
    square[row] = row >= rows ? V<A>{} : columns < LANES<A> ? load(at, Some{columns}) : load(at);
  }
  transpose<A>(square);
#pragma GCC unroll 16
  for (int column = 0; column < LANES<A>; ++column)
    if (column < columns) use(column, square[column]);
}

// `tokens` rows of D, scaled, as columns, up to a full register of them: (D, QUERIES).
template <typename T>
void gather_lanes(const T* from, int64_t stride, int64_t tokens, int64_t D, Wide<T> scale, Wide<T>* to) {
  constexpr int lanes = LANES<Wide<T>>;
  for (int64_t n = 0; n < tokens; n += lanes)
    for (int64_t d = 0; d < D; d += lanes)
      turn(from + n * stride + d, stride, tokens - n, least(lanes, D - d),
           [&](int64_t column, auto v) { store(to + (d + column) * QUERIES + n, v * scale); });
}

// And back: (D, QUERIES) to `tokens` rows of D.
template <typename T>
void scatter_lanes(const Wide<T>* from, int64_t tokens, int64_t D, int64_t stride, T* to) {
  constexpr int lanes = LANES<Wide<T>>;
  for (int64_t n = 0; n < tokens; n += lanes)
    for (int64_t d = 0; d < D; d += lanes)
      turn(from + d * QUERIES + n, QUERIES, D - d, least(lanes, tokens - n), [&](int64_t column, auto v) {
        T* row = to + (n + column) * stride + d;
        D - d < lanes ? store(row, v, Some{D - d}) : store(row, v);
      });
}

template <typename T> SV_INLINE V<Wide<T>> as_stored(V<Wide<T>> v) {
  if constexpr (sizeof(T) == 2)
    return nearest_bf16(v);
  else
    return v;
}

// Tasks are (clip, head, block of QUERIES), numbered in that order; this runs one.
template <typename T> struct AttentionTask {
  using A = Wide<T>;
  const Attention<T>& a;
  const bool tq = a.tq.data, tk = a.tk.data, tv = a.tv.data, ts = tq || tk;
  const int64_t width = up_to(a.D, ROWS);
  Scratch<A> memory{4 * width * QUERIES + 4 * KEYS * width + (2 * KEYS + 4) * QUERIES};
  A *Q = memory.data, *tQ = Q + width * QUERIES, *O = tQ + width * QUERIES, *tO = O + width * QUERIES;
  A *K = tO + width * QUERIES, *tK = K + KEYS * width, *Vs = tK + KEYS * width, *tV = Vs + KEYS * width;
  A *S = tV + KEYS * width, *tS = S + KEYS * QUERIES;
  A *m = tS + KEYS * QUERIES, *l = m + QUERIES, *r = l + QUERIES, *exact = r + QUERIES;

  void operator()(int64_t task) {
    const int64_t blocks = (a.N + QUERIES - 1) / QUERIES;
    const int64_t first = task % blocks * QUERIES, head = task / blocks % a.H, clip = task / blocks / a.H;
    const int64_t group = head / (a.H / a.G), queries = least(QUERIES, a.N - first);
    const int64_t vecs = (queries + LANES<A> - 1) / LANES<A>;
    const auto at = [&](const Strided<T>& x, int64_t h, int64_t n) {
      return x.data + clip * x.clip + h * x.head + n * x.token;
    };

    gather_lanes(at(a.q, head, first), a.q.token, queries, a.D, A(a.scale), Q);
    if (tq) gather_lanes(at(a.tq, head, first), a.tq.token, queries, a.D, A(a.scale), tQ);
    memset(O, 0, 2 * width * QUERIES * sizeof *O);
    for (int64_t j = 0; j < QUERIES; ++j) m[j] = -INFINITY, l[j] = r[j] = exact[j] = 0;

    const int64_t M = a.causal ? least(a.M, first + queries) : a.M;
    for (int64_t key = 0; key < M; key += KEYS) {
      const int64_t keys = least(KEYS, M - key), rows = up_to(keys, ROWS);
      gather(at(a.k, group, key), a.k.token, keys, a.D, K, rows, width);
      gather(at(a.v, group, key), a.v.token, keys, a.D, Vs, rows, width);
      if (tk) gather(at(a.tk, group, key), a.tk.token, keys, a.D, tK, rows, width);
      if (tv) gather(at(a.tv, group, key), a.tv.token, keys, a.D, tV, rows, width);

      product(tk, tq, K, tK, width, 1, Q, tQ, a.D, S, tS, rows, vecs, false);
      for (int64_t v = 0; v < vecs; ++v) softmax(v * LANES<A>, keys, a.causal ? first - key : KEYS);
      product(tv, ts, Vs, tV, 1, width, S, tS, keys, O, tO, width, vecs, true);
    }

    for (int64_t j = 0; j < queries; ++j) {
      a.lse[(clip * a.H + head) * a.N + first + j] = m[j] + A(std::log(double(exact[j])));
      l[j] = l[j] > 0 ? 1 / l[j] : l[j] == 0 ? 0 : l[j];  // no keys: zero
      r[j] *= l[j];
    }
    for (int64_t d = 0; d < a.D; ++d)
      for (int64_t j = 0; j < queries; j += LANES<A>) {
        A *o = O + d * QUERIES + j, *to = tO + d * QUERIES + j;
        store(o, load(o) * load(l + j));
        if (a.to) store(to, load(to) * load(l + j) - load(r + j) * load(o));
      }
    const int64_t out = ((clip * a.N + first) * a.H + head) * a.D;
    scatter_lanes(O, queries, a.D, a.H * a.D, a.o + out);
    if (a.to) scatter_lanes(tO, queries, a.D, a.H * a.D, a.to + out);
  }

  // S, tS -> p, h for one register of queries from `j`; key i is seen by query j if i <= j + diagonal.
  void softmax(int64_t j, int64_t keys, int64_t diagonal) {
    const bool masked = diagonal < KEYS;
    const Ints<A> query = iota<A>() + Index<A>(j + diagonal + KEYS);
    const V<A> before = load(m + j);
    V<A> high = before;
    for (int64_t i = 0; i < keys; ++i) {
      V<A> s = load(S + i * QUERIES + j);
      if (masked) {
        s = query < Index<A>(i + KEYS) ? splat<A>(-INFINITY) : s;
        store(S + i * QUERIES + j, s);
      }
      high = s > high ? s : high;
    }
    const V<A> shrink = exp<A>(before - high);
    V<A> sum_p{}, sum_h{}, sum_exact{};
    for (int64_t i = 0; i < keys; ++i) {
      const V<A> e = exp<A>(load(S + i * QUERIES + j) - high), p = as_stored<T>(e);
      sum_exact += e;
      sum_p += p;
      store(S + i * QUERIES + j, p);
      if (ts) {
        const V<A> h = as_stored<T>(e * load(tS + i * QUERIES + j));
        sum_h += h;
        store(tS + i * QUERIES + j, h);
      }
    }
    store(m + j, high);
    store(l + j, load(l + j) * shrink + sum_p);
    store(r + j, load(r + j) * shrink + sum_h);
    store(exact + j, load(exact + j) * shrink + sum_exact);
    for (int64_t d = 0; d < width; ++d) {
      A *o = O + d * QUERIES + j, *to = tO + d * QUERIES + j;
      store(o, load(o) * shrink);
      if (a.to) store(to, load(to) * shrink);
    }
  }
};

// A thread's share of all the tasks: whichever is next, so that causal blocks of unequal length balance.
template <typename T> void attention(const Attention<T>& a, int64_t* next, int64_t tasks) {
  AttentionTask<T> run{a};
  for (int64_t task; (task = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < tasks;) run(task);
}

}  // namespace SV_ISA
}  // namespace swiftvideo
