#include "quadric/simd.hpp"

#include <cstdlib>

#include "quadric/status.hpp"

namespace quadric {
namespace {

bool runs_here(SimdLevel level) {
  switch (level) {
    case SimdLevel::baseline:
      return true;
#ifdef QUADRIC_X86
    case SimdLevel::v3:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    case SimdLevel::v4:
      return runs_here(SimdLevel::v3) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
#else
    default:
      return false;
#endif
  }
  return false;
}

SimdLevel choose() {
  const std::vector<SimdLevel> usable = simd_levels();
  const char* wanted = std::getenv("QUADRIC_SIMD");
  if (wanted == nullptr || *wanted == '\0') return usable.back();
  std::string names;
  for (SimdLevel level : usable) {
    if (simd_name(level) == wanted) return level;
    names += (names.empty() ? "" : ", ") + simd_name(level);
  }
  throw invalid_argument("QUADRIC_SIMD is '" + std::string(wanted) + "'; this processor can run: " + names);
}

}  // namespace

SimdLevel simd_level() {
  static const SimdLevel level = choose();
  return level;
}

std::vector<SimdLevel> simd_levels() {
  std::vector<SimdLevel> usable;
  for (SimdLevel level : {SimdLevel::baseline, SimdLevel::v3, SimdLevel::v4}) {
    if (runs_here(level)) usable.push_back(level);
  }
  return usable;
}

std::string simd_name(SimdLevel level) {
  switch (level) {
    case SimdLevel::v3:
      return "x86-64-v3";
    case SimdLevel::v4:
      return "x86-64-v4";
    default:
      return "baseline";
  }
}

}  // namespace quadric
