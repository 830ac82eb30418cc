// GELU (tanh), its tangent and its backward: elementwise, so dx is the tangent along dy.
//
//   tanh(u) = 2 sigma(2u) - 1, so      y  = x sigma(z)        z = 2 sqrt(2 / pi) (x + 0.044715 x^3)
//                                      ty = (sigma + x sigma (1 - sigma) z') tx
// Traffic: each tensor once.
#pragma once

#include "vec.h"

namespace swiftvideo {

template <typename T> struct Gelu {
  const T *x, *tx;
  T *y, *ty;  // either may be null: not computed
  bool nontemporal;
};

namespace SV_ISA {

// Elements [begin, end); begin is a multiple of 64 bytes.
template <typename T> void gelu(const Gelu<T>& a, int64_t begin, int64_t end) {
  using A = Wide<T>;
  const Plane y(a.y, 0, a.nontemporal), ty(a.ty, 0, a.nontemporal);
  constexpr A slope = A(1.5957691216057307), cubic = A(1.5957691216057307 * 0.044715);
  sweep<A>(end - begin, [&](int64_t i, auto n) {
    const V<A> x = load(a.x + begin + i, n), square = x * x;
    const V<A> z = x * (slope + cubic * square);
    // Both halves of sigma from e^-|z|: 1 - sigma would cancel where sigma is near 1.
    const V<A> e = exp<A>(z < 0 ? z : -z), near = A(1) / (A(1) + e), far = e * near;
    const V<A> sigma = z < 0 ? far : near;
    if (a.y) y.put(begin + i, x * sigma, n);
    if (!a.ty) return;
    const V<A> rest = z < 0 ? near : far, dz = slope + 3 * cubic * square;
    ty.put(begin + i, sigma * (A(1) + x * rest * dz) * load(a.tx + begin + i, n), n);
  });
}

}  // namespace SV_ISA
}  // namespace swiftvideo
