// Rows of any storage type on the device: read 16 bytes at a time where they are aligned, used as double; and how their
// columns are cut. For the kernels of rows.cu and row_gram.cu.
#pragma once

#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "device.hpp"
#include "quadric/storage.hpp"
#include "quadric/view.hpp"
#include "require.hpp"

namespace quadric::cuda::rows {

// ---- entries -------------------------------------------------------------------------------------------------------

struct Float16 {
  std::uint16_t bits;
};
struct Bfloat16 {
  std::uint16_t bits;
};

template <class S>
inline constexpr int kPack = 16 / static_cast<int>(sizeof(S));  // entries in 16 bytes

__device__ __forceinline__ double wide(double x) { return x; }
__device__ __forceinline__ double wide(float x) { return static_cast<double>(x); }
__device__ __forceinline__ double wide(Float16 x) {
  return static_cast<double>(__half2float(__ushort_as_half(x.bits)));
}
// bfloat16 is the upper half of a float32.
__device__ __forceinline__ double wide(Bfloat16 x) {
  return static_cast<double>(__uint_as_float(static_cast<unsigned>(x.bits) << 16));
}

template <int i>
__device__ __forceinline__ unsigned word(const uint4& v) {
  if constexpr (i == 0) return v.x;
  if constexpr (i == 1) return v.y;
  if constexpr (i == 2) return v.z;
  return v.w;
}

// The entries in 16 bytes, as double.
template <int i>
__device__ __forceinline__ void widen_word(const uint4& v, float, double* out) {
  out[i] = wide(__uint_as_float(word<i>(v)));
}
template <int i>
__device__ __forceinline__ void widen_word(const uint4& v, Float16, double* out) {
  out[2 * i] = wide(Float16{static_cast<std::uint16_t>(word<i>(v))});
  out[2 * i + 1] = wide(Float16{static_cast<std::uint16_t>(word<i>(v) >> 16)});
}
template <int i>
__device__ __forceinline__ void widen_word(const uint4& v, Bfloat16, double* out) {
  out[2 * i] = wide(__uint_as_float(word<i>(v) << 16));
  out[2 * i + 1] = wide(__uint_as_float(word<i>(v) & 0xffff0000u));
}
template <class S>
__device__ __forceinline__ void widen(const uint4& v, double (&out)[kPack<S>]) {
  if constexpr (sizeof(S) == 8) {
    out[0] = __hiloint2double(static_cast<int>(v.y), static_cast<int>(v.x));
    out[1] = __hiloint2double(static_cast<int>(v.w), static_cast<int>(v.z));
  } else {
    widen_word<0>(v, S{}, out);
    widen_word<1>(v, S{}, out);
    widen_word<2>(v, S{}, out);
    widen_word<3>(v, S{}, out);
  }
}

// The first `count` of kPack<S> entries, the others zero. `aligned`: p is a multiple of 16 bytes.
template <class S>
__device__ __forceinline__ uint4 read_some(const S* p, std::int64_t count, bool aligned) {
  if (aligned && count >= kPack<S>) return __ldcs(reinterpret_cast<const uint4*>(p));
  S entry[kPack<S>] = {};
#pragma unroll
  for (int i = 0; i < kPack<S>; ++i)
    if (i < count) entry[i] = p[i];
  uint4 v;
  memcpy(&v, entry, sizeof v);
  return v;
}

// ---- rows ----------------------------------------------------------------------------------------------------------

template <class S>
struct Rows {
  using Entry = S;

  const S* data;
  std::int64_t count, stride;

  const __device__ S* at(std::int64_t row, std::int64_t column) const { return data + row * stride + column; }
};

inline bool aligned16(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

// Whether 16 bytes may be read from each row at every multiple of kPack<S>.
template <class S>
bool aligned(const Rows<S>& G) {
  return aligned16(G.data) && (G.count <= 1 || G.stride % kPack<S> == 0);
}

template <class T>
constexpr bool stores(Storage storage) {
  return (storage == Storage::float64) == (sizeof(T) == 8);
}

// body(Rows<S>) for the storage type S.
template <class Body>
void with_type(const StoredRows& G, const Body& body) {
  const auto as = [&](auto zero) {
    using S = decltype(zero);
    body(Rows<S>{static_cast<const S*>(G.data), G.rows, G.row_stride});
  };
  switch (G.storage) {
    case Storage::float16:
      return as(Float16{});
    case Storage::bfloat16:
      return as(Bfloat16{});
    case Storage::float32:
      return as(0.0F);
    case Storage::float64:
      return as(0.0);
  }
}

// ---- columns -------------------------------------------------------------------------------------------------------

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// d columns in blocks, each cut into `parts` of `width` columns: the last parts of a block may be short or empty.
struct Cut {
  std::int64_t d = 0, block_size = 1, width = 1, blocks = 0, parts = 1;

  // Parts of at least `least` columns and of a multiple of `step`, which is a power of two; at most `most` of a block.
  Cut(std::int64_t d_, std::int64_t block_size_, std::int64_t least, std::int64_t step, std::int64_t most)
      : d(d_), block_size(std::max<std::int64_t>(1, std::min(block_size_, d_))), blocks(ceil_div(d, block_size)) {
    width = std::max(least, ceil_div(block_size, std::max<std::int64_t>(most, 1)));
    width = ceil_div(width, step) * step;
    parts = ceil_div(block_size, width);
  }

  __host__ __device__ std::int64_t block_end(std::int64_t block) const {
    const std::int64_t end = (block + 1) * block_size;
    return end < d ? end : d;
  }
  __host__ __device__ std::int64_t begin(std::int64_t block, std::int64_t part) const {
    const std::int64_t begin = block * block_size + part * width, limit = block_end(block);
    return begin < limit ? begin : limit;
  }
  __host__ __device__ std::int64_t end(std::int64_t block, std::int64_t part) const {
    const std::int64_t end = block * block_size + (part + 1) * width, limit = block_end(block);
    return end < limit ? end : limit;
  }

  // Whether every part begins at a multiple of `pack` columns.
  bool in_step(std::int64_t pack) const {
    return (blocks <= 1 || block_size % pack == 0) && (parts <= 1 || width % pack == 0);
  }
};

// Blocks of threads in one dimension, of which there may be 2^31 - 1.
inline unsigned grid_of(std::int64_t blocks) {
  QUADRIC_REQUIRE(blocks <= std::numeric_limits<int>::max(), "G has too many blocks for one launch");
  return static_cast<unsigned>(blocks);
}

inline void check_rows(const StoredRows& G, std::int64_t block_size) {
  QUADRIC_REQUIRE(block_size >= 1, "block_size must be at least 1");
  QUADRIC_REQUIRE(G.rows >= 0 && G.cols >= 0, "G must not have a negative size");
}

// out[i] = sum of partials[part][i] over the parts of each block, `size` numbers each; in an order of its own, which
// the number of parts alone decides. `symmetric`: of an m x m matrix the lower triangle is given and both are written.
void sum_parts(const Execution& exec, const Cut& cut, const double* partials, std::int64_t size, bool symmetric,
               std::int64_t m, double* out);

// out_b = G_b X_b^T for many rows of X; see row_gram.cu.
template <class T>
void cross(const Execution& exec, const StoredRows& G, const Rows<T>& X, std::int64_t block_size, double* out);

}  // namespace quadric::cuda::rows
