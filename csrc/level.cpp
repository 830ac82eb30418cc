// All ops at one level.  CMakeLists.txt compiles this file once a level, with SV_LEVEL and the level's -m flags.
#include "kernels.h"

namespace swiftvideo::SV_LEVEL {

template <typename T> const Kernels<T>& kernels() {
  static constexpr Kernels<T> all{
      attention<T>,
      modulate<T>,
      modulate_backward<T>,
      norm_rope<T>,
      norm_rope_backward<T>,
      gate<T>,
      gate_backward<T>,
      gelu<T>,
      measure<T>,
      tangent<T>,
      ccd_loss<T>,
      ema<Wide<T>, T>,
  };
  return all;
}
template const Kernels<float>& kernels();
template const Kernels<double>& kernels();
template const Kernels<bf16>& kernels();

}  // namespace swiftvideo::SV_LEVEL
