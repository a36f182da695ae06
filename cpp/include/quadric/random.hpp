// Random words from a key and a counter: any part of a stream on its own, the same bits for any number of threads.
#pragma once

#include <cstdint>

#include "quadric/execution.hpp"
#include "quadric/export.hpp"

namespace quadric::random {

// The first counter word of block i is i mod 2^32, the second i div 2^32, the third the stream, the fourth 0.
struct Stream {
  std::uint64_t seed = 0;  // the key, low word first
  std::uint32_t number = 0;
};

// Blocks [first, first + blocks) of four words each: Philox 4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011). 20 products of 32-bit numbers a block, one write of out.
QUADRIC_API void philox(const Execution& exec, Stream stream, std::uint64_t first, std::int64_t blocks,
                        std::uint32_t* out);  // blocks x 4

}  // namespace quadric::random
