// Every op for one storage type, compiled for one instruction set.
#pragma once

#include "attention.h"
#include "ccd_gradient.h"
#include "ccd_loss.h"
#include "ema.h"
#include "gate.h"
#include "gelu.h"
#include "modulate.h"
#include "norm_rope.h"

namespace swiftvideo {

// Every kernel and its arguments, over items [begin, end); expanded by the struct below and by isa.cpp.
#define SV_KERNELS(K)                       \
  K(ccd_gradient, CcdGradient<T>)           \
  K(ccd_gradient_squares, CcdGradient<T>)   \
  K(ccd_loss, CcdLoss<T>)                   \
  K(ema, Ema<T>)                            \
  K(gate, Gate<T>)                          \
  K(gate_backward, GateBackward<T>)         \
  K(gelu, Gelu<T>)                          \
  K(modulate, Modulate<T>)                  \
  K(modulate_backward, ModulateBackward<T>) \
  K(norm_rope, NormRope<T>)                 \
  K(norm_rope_backward, NormRopeBackward<T>)

template <typename T> struct Kernels {
  void (*attention)(const Attention<T>&, int64_t* next, int64_t tasks);
#define K(name, Arguments) void (*name)(const Arguments&, int64_t begin, int64_t end);
  SV_KERNELS(K)
#undef K
};

#if defined(__x86_64__)
namespace avx512 { template <typename T> const Kernels<T>& kernels(); }
namespace avx2 { template <typename T> const Kernels<T>& kernels(); }
#endif
namespace baseline { template <typename T> const Kernels<T>& kernels(); }

}  // namespace swiftvideo
