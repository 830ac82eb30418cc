// Exponential moving average of one shard, and its low-precision copy.
//
//   average <- average + (1 - decay) (master - average)        copy <- average
// Traffic: average in and out, master in, copy out, once each.  Only the copy uses non-temporal stores: the average
// is cached already (2 Zen 4 cores: 1.57 times as fast as torch's lerp and cast; both non-temporal: 1.33).
#pragma once

#include "vec.h"

namespace swiftvideo {

template <typename T> struct Ema {
  Wide<T>* average;
  const Wide<T>* master;
  T* copy;  // null: none
  double decay;
  bool nontemporal;
};

namespace SV_ISA {

// Elements [begin, end); begin is a multiple of 64 bytes.
template <typename T> void ema(const Ema<T>& a, int64_t begin, int64_t end) {
  using A = Wide<T>;
  const A step = A(1 - a.decay);
  const Plane copy(a.copy, 0, a.nontemporal);
  sweep<A>(end - begin, [&](int64_t i, auto n) {
    const V<A> old = load(a.average + begin + i, n);
    const V<A> average = old + step * (load(a.master + begin + i, n) - old);
    store(a.average + begin + i, average, n);
    if (a.copy) copy.put(begin + i, average, n);
  });
}

}  // namespace SV_ISA
}  // namespace swiftvideo
