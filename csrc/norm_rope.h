// RMSNorm over all channels, then rotary embedding in each head; its tangent and its backward, a row at a time.
//
//   n  = x r        r = 1 / sqrt(mean x^2 + eps)        y  = R(n w)
//   tn = r (tx - n mean(n tx))                          ty = R(tn w)                    (1)
// R rotates channels (2i, 2i + 1) of every head by the token's angle i.  Both maps are linear, (1) is symmetric,
// so the backward rotates dy back (R' is R with -sin) and applies (1) to R'dy w.
//
// Traffic: reads x and tx once, writes y and ty once; the tables are (N, D / 2).
#pragma once

#include "vec.h"

namespace swiftvideo {

template <typename T> struct NormRope {
  const T *x, *tx;          // (B * N, C); tx null: primal only
  const Wide<T>* w;         // (C)
  const Wide<T>*cos, *sin;  // (N, D / 2); null: no rotation
  T *y, *ty;                // (B * N, C)
  int64_t N, C, D;
  double eps;
  bool nontemporal;
};
template <typename T> struct NormRopeBackward {
  const T *dy, *x;  // (B * N, C)
  const Wide<T>*w, *cos, *sin;
  T* dx;        // (B * N, C)
  Wide<T>* dw;  // (chunks, C): a sum for each chunk of CHUNK_ROWS rows
  int64_t rows, N, C, D;
  double eps;
};

namespace SV_ISA {

// A token's cos and sin, repeated over a period (a multiple of D and LANES), so that every register loads its own.
template <typename A> struct Rotation {
  int64_t D, period = D;
  Scratch<A> memory;
  A *cos, *sin;

  static int64_t period_of(int64_t D) {
    int64_t period = D;
    while (period % LANES<A>) period += D;
    return period;
  }
  explicit Rotation(int64_t D)
      : D(D), period(period_of(D)), memory(2 * period), cos(memory.data), sin(cos + period) {}

  // sign -1: the inverse rotation.
  SV_INLINE void set(const A* cos_row, const A* sin_row, A sign) {
    const Ints<A> low = iota<A>() >> 1, high = low + Index<A>(LANES<A> / 2);
    const V<A> signs = (iota<A>() & Index<A>(1)) ? splat<A>(sign) : splat<A>(-sign);
    int64_t pair = 0;
    for (; pair + LANES<A> <= D / 2; pair += LANES<A>) {
      const V<A> c = load(cos_row + pair), s = load(sin_row + pair);
      store(cos + 2 * pair, __builtin_shuffle(c, low));
      store(cos + 2 * pair + LANES<A>, __builtin_shuffle(c, high));
      store(sin + 2 * pair, __builtin_shuffle(s, low) * signs);
      store(sin + 2 * pair + LANES<A>, __builtin_shuffle(s, high) * signs);
    }
    for (; pair < D / 2; ++pair) {
      cos[2 * pair] = cos[2 * pair + 1] = cos_row[pair];
      sin[2 * pair] = -sign * sin_row[pair];
      sin[2 * pair + 1] = sign * sin_row[pair];
    }
    for (int64_t done = D; done < period; done += D) {
      memcpy(cos + done, cos, D * sizeof *cos);
      memcpy(sin + done, sin, D * sizeof *sin);
    }
  }
  // Rotates a register of the row; `at`: its offset in the period.
  SV_INLINE V<A> operator()(V<A> y, int64_t at) const {
    return y * load(cos + at) + __builtin_shuffle(y, iota<A>() ^ Index<A>(1)) * load(sin + at);
  }
  SV_INLINE int64_t after(int64_t at) const { return at + LANES<A> < period ? at + LANES<A> : 0; }
};

template <typename T> void norm_rope(const NormRope<T>& a, int64_t row_begin, int64_t row_end) {
  using A = Wide<T>;
  Rotation<A> rotation(a.D);
  const Plane y(a.y, a.C, a.nontemporal), ty(a.ty, a.C, a.nontemporal);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T *x = a.x + row * a.C, *tx = a.tx ? a.tx + row * a.C : nullptr;
    if (a.cos) rotation.set(a.cos + row % a.N * (a.D / 2), a.sin + row % a.N * (a.D / 2), A(1));
    Sum<A> squares, products;
    sum_over<A>(
        a.C,
        [&](int64_t c, auto some) {
          const V<A> xc = load(x + c, some);
          squares.add(xc * xc);
          if (tx) products.add(xc * load(tx + c, some));
        },
        squares, products);
    const double r = 1 / std::sqrt(squares.total() / a.C + a.eps);
    const A rstd = A(r), mean_nt = A(products.total() * r / a.C);
    int64_t at = 0;
    sweep<A>(a.C, [&](int64_t c, auto some) {
      const V<A> n = load(x + c, some) * rstd, w = load(a.w + c, some);
      const auto put = [&](const Plane<T>& plane, V<A> nw) {
        plane.put(row * a.C + c, a.cos ? rotation(nw, at) : nw, some);
      };
      put(y, n * w);
      if (tx) put(ty, (load(tx + c, some) - n * mean_nt) * rstd * w);  // (1)
      at = rotation.after(at);
    });
  }
}

// Processes chunks [begin, end) of rows.
template <typename T> void norm_rope_backward(const NormRopeBackward<T>& a, int64_t begin, int64_t end) {
  using A = Wide<T>;
  Rotation<A> rotation(a.D);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * CHUNK_ROWS;
    const int64_t last = first + CHUNK_ROWS < a.rows ? first + CHUNK_ROWS : a.rows;
    A* dw = a.dw + chunk * a.C;
    memset(dw, 0, a.C * sizeof *dw);
    for (int64_t row = first; row < last; ++row) {
      const T *x = a.x + row * a.C, *dy = a.dy + row * a.C;
      if (a.cos) rotation.set(a.cos + row % a.N * (a.D / 2), a.sin + row % a.N * (a.D / 2), A(-1));
      Sum<A> squares, products;
      int64_t at = 0;
      const auto rotated = [&](int64_t c, auto some) {
        const V<A> d = load(dy + c, some), back = a.cos ? rotation(d, at) : d;
        at = rotation.after(at);
        return back;
      };
      sum_over<A>(
          a.C,
          [&](int64_t c, auto some) {
            const V<A> xc = load(x + c, some);
            squares.add(xc * xc);
            products.add(xc * rotated(c, some) * load(a.w + c, some));
          },
          squares, products);
      const double r = 1 / std::sqrt(squares.total() / a.C + a.eps);
      const A rstd = A(r), mean_nd = A(products.total() * r / a.C);
      at = 0;
      sweep<A>(a.C, [&](int64_t c, auto some) {
        const V<A> n = load(x + c, some) * rstd, d = rotated(c, some);
        store(a.dx + row * a.C + c, (d * load(a.w + c, some) - n * mean_nd) * rstd, some);  // (1) again
        store(dw + c, load(dw + c, some) + d * n, some);
      });
    }
  }
}

}  // namespace SV_ISA
}  // namespace swiftvideo
