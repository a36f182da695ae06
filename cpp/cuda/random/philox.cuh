// Philox 4x32-10, a block of four words a call; see quadric/random.hpp.
#pragma once

#include <cstdint>

namespace quadric::cuda::random {

struct Words {
  std::uint32_t at[4];
};

__device__ __forceinline__ Words block_of_words(std::uint64_t seed, std::uint32_t stream, std::uint64_t number) {
  std::uint32_t low = static_cast<std::uint32_t>(seed), high = static_cast<std::uint32_t>(seed >> 32);
  std::uint32_t a = static_cast<std::uint32_t>(number), b = static_cast<std::uint32_t>(number >> 32), c = stream, d = 0;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p = static_cast<std::uint64_t>(a) * 0xd2511f53u,
                        q = static_cast<std::uint64_t>(c) * 0xcd9e8d57u;
    a = static_cast<std::uint32_t>(q >> 32) ^ b ^ low;
    b = static_cast<std::uint32_t>(q);
    c = static_cast<std::uint32_t>(p >> 32) ^ d ^ high;
    d = static_cast<std::uint32_t>(p);
    low += 0x9e3779b9u;
    high += 0xbb67ae85u;
  }
  return {{a, b, c, d}};
}

}  // namespace quadric::cuda::random
