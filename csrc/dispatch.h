// Which level's kernels run: the widest of this machine's, or one that a test has asked for.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"

namespace swiftvideo {

enum class Level { baseline, avx2, avx512 };
inline constexpr std::pair<const char*, Level> LEVELS[] = {
    {"baseline", Level::baseline}, {"avx2", Level::avx2}, {"avx512", Level::avx512}};

inline Level widest() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Level::avx512;
  if (avx2) return Level::avx2;
#endif
  return Level::baseline;
}
inline Level level = widest();

template <typename T> const Kernels<T>& kernels() {
#if defined(__x86_64__)
  if (level == Level::avx512) return avx512::kernels<T>();
  if (level == Level::avx2) return avx2::kernels<T>();
#endif
  return baseline::kernels<T>();
}

inline std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (const auto& [name, one] : LEVELS)
    if (one <= widest()) names.push_back(name);
  return names;
}

inline std::string use_level(const std::string& wanted) {
  for (const auto& [name, one] : LEVELS)
    if (wanted == name && one <= widest()) return LEVELS[int(std::exchange(level, one))].first;
  throw std::invalid_argument("use_level: " + wanted + " is not a level of this machine");
}

}  // namespace swiftvideo
