// The functions of quadric/random.hpp on a GPU: the same words, launched on exec.stream.
#pragma once

#include <cstdint>

#include "quadric/random.hpp"

namespace quadric::cuda::random {

using quadric::random::Stream;

// Blocks [first, first + blocks) of four words each: one write of out.
QUADRIC_API void philox(const Execution& exec, Stream stream, std::uint64_t first, std::int64_t blocks,
                        std::uint32_t* out);  // blocks x 4

}  // namespace quadric::cuda::random
