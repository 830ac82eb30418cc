// CCD's distillation gradient (eq. 8 of the SwiftVideo paper).
//
//   g = v - F - r t dF                           then g * factor, or g clamped to [-1, 1]
// Sums over pieces of PIECE elements of a clip are added in order, so they do not depend on the threads.
// Traffic: `ccd_gradient_squares` reads v, F, dF; `ccd_gradient` reads them again and writes g.
#pragma once

#include "vec.h"

namespace swiftvideo {

template <typename T> struct CcdGradient {
  const T *v, *F, *dF;    // (B, size)
  Wide<T>* g;             // (B, size)
  const Wide<T>* rt;      // (B): r t
  const Wide<T>* factor;  // (B): 1 / (norm + c); null: clamp
  double* squares;        // (B, pieces): sums of g^2
  int64_t size, pieces;
  bool nontemporal;
};
constexpr int64_t PIECE = 1 << 14;

namespace SV_ISA {

// Calls f(element, clip, lanes, squares) over pieces [begin, end) of the clips; stores a sum of squares per piece.
template <typename A, typename Arguments, typename F>
SV_INLINE void over_pieces(const Arguments& a, int64_t begin, int64_t end, F f) {
  for (int64_t piece = begin; piece < end; ++piece) {
    const int64_t clip = piece / a.pieces, first = piece % a.pieces * PIECE, start = clip * a.size + first;
    Sum<A> squares;
    sum_over<A>(
        first + PIECE < a.size ? PIECE : a.size - first,
        [&](int64_t i, auto n) { f(start + i, clip, n, squares); }, squares);
    a.squares[piece] = squares.total();
  }
}

template <typename T> SV_INLINE V<Wide<T>> raw_g(const CcdGradient<T>& a, int64_t i, int64_t clip, auto n) {
  return load(a.v + i, n) - load(a.F + i, n) - a.rt[clip] * load(a.dF + i, n);
}

// Sums of g^2.
template <typename T> void ccd_gradient_squares(const CcdGradient<T>& a, int64_t begin, int64_t end) {
  using A = Wide<T>;
  over_pieces<A>(a, begin, end, [&](int64_t i, int64_t clip, auto n, Sum<A>& squares) {
    const V<A> g = raw_g(a, i, clip, n);
    squares.add(g * g);
  });
}

// g, scaled or clamped, and the sums of the unscaled g^2.
template <typename T> void ccd_gradient(const CcdGradient<T>& a, int64_t begin, int64_t end) {
  using A = Wide<T>;
  const Plane out(a.g, a.size, a.nontemporal);
  over_pieces<A>(a, begin, end, [&](int64_t i, int64_t clip, auto n, Sum<A>& squares) {
    const V<A> g = raw_g(a, i, clip, n);
    squares.add(g * g);
    out.put(i, a.factor ? g * a.factor[clip] : g < A(-1) ? splat<A>(-1) : g > A(1) ? splat<A>(1) : g, n);
  });
}

}  // namespace SV_ISA
}  // namespace swiftvideo
