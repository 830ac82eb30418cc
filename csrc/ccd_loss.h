// The CCD loss (eq. 9 of the SwiftVideo paper).
//
//   residual = F_student - F - g                 loss = sum residual^2
// Sums by pieces, as in ccd_gradient.h.  Traffic: reads F_student, F, g; writes the residual.
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

// Residual and its sums of squares.
template <typename T> void ccd_loss(const CcdLoss<T>& a, int64_t begin, int64_t end) {
  using A = Wide<T>;
  const Plane out(a.residual, a.size, a.nontemporal);
  over_pieces<A>(a, begin, end, [&](int64_t i, int64_t, auto n, Sum<A>& squares) {
    const V<A> residual = load(a.F_student + i, n) - load(a.F + i, n) - load(a.g + i, n);
    squares.add(residual * residual);
    out.put(i, residual, n);
  });
}

}  // namespace SV_ISA
}  // namespace swiftvideo
