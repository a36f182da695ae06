// Philox 4x32-10, one block in each 64-bit lane, for files that are compiled once per instruction set.
#pragma once

#include <cstdint>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "vectors.hpp"

namespace quadric::QUADRIC_LEVEL {
namespace {

using Wide = std::uint64_t __attribute__((vector_size(QUADRIC_VECTOR_BYTES), may_alias));
using LooseWide = std::uint64_t __attribute__((vector_size(QUADRIC_VECTOR_BYTES), aligned(4), may_alias));
constexpr int kBlocks = QUADRIC_VECTOR_BYTES / 8;  // at once

inline Wide all(std::uint64_t x) { return Wide{} + x; }

// The product of the lower halves of the lanes.
inline Wide product(Wide a, std::uint64_t b) {
#if defined(__AVX512F__)
  const auto p =
      _mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i&>(a), _mm512_set1_epi64(static_cast<long long>(b)));
  return reinterpret_cast<const Wide&>(p);
#elif defined(__AVX2__)
  const auto p = _mm256_mul_epu32(reinterpret_cast<__m256i&>(a), _mm256_set1_epi64x(static_cast<long long>(b)));
  return reinterpret_cast<const Wide&>(p);
#elif defined(__x86_64__)
  const auto p = _mm_mul_epu32(reinterpret_cast<__m128i&>(a), _mm_set1_epi64x(static_cast<long long>(b)));
  return reinterpret_cast<const Wide&>(p);
#else
  return (a & 0xffffffff) * b;
#endif
}

// The four words of the blocks whose numbers are in `number`; the upper halves of the lanes are zero.
struct Words {
  Wide w[4];
};
inline Words philox(std::uint64_t seed, std::uint32_t stream, Wide number) {
  constexpr std::uint64_t kLow = 0xffffffff;
  std::uint64_t low = seed & kLow, high = seed >> 32;
  // Upper halves may hold anything on the way: the products ignore them.
  Wide a = number, b = number >> 32, c = all(stream), d = all(0);
  for (int round = 0; round < 10; ++round) {
    const Wide p = product(a, 0xd2511f53), q = product(c, 0xcd9e8d57);
    a = (q >> 32) ^ b ^ low;
    b = q;
    c = (p >> 32) ^ d ^ high;
    d = p;
    low = (low + 0x9e3779b9) & kLow;
    high = (high + 0xbb67ae85) & kLow;
  }
  return {{a & kLow, b & kLow, c & kLow, d & kLow}};
}

inline Wide count_up(std::uint64_t first, std::uint64_t step) {
  Wide number;
  for (int lane = 0; lane < kBlocks; ++lane) number[lane] = first + static_cast<std::uint64_t>(lane) * step;
  return number;
}

// Blocks [first, first + blocks) in order, four words each.
inline void write_blocks(std::uint64_t seed, std::uint32_t stream, std::uint64_t first, std::int64_t blocks,
                         std::uint32_t* out) {
  Wide lower, upper;  // which lanes of (words 0 and 1, words 2 and 3) come first
  for (int lane = 0; lane < kBlocks; ++lane) {
    lower[lane] = static_cast<std::uint64_t>(lane / 2 + lane % 2 * kBlocks);
    upper[lane] = lower[lane] + kBlocks / 2;
  }
  Wide number = count_up(first, 1);
  for (std::int64_t i = 0; i < blocks; i += kBlocks, number += kBlocks) {
    const Words words = philox(seed, stream, number);
    const Wide front = words.w[0] | (words.w[1] << 32), back = words.w[2] | (words.w[3] << 32);
    const Wide first_half = __builtin_shuffle(front, back, lower), second_half = __builtin_shuffle(front, back, upper);
    if (i + kBlocks <= blocks) {
      *reinterpret_cast<LooseWide*>(out + 4 * i) = first_half;
      *reinterpret_cast<LooseWide*>(out + 4 * i + 2 * kBlocks) = second_half;
    } else {
      std::uint32_t rest[4 * kBlocks];
      *reinterpret_cast<LooseWide*>(rest) = first_half;
      *reinterpret_cast<LooseWide*>(rest + 2 * kBlocks) = second_half;
      copy(out + 4 * i, rest, 4 * (blocks - i));
    }
  }
}

// Words [first, first + count) of a stream, counted one by one; room for eight more.
inline std::uint32_t* write_words(std::uint64_t seed, std::uint32_t stream, std::uint64_t first, std::int64_t count,
                                  std::uint32_t* out) {
  const std::int64_t before = static_cast<std::int64_t>(first % 4);
  write_blocks(seed, stream, first / 4, (before + count + 3) / 4, out);
  return out + before;
}

}  // namespace
}  // namespace quadric::QUADRIC_LEVEL
