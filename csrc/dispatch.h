// Selects the instruction set of the kernels: the widest of this machine, or the one set by use_isa.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"

namespace swiftvideo {

enum class Isa { baseline, avx2, avx512 };
inline constexpr std::pair<const char*, Isa> ISAS[] = {
    {"baseline", Isa::baseline}, {"avx2", Isa::avx2}, {"avx512", Isa::avx512}};

inline Isa widest() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::baseline;
}
inline Isa isa = widest();

template <typename T> const Kernels<T>& kernels() {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return avx512::kernels<T>();
  if (isa == Isa::avx2) return avx2::kernels<T>();
#endif
  return baseline::kernels<T>();
}

inline std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const auto& [name, one] : ISAS)
    if (one <= widest()) names.push_back(name);
  return names;
}

inline std::string use_isa(const std::string& wanted) {
  for (const auto& [name, one] : ISAS)
    if (wanted == name && one <= widest()) return ISAS[int(std::exchange(isa, one))].first;
  throw std::invalid_argument("use_isa: " + wanted + " is not an instruction set of this machine");
}

}  // namespace swiftvideo
