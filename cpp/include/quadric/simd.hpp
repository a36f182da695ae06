// Which instruction set the hot loops use. They are compiled once per level and one is picked at the first call: the
// best that this processor has, or the one that the environment variable QUADRIC_SIMD names.
#pragma once

#include <string>
#include <vector>

#include "quadric/export.hpp"

namespace quadric {

enum class SimdLevel { baseline, v3, v4 };

// The level in force. Throws invalid_argument if QUADRIC_SIMD names one that does not exist or cannot run here.
QUADRIC_API SimdLevel simd_level();

// The levels that were compiled in and run on this processor, lowest first.
QUADRIC_API std::vector<SimdLevel> simd_levels();

// "baseline", "x86-64-v3" (AVX2, FMA) or "x86-64-v4" (AVX-512).
QUADRIC_API std::string simd_name(SimdLevel level);

}  // namespace quadric
