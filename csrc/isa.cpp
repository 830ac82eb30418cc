// All ops for one instruction set.  CMakeLists.txt compiles this file once per set, with SV_ISA and its -m flags.
#include "kernels.h"

namespace swiftvideo::SV_ISA {

template <typename T> const Kernels<T>& kernels() {
  static constexpr Kernels<T> all{.attention = attention<T>,
#define K(name, Arguments) .name = name<T>,
                                  SV_KERNELS(K)
#undef K
  };
  return all;
}
template const Kernels<float>& kernels();
template const Kernels<double>& kernels();
template const Kernels<bf16>& kernels();

}  // namespace swiftvideo::SV_ISA
