// Modulated LayerNorm, its tangent and its backward, a row at a time.
//
//   n  = (x - mean x) r            r = 1 / sqrt(var x + eps)
//   y  = n (1 + s) + b
//   tn = r (tx - mean tx - n mean(n tx))                                  (1)
//   ty = tn (1 + s) + n ts + tb
// (1) is J tx with J = r (I - 11'/C - nn'/C), which is symmetric: the backward is J applied to dy (1 + s).
//
// Traffic: reads x and tx once (the row then stays in the L1 cache), writes y and ty once.
#pragma once

#include "vec.h"

namespace swiftvideo {

template <typename T> struct Modulate {
  const T *x, *tx;                // (B * N, C); tx null: zero
  const Wide<T>*s, *ts, *b, *tb;  // (B, C); ts, tb null: zero
  T *y, *ty;                      // (B * N, C); ty null: primal only
  int64_t N, C;
  double eps;
  bool nontemporal;
};
template <typename T> struct ModulateBackward {
  const T *dy, *x;   // (B * N, C)
  const Wide<T>* s;  // (B, C)
  T* dx;             // (B * N, C)
  Wide<T>*ds, *db;   // (B * chunks, C): a sum for each chunk of CHUNK_ROWS rows of a clip
  int64_t N, C, chunks;
  double eps;
};
constexpr int64_t CHUNK_ROWS = 32;  // fixed: sums are independent of the threads, and short in float

namespace SV_ISA {

// Statistics of a row of x: mean and 1 / sqrt(var + eps); with a row v (scaled by 1 + s if s is not null) also
// mean v and mean n v, for J v.
template <typename A> struct Norm { A mean, rstd, mean_v, mean_nv; };
template <typename T>
SV_INLINE Norm<Wide<T>> norm(const T* x, const T* v, const Wide<T>* s, int64_t C, double eps) {
  using A = Wide<T>;
  const auto second = [&](int64_t c, auto n) {
    const V<A> row = load_or_zero(v, c, n);
    return s ? row * (load(s + c, n) + A(1)) : row;
  };
  Sum<A> sum_x, sum_v, squares, products;
  sum_over<A>(
      C,
      [&](int64_t c, auto n) {
        sum_x.add(load(x + c, n));
        if (v) sum_v.add(second(c, n));
      },
      sum_x, sum_v);
  const A mean = A(sum_x.total() / C);
  sum_over<A>(
      C,
      [&](int64_t c, auto n) {
        const V<A> centred = keep<A>(load(x + c, n) - mean, n);
        squares.add(centred * centred);
        if (v) products.add(centred * second(c, n));
      },
      squares, products);
  const double rstd = 1 / std::sqrt(squares.total() / C + eps);
  return {mean, A(rstd), A(sum_v.total() / C), A(products.total() * rstd / C)};
}

template <typename T> void modulate(const Modulate<T>& a, int64_t row_begin, int64_t row_end) {
  using A = Wide<T>;
  const Plane y(a.y, a.C, a.nontemporal), ty(a.ty, a.C, a.nontemporal);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t at = row * a.C, clip = row / a.N * a.C;
    const T* tx = a.tx ? a.tx + at : nullptr;
    const Norm<A> stats = norm(a.x + at, tx, static_cast<const A*>(nullptr), a.C, a.eps);
    sweep<A>(a.C, [&](int64_t c, auto some) {
      __builtin_prefetch(a.x + at + a.C + c);  // the next row, during this row's arithmetic
      if (tx) __builtin_prefetch(tx + a.C + c);
      const V<A> n = (load(a.x + at + c, some) - stats.mean) * stats.rstd;
      const V<A> gain = load(a.s + clip + c, some) + A(1);
      y.put(at + c, n * gain + load(a.b + clip + c, some), some);
      if (!a.ty) return;
      V<A> t = load_or_zero(a.tb, clip + c, some) + n * load_or_zero(a.ts, clip + c, some);
      if (tx) t += (load(tx + c, some) - stats.mean_v - n * stats.mean_nv) * stats.rstd * gain;  // (1)
      ty.put(at + c, t, some);
    });
  }
}

// Processes chunks [begin, end), numbered by (clip, rows).
template <typename T> void modulate_backward(const ModulateBackward<T>& a, int64_t begin, int64_t end) {
  using A = Wide<T>;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t clip = chunk / a.chunks, first = chunk % a.chunks * CHUNK_ROWS;
    const int64_t last = first + CHUNK_ROWS < a.N ? first + CHUNK_ROWS : a.N;
    const A* s = a.s + clip * a.C;
    A *ds = a.ds + chunk * a.C, *db = a.db + chunk * a.C;
    memset(ds, 0, a.C * sizeof *ds);
    memset(db, 0, a.C * sizeof *db);
    for (int64_t row = clip * a.N + first; row < clip * a.N + last; ++row) {
      const T *x = a.x + row * a.C, *dy = a.dy + row * a.C;
      const Norm<A> stats = norm(x, dy, s, a.C, a.eps);
      sweep<A>(a.C, [&](int64_t c, auto some) {
        const V<A> n = (load(x + c, some) - stats.mean) * stats.rstd, d = load(dy + c, some);
        const V<A> dn = d * (load(s + c, some) + A(1));
        store(a.dx + row * a.C + c, (dn - stats.mean_v - n * stats.mean_nv) * stats.rstd, some);  // (1) again
        store(ds + c, load(ds + c, some) + d * n, some);
        store(db + c, load(db + c, some) + d, some);
      });
    }
  }
}

}  // namespace SV_ISA
}  // namespace swiftvideo
