// The distillation gradient of CCD.
//
//   g = v - F - r t dF                           then g * factor, or g clamped to [-1, 1]
// Sums run over pieces of PIECE elements of a clip and are added in order, so they do not depend on the threads.
// Traffic: `ccd_gradient_squares` reads three planes and writes nothing; `ccd_gradient` reads them again and writes g.
#pragma once

#include "vec.h"

namespace swiftvideo {

template <typename T> struct CcdGradient {
  const T *v, *F, *dF;    // (B, size)
  Wide<T>* g;             // (B, size)
  const Wide<T>* rt;      // (B): r t
  const Wide<T>* factor;  // (B): 1 / (norm + c); null: clamp
  double* squares;        // (B, pieces): sums of g^2; null: not wanted
  int64_t size, pieces;
  bool nontemporal;
};
constexpr int64_t PIECE = 1 << 14;

namespace SV_ISA {

struct Piece {
  int64_t clip, begin, length;
  Piece(int64_t index, int64_t pieces, int64_t size) : clip(index / pieces) {
    const int64_t first = index % pieces * PIECE;
    begin = clip * size + first;
    length = first + PIECE < size ? PIECE : size - first;
  }
};

template <typename T> SV_INLINE V<Wide<T>> raw_g(const CcdGradient<T>& a, int64_t i, Wide<T> rt, auto n) {
  return load(a.v + i, n) - load(a.F + i, n) - rt * load(a.dF + i, n);
}

// Sums of g^2 for pieces [begin, end).
template <typename T> void ccd_gradient_squares(const CcdGradient<T>& a, int64_t begin, int64_t end) {
  using A = Wide<T>;
  for (int64_t index = begin; index < end; ++index) {
    const Piece piece(index, a.pieces, a.size);
    Sum<A> squares;
    sum_over<A>(
        piece.length,
        [&](int64_t i, auto n) {
          const V<A> g = raw_g(a, piece.begin + i, a.rt[piece.clip], n);
          squares.add(g * g);
        },
        squares);
    a.squares[index] = squares.total();
  }
}

// g of pieces [begin, end), scaled or clamped; in the clamped form also their sums.
template <typename T> void ccd_gradient(const CcdGradient<T>& a, int64_t begin, int64_t end) {
  using A = Wide<T>;
  const Plane out(a.g, a.size, a.nontemporal);
  for (int64_t index = begin; index < end; ++index) {
    const Piece piece(index, a.pieces, a.size);
    Sum<A> squares;
    sum_over<A>(
        piece.length,
        [&](int64_t i, auto n) {
          const V<A> g = raw_g(a, piece.begin + i, a.rt[piece.clip], n);
          if (a.factor) return out.put(piece.begin + i, g * a.factor[piece.clip], n);
          squares.add(g * g);
          out.put(piece.begin + i, g < A(-1) ? splat<A>(-1) : g > A(1) ? splat<A>(1) : g, n);
        },
        squares);
    if (!a.factor) a.squares[index] = squares.total();
  }
}

}  // namespace SV_ISA
}  // namespace swiftvideo
