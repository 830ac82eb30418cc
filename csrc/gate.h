// Gated residual, its tangent and its backward.
//
//   z  = x + g y        tz = tx + g ty + tg y        dy = g dz        dg = sum over tokens of dz y
// Traffic: each tensor once.
#pragma once

#include "modulate.h"

namespace swiftvideo {

template <typename T> struct Gate {
  const T *x, *tx, *y, *ty;  // (B * N, C); tangents null: zero
  const Wide<T>*g, *tg;      // (B, C)
  T *z, *tz;                 // (B * N, C); tz null: primal only
  int64_t N, C;
  bool nontemporal;
};
template <typename T> struct GateBackward {
  const T *dz, *y;   // (B * N, C)
  const Wide<T>* g;  // (B, C)
  T* dy;             // (B * N, C)
  Wide<T>* dg;       // (B * chunks, C): a sum for each chunk of CHUNK_ROWS rows of a clip
  int64_t N, C, chunks;
};

namespace SV_ISA {

template <typename T> void gate(const Gate<T>& a, int64_t row_begin, int64_t row_end) {
  using A = Wide<T>;
  const Plane z(a.z, a.C, a.nontemporal), tz(a.tz, a.C, a.nontemporal);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t at = row * a.C, clip = row / a.N * a.C;
    sweep<A>(a.C, [&](int64_t c, auto n) {
      const V<A> g = load(a.g + clip + c, n), y = load(a.y + at + c, n);
      z.put(at + c, load(a.x + at + c, n) + g * y, n);
      if (a.tz)
        tz.put(at + c,
               load_or_zero(a.tx, at + c, n) + g * load_or_zero(a.ty, at + c, n) +
                   load_or_zero(a.tg, clip + c, n) * y,
               n);
    });
  }
}

// Processes chunks [begin, end), numbered by (clip, rows).
template <typename T> void gate_backward(const GateBackward<T>& a, int64_t begin, int64_t end) {
  using A = Wide<T>;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t clip = chunk / a.chunks, first = chunk % a.chunks * CHUNK_ROWS;
    const int64_t last = first + CHUNK_ROWS < a.N ? first + CHUNK_ROWS : a.N;
    A* dg = a.dg + chunk * a.C;
    memset(dg, 0, a.C * sizeof *dg);
    for (int64_t row = clip * a.N + first; row < clip * a.N + last; ++row)
      sweep<A>(a.C, [&](int64_t c, auto n) {
        const V<A> dz = load(a.dz + row * a.C + c, n);
        store(a.dy + row * a.C + c, dz * load(a.g + clip * a.C + c, n), n);
        store(dg + c, load(dg + c, n) + dz * load(a.y + row * a.C + c, n), n);
      });
  }
}

}  // namespace SV_ISA
}  // namespace swiftvideo
