// The exponential moving average of one shard, and its working copy.
//
//   average <- average + (1 - decay) (master - average)        copy <- average
// Traffic: average in and out, master in, copy out: once each.
#pragma once

#include "vec.h"

namespace swiftvideo {

template <typename A, typename T> struct Ema {
  A* average;
  const A* master;
  T* copy;                                  // null: none
  double decay;
};

namespace SV_LEVEL {

template <typename A, typename T> void ema(const Ema<A, T>& a, int64_t begin, int64_t end) {
  const A step = A(1 - a.decay);
  sweep<A>(end - begin, [&](int64_t i, auto n) {
    const V<A> old = load(a.average + begin + i, n);
    const V<A> average = old + step * (load(a.master + begin + i, n) - old);
    store(a.average + begin + i, average, n);
    if (a.copy) store(a.copy + begin + i, average, n);
  });
}

}  // namespace SV_LEVEL
}  // namespace swiftvideo
