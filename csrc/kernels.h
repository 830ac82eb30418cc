// Every op for one storage type, as one level compiled it.
#pragma once

#include "attention.h"
#include "ema.h"
#include "gate.h"
#include "gelu.h"
#include "modulate.h"
#include "norm_rope.h"
#include "tangent.h"

namespace swiftvideo {

template <typename T> struct Kernels {
  using Range = int64_t;
  void (*attention)(const Attention<T>&, int64_t* next, int64_t tasks);
  void (*modulate)(const Modulate<T>&, Range begin, Range end);
  void (*modulate_backward)(const ModulateBackward<T>&, Range begin, Range end);
  void (*norm_rope)(const NormRope<T>&, Range begin, Range end);
  void (*norm_rope_backward)(const NormRopeBackward<T>&, Range begin, Range end);
  void (*gate)(const Gate<T>&, Range begin, Range end);
  void (*gate_backward)(const GateBackward<T>&, Range begin, Range end);
  void (*gelu)(const Gelu<T>&, Range begin, Range end);
  void (*measure)(const Tangent<T>&, Range begin, Range end);
  void (*tangent)(const Tangent<T>&, Range begin, Range end);
  void (*ccd_loss)(const CcdLoss<T>&, Range begin, Range end);
  void (*ema)(const Ema<Wide<T>, T>&, Range begin, Range end);
};

#if defined(__x86_64__)
namespace avx512 { template <typename T> const Kernels<T>& kernels(); }
namespace avx2 { template <typename T> const Kernels<T>& kernels(); }
#endif
namespace baseline { template <typename T> const Kernels<T>& kernels(); }

}  // namespace swiftvideo
