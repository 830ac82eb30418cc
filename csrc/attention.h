// Softmax attention and its tangent in one pass over the keys.
//
//   S  = c q k'         tS = c (tq k' + q tk')
//   o  = P v            P  = softmax S
//   to = P tv + (P*tS) v - diag(rowsum(P*tS)) o
// One pass over key blocks keeps, per query, with running max m, p = exp(S - m) and h = p tS:
//   l = sum p    r = sum h    O = sum p v    A = sum p tv + h v
// and at the end   o = O / l    to = (A - (r / l) O) / l.  tS is not exponentiated, so only the four sums rescale.
//
// Vector lanes hold queries: scores are S' = k q', outputs O' = v' p', and row sums need no cross-lane sums.
// Both products are C = A B with A broadcast from memory, and their tangents tC = A tB + tA B: one tile for all.
// Scores, softmax and outputs of a panel of queries and a block of keys stay in the L1 cache.
// l and r sum the p and h of the second product: rounded for bfloat16 storage, as on a tensor core.  The unrounded
// sum goes into lse = m + log sum p.
//
// Cost: 12 N M D flops per head (8 without tk and tv, 4 without any tangent).  Scratch: O(D) per thread.
// Arithmetic: float, double for double storage; a block's products are summed before they are added to the total.
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
constexpr int64_t QUERIES = 128, KEYS = 64;  // queries per task, keys per step

namespace SV_ISA {

// Queries are stored in panels of two registers: element (row, query) of a panel is at row * PANEL + query.
constexpr int VECS = 2;
template <typename A> constexpr int64_t PANEL = VECS * LANES<A>;

// One term of a product.  A's element (row, k) is at row * stride + k, transposed at k * stride + row; B's row k is
// at k * PANEL.
template <typename A> struct Term {
  const A* a;
  const A* b;
};

// C = sum of A B over the terms (+ C decay if decay, a row, is not null), for R rows and W registers of columns.
template <typename A, int R, int W, bool TRANSPOSED>
SV_INLINE void tile(const Term<A>* terms, int count, int64_t stride, int64_t depth, A* c, const A* decay) {
  V<A> sum[R][W] = {};
  for (int term = 0; term < count; ++term) {
    const A *a = terms[term].a, *b = terms[term].b;
    for (int64_t k = 0; k < depth; ++k) {
      V<A> bk[W];
#pragma GCC unroll 2
      for (int v = 0; v < W; ++v) bk[v] = load(b + k * PANEL<A> + v * LANES<A>);
#pragma GCC unroll 8
      for (int row = 0; row < R; ++row) {
        const V<A> ak = splat(TRANSPOSED ? a[k * stride + row] : a[row * stride + k]);
#pragma GCC unroll 2
        for (int v = 0; v < W; ++v) sum[row][v] += ak * bk[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < R; ++row)
#pragma GCC unroll 2
    for (int v = 0; v < W; ++v) {
      A* at = c + row * PANEL<A> + v * LANES<A>;
      store(at, decay ? load(at) * load(decay + v * LANES<A>) + sum[row][v] : sum[row][v]);
    }
}
// Twelve accumulators in 16 registers, sixteen in 32; eight hide the latency of a fused multiply-add.  By llvm-mca
// the 6 x 2 loop over k takes 6.1 cycles on Haswell and Skylake, where its 12 multiply-adds need 6.  A tile with
// accumulators of both C and tC spills with 16 registers: 4 x 2 reached 57 and 72 % of the peak.
constexpr int ROWS = REGISTERS == 32 ? 8 : 6, LEAST_ROWS = 4;

// C and tC for all `rows` (a multiple of LEAST_ROWS); tC is not written without ta and tb.
template <typename A, int W, bool TRANSPOSED>
void product(const A* a, const A* ta, int64_t stride, const A* b, const A* tb, int64_t depth, A* c, A* tc,
             int64_t rows, const A* decay) {
  const auto tiles = [&]<int R>(int64_t row) {
    const int64_t from = TRANSPOSED ? row : row * stride, out = row * PANEL<A>;
    const Term<A> value{a + from, b};
    tile<A, R, W, TRANSPOSED>(&value, 1, stride, depth, c + out, decay);
    Term<A> tangent[2];
    int count = 0;
    if (tb) tangent[count++] = {a + from, tb};
    if (ta) tangent[count++] = {ta + from, b};
    if (count) tile<A, R, W, TRANSPOSED>(tangent, count, stride, depth, tc + out, decay);
  };
  for (int64_t row = 0; row < rows;) {
    const int64_t left = rows - row;
    if (left < ROWS || (left == 2 * LEAST_ROWS && ROWS < left))
      tiles.template operator()<LEAST_ROWS>(row), row += LEAST_ROWS;
    else
      tiles.template operator()<ROWS>(row), row += ROWS;
  }
}

SV_INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
SV_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Copies `tokens` rows of D, widened and zero-padded to `padded` rows of `width`.
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

// Transposes a register square at `from`: rows x columns valid, the rest zero; use(column, register) receives it.
template <typename T, typename F>
SV_INLINE void transpose_square(const T* from, int64_t stride, int64_t rows, int64_t columns, F use) {
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

// Offset of query n's column in panels of `rows`.
template <typename A> SV_INLINE int64_t column_of(int64_t n, int64_t rows) {
  return n / PANEL<A> * PANEL<A> * rows + n % PANEL<A>;
}

// Copies `tokens` rows of D, scaled, to columns of panels of `width` rows, padded to a full register.
template <typename T>
void gather_lanes(const T* from, int64_t stride, int64_t tokens, int64_t D, Wide<T> scale, Wide<T>* to,
                  int64_t width) {
  using A = Wide<T>;
  constexpr int lanes = LANES<A>;
  for (int64_t n = 0; n < tokens; n += lanes)
    for (int64_t d = 0; d < D; d += lanes)
      transpose_square(
          from + n * stride + d, stride, tokens - n, min(lanes, D - d),
          [&](int64_t row, auto v) { store(to + column_of<A>(n, width) + (d + row) * PANEL<A>, v * scale); });
}

// The inverse: panels of `width` rows to `tokens` rows of D.
template <typename T>
void scatter_lanes(const Wide<T>* from, int64_t width, int64_t tokens, int64_t D, int64_t stride, T* to) {
  using A = Wide<T>;
  constexpr int lanes = LANES<A>;
  for (int64_t n = 0; n < tokens; n += lanes)
    for (int64_t d = 0; d < D; d += lanes)
      transpose_square(from + column_of<A>(n, width) + d * PANEL<A>, PANEL<A>, D - d, min(lanes, tokens - n),
                       [&](int64_t token, auto v) {
                         T* row = to + (n + token) * stride + d;
                         D - d < lanes ? store(row, v, Some{D - d}) : store(row, v);
                       });
}

template <typename T> SV_INLINE V<Wide<T>> as_stored(V<Wide<T>> v) {
  if constexpr (sizeof(T) == 2)
    return nearest_bf16(v);
  else
    return v;
}

// Runs one task: (clip, head, block of QUERIES), numbered in that order.
template <typename T> struct AttentionTask {
  using A = Wide<T>;
  const Attention<T>& a;
  const bool ts = a.tq.data || a.tk.data;
  const int64_t width = round_up(a.D, LEAST_ROWS), block = width * QUERIES;
  Scratch<A> memory{4 * block + 4 * KEYS * width + 2 * KEYS * PANEL<A> + 5 * QUERIES};
  A *Q = memory.data, *tQ = Q + block, *O = tQ + block, *tO = O + block;
  A *K = tO + block, *tK = K + KEYS * width, *Vs = tK + KEYS * width, *tV = Vs + KEYS * width;
  A *S = tV + KEYS * width, *tS = S + KEYS * PANEL<A>;
  A *m = tS + KEYS * PANEL<A>, *l = m + QUERIES, *r = l + QUERIES, *exact = r + QUERIES,
    *decay = exact + QUERIES;

  void operator()(int64_t task) {
    const int64_t blocks = (a.N + QUERIES - 1) / QUERIES;
    const int64_t first = task % blocks * QUERIES, head = task / blocks % a.H, clip = task / blocks / a.H;
    const int64_t group = head / (a.H / a.G), queries = min(QUERIES, a.N - first);
    const auto at = [&](const Strided<T>& x, int64_t h, int64_t n) {
      return x.data + clip * x.clip + h * x.head + n * x.token;
    };

    gather_lanes(at(a.q, head, first), a.q.token, queries, a.D, A(a.scale), Q, width);
    if (a.tq.data) gather_lanes(at(a.tq, head, first), a.tq.token, queries, a.D, A(a.scale), tQ, width);
    memset(O, 0, 2 * block * sizeof *O);
    for (int64_t j = 0; j < QUERIES; ++j) m[j] = -INFINITY, l[j] = r[j] = exact[j] = 0;

    const int64_t M = a.causal ? min(a.M, first + queries) : a.M;
    for (int64_t key = 0; key < M; key += KEYS) {
      const int64_t keys = min(KEYS, M - key), rows = round_up(keys, LEAST_ROWS);
      gather(at(a.k, group, key), a.k.token, keys, a.D, K, rows, width);
      gather(at(a.v, group, key), a.v.token, keys, a.D, Vs, rows, width);
      if (a.tk.data) gather(at(a.tk, group, key), a.tk.token, keys, a.D, tK, rows, width);
      if (a.tv.data) gather(at(a.tv, group, key), a.tv.token, keys, a.D, tV, rows, width);
      const int64_t diagonal = a.causal ? first - key : KEYS;
      for (int64_t j = 0; j < queries; j += PANEL<A>)
        queries - j > LANES<A> ? panel<VECS>(j, keys, rows, diagonal) : panel<1>(j, keys, rows, diagonal);
    }

    for (int64_t j = 0; j < queries; ++j) {
      a.lse[(clip * a.H + head) * a.N + first + j] = m[j] + A(std::log(double(exact[j])));
      l[j] = l[j] > 0 ? 1 / l[j] : l[j] == 0 ? 0 : l[j];  // without keys: zero
      r[j] *= l[j];
    }
    for (int64_t j = 0; j < queries; j += LANES<A>)
      for (int64_t d = 0; d < a.D; ++d) {
        const int64_t i = column_of<A>(j, width) + d * PANEL<A>;
        store(O + i, load(O + i) * load(l + j));
        if (a.to) store(tO + i, load(tO + i) * load(l + j) - load(r + j) * load(O + i));
      }
    const int64_t out = ((clip * a.N + first) * a.H + head) * a.D;
    scatter_lanes(O, width, queries, a.D, a.H * a.D, a.o + out);
    if (a.to) scatter_lanes(tO, width, queries, a.D, a.H * a.D, a.to + out);
  }

  // Processes W registers of queries from `j` and a block of keys, `rows` with padding; query j attends to key i
  // if i <= j + diagonal.
  template <int W> void panel(int64_t j, int64_t keys, int64_t rows, int64_t diagonal) {
    const A *q = Q + j * width, *tq = a.tq.data ? tQ + j * width : nullptr;
    const A *tk = a.tk.data ? tK : nullptr, *tv = a.tv.data ? tV : nullptr;
    product<A, W, false>(K, tk, width, q, tq, a.D, S, tS, rows, nullptr);
    for (int v = 0; v < W; ++v) softmax(j + v * LANES<A>, v * LANES<A>, keys, diagonal);
    product<A, W, true>(Vs, tv, width, S, ts ? tS : nullptr, keys, O + j * width, tO + j * width, width,
                        decay + j);
  }

  // S, tS -> p, h for one register of queries from `j`, at `column` of their panel; writes the rescaling `decay`.
  void softmax(int64_t j, int64_t column, int64_t keys, int64_t diagonal) {
    A *s = S + column, *t = tS + column;
    const bool masked = diagonal < KEYS;
    const Ints<A> query = iota<A>() + Index<A>(j + diagonal + KEYS);
    const V<A> before = load(m + j);
    V<A> high = before;
    for (int64_t i = 0; i < keys; ++i) {
      V<A> one = load(s + i * PANEL<A>);
      if (masked) {
        one = query < Index<A>(i + KEYS) ? splat<A>(-INFINITY) : one;
        store(s + i * PANEL<A>, one);
      }
      high = one > high ? one : high;
    }
    const V<A> shrink = exp<A>(before - high);
    V<A> sum_p{}, sum_h{}, sum_exact{};
    for (int64_t i = 0; i < keys; ++i) {
      const V<A> e = exp<A>(load(s + i * PANEL<A>) - high), p = as_stored<T>(e);
      sum_exact += e;
      sum_p += p;
      store(s + i * PANEL<A>, p);
      if (ts) {
        const V<A> h = as_stored<T>(e * load(t + i * PANEL<A>));
        sum_h += h;
        store(t + i * PANEL<A>, h);
      }
    }
    store(m + j, high);
    store(l + j, load(l + j) * shrink + sum_p);
    store(r + j, load(r + j) * shrink + sum_h);
    store(exact + j, load(exact + j) * shrink + sum_exact);
    store(decay + j, shrink);
  }
};

// Runs tasks from a shared counter, one at a time: this balances causal blocks of unequal length.
template <typename T> void attention(const Attention<T>& a, int64_t* next, int64_t tasks) {
  AttentionTask<T> run{a};
  for (int64_t task; (task = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < tasks;) run(task);
}

}  // namespace SV_ISA
}  // namespace swiftvideo
