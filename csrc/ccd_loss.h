// The CCD loss.
//
//   residual = F_student - F - g                 loss = sum residual^2
// Sums run over pieces, as in ccd_gradient.h.  Traffic: reads three planes, writes the residual.
#pragma once

#include "ccd_gradient.h"

namespace swiftvideo {

template <typename T> struct CcdLoss {
  const T *F_student, *F;  // (B, size)
  const Wide<T>* g;        // (B, size)
  T* residual;             // (B, size)
  double* squares;         // (B, pieces)
  int64_t size, pieces;
  bool nontemporal;
};

namespace SV_ISA {

// Residual and its sum of squares for pieces [begin, end).
template <typename T> void ccd_loss(const CcdLoss<T>& a, int64_t begin, int64_t end) {
  using A = Wide<T>;
  const Plane out(a.residual, a.size, a.nontemporal);
  for (int64_t index = begin; index < end; ++index) {
    const Piece piece(index, a.pieces, a.size);
    Sum<A> squares;
    sum_over<A>(
        piece.length,
        [&](int64_t i, auto n) {
          const int64_t at = piece.begin + i;
          const V<A> residual = load(a.F_student + at, n) - load(a.F + at, n) - load(a.g + at, n);
          squares.add(residual * residual);
          out.put(at, residual, n);
        },
        squares);
    a.squares[index] = squares.total();
  }
}

}  // namespace SV_ISA
}  // namespace swiftvideo
