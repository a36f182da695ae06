// Random words; word_kernels.cpp is compiled once per instruction set.
#pragma once

#include <cstdint>

#include "quadric/simd.hpp"

namespace quadric::random::detail {

struct WordKernels {
  // Blocks [first, first + blocks) of a stream, four words each.
  void (*blocks)(std::uint64_t seed, std::uint32_t stream, std::uint64_t first, std::int64_t blocks,
                 std::uint32_t* out);
};

// The kernels of the level in force.
const WordKernels& word_kernels();

#define QUADRIC_DECLARE_LEVEL(level) \
  namespace level {                  \
  const WordKernels& word_kernels(); \
  }
QUADRIC_DECLARE_LEVEL(baseline)
QUADRIC_DECLARE_LEVEL(v3)
QUADRIC_DECLARE_LEVEL(v4)
#undef QUADRIC_DECLARE_LEVEL

}  // namespace quadric::random::detail
