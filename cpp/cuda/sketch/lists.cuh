// Which rows of a tile go to which row of S A, for sparse signs: the same lists for every column of A, made once.
//
// The m rows of S are cut into chunks of at most kMostRows: a few whole blocks of m / nnz rows, or a part of one. For
// each tile of rows of A and each chunk there is a record of 32-bit words:
//   a table of `padded` words, one for each row of the chunk: begin | count << 16
//   `room` entries: (row within the tile) | (sign < 0) << 31, those of one row of S in the order of A's rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "device.hpp"
#include "quadric/cuda/sketch.hpp"
#include "random/philox.cuh"

namespace quadric::cuda::sketch {

inline constexpr int kMostRows = 1024;  // of a chunk
inline constexpr int kMostTile = 768;   // rows of a tile
inline constexpr int kMostBlocks = 16;  // in a chunk

// What becomes of one word of the stream: row * `block` / 2^31 of a block of so many rows, and the sign.
__host__ __device__ inline std::int64_t row_of(std::uint32_t word, std::int64_t block) {
  return static_cast<std::int64_t>((static_cast<std::uint64_t>(word >> 1) * static_cast<std::uint64_t>(block)) >> 31);
}

// `blocks` blocks of S from block k0 on, and of their rows those from row `skipped` on, `rows` of them.
struct Drawn {
  std::uint64_t seed;
  std::int64_t nnz, block, k0;
  int blocks;
  std::int64_t skipped;
  int rows;
};

// The sum of what the threads before this one have; for all threads of a block of kWarps warps.
template <int kWarps>
__device__ __forceinline__ std::uint32_t sum_before(std::uint32_t own) {
  __shared__ std::uint32_t sums[kWarps];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  std::uint32_t sum = own;  // up to and with this thread, of its warp
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const std::uint32_t other = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  sum -= own;
  for (int w = 0; w < warp; ++w) sum += sums[w];
  return sum;
}

inline constexpr std::uint16_t kElsewhere = 0x7fff;  // of an entry in another row of S

// codes[k * stride + i] = (row of S) | (sign < 0) << 15 for block k and row row + i of A, i < count, by a block of
// kThreads threads.
template <int kThreads>
__device__ __forceinline__ void draw(const Drawn& from, std::uint64_t row, int count, int stride,
                                     std::uint16_t* codes) {
  const auto nnz = static_cast<std::uint64_t>(from.nnz), k0 = static_cast<std::uint64_t>(from.k0);
  const auto block = static_cast<std::uint32_t>(from.block);
  const int skipped = static_cast<int>(from.skipped);
  // Groups of four words for a row.
  const int each = nnz % 4 == 0 && k0 % 4 == 0 ? (from.blocks + 3) / 4 : (from.blocks + 6) / 4;
  for (int u = static_cast<int>(threadIdx.x); u < count * each; u += kThreads) {
    const int i = u / each;
    const std::uint64_t first = (row + static_cast<std::uint64_t>(i)) * nnz + k0;
    const std::uint64_t group = first / 4 + static_cast<std::uint64_t>(u % each);
    const random::Words words = random::block_of_words(from.seed, static_cast<std::uint32_t>(Draw::sparse_sign), group);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int k = 4 * (u % each) + e - static_cast<int>(first % 4);
      if (k < 0 || k >= from.blocks) continue;
      // row_of in 32 bits; S has less than 2^30 rows.
      const int place = static_cast<int>(__umulhi(words.at[e] & ~1u, block)) + k * static_cast<int>(block) - skipped;
      const bool here = place >= 0 && place < from.rows;
      codes[k * stride + i] = here ? static_cast<std::uint16_t>(place | (words.at[e] & 1) << 15) : kElsewhere;
    }
  }
}

struct Lists {
  std::uint64_t seed = 0;
  std::int64_t m = 0, nnz = 1, block = 1;  // block = m / nnz
  std::int64_t rows = 0;                   // of A
  int tile = 0;                            // rows of a tile, a multiple of 32
  std::int64_t tiles = 0;
  int per = 1;               // blocks in a chunk
  std::int64_t parts = 1;    // chunks in a block; 1, or per = 1
  int size = 0;              // rows of a chunk, but of the last of a block
  std::int64_t chunks = 0;   //
  int padded = 0, room = 0;  // words

  // For n rows; two records and two tiles of 128 bytes a row fit into `shared` bytes.
  Lists(std::uint64_t seed_, std::int64_t n, std::int64_t m_, std::int64_t nnz_, std::int64_t shared)
      : seed(seed_), m(m_), nnz(nnz_), block(m_ / nnz_), rows(n) {
    if (block <= kMostRows) {
      per = static_cast<int>(std::min({nnz, std::int64_t{kMostBlocks}, kMostRows / block}));
      size = static_cast<int>(per * block);
      chunks = (nnz + per - 1) / per;
    } else {
      parts = (block + kMostRows - 1) / kMostRows;
      size = static_cast<int>((block + parts - 1) / parts);
      parts = (block + size - 1) / size;
      chunks = nnz * parts;
    }
    for (padded = 64; padded < size;) padded *= 2;
    const std::int64_t fits = (shared / 2 - 4 * padded) / (128 + 4 * per) / 32 * 32;
    tile = static_cast<int>(std::min({fits, std::int64_t{kMostTile}, (n + 31) / 32 * 32}));
    tiles = (n + tile - 1) / tile;
    room = per * tile;
  }

  __host__ __device__ int words() const { return padded + room; }  // of a record
  // Rows of A in a tile.
  __host__ __device__ int count(std::int64_t t) const {
    const std::int64_t left = rows - t * tile;
    return left < tile ? static_cast<int>(left) : tile;
  }
  // The blocks of a chunk, its first row of S, and how many rows it has.
  __host__ __device__ std::int64_t first_block(std::int64_t c) const { return parts == 1 ? c * per : c / parts; }
  __host__ __device__ int blocks(std::int64_t c) const {
    const std::int64_t left = nnz - first_block(c);
    return left < per ? static_cast<int>(left) : per;
  }
  __host__ __device__ std::int64_t skipped(std::int64_t c) const { return parts == 1 ? 0 : c % parts * size; }
  __host__ __device__ std::int64_t first_row(std::int64_t c) const { return first_block(c) * block + skipped(c); }
  __host__ __device__ int count_rows(std::int64_t c) const {
    if (parts == 1) return static_cast<int>(blocks(c) * block);
    const std::int64_t left = block - skipped(c);
    return left < size ? static_cast<int>(left) : size;
  }
  // Where a row of S is: its chunk, and its number there.
  __host__ __device__ std::int64_t chunk_of(std::int64_t row) const {
    return parts == 1 ? row / size : row / block * parts + row % block / size;
  }
};

// Lists of some tiles and some chunks: record (t - first_tile) * chunks + c - first_chunk is that of tile t, chunk c.
struct Batch {
  std::int64_t first_tile = 0, tiles = 0, first_chunk = 0, chunks = 0;
  std::int64_t records() const { return tiles * chunks; }
};

// Calls body(batch) so that every tile meets every chunk, with lists that take a bounded amount of memory.
template <class Body>
void for_batches(const Lists& lists, const Body& body) {
  constexpr std::int64_t kWords = std::int64_t{1} << 24;
  const std::int64_t most = std::max<std::int64_t>(1, kWords / lists.words());
  const std::int64_t chunks = std::min(lists.chunks, most), tiles = std::min(lists.tiles, most / chunks);
  for (std::int64_t t = 0; t < lists.tiles; t += tiles)
    for (std::int64_t c = 0; c < lists.chunks; c += chunks)
      body(Batch{t, std::min(tiles, lists.tiles - t), c, std::min(chunks, lists.chunks - c)});
}

// Memory for the records of any batch.
inline std::int64_t words_of_batch(const Lists& lists) {
  std::int64_t most = 0;
  for_batches(lists, [&](const Batch& batch) { most = std::max(most, batch.records() * lists.words()); });
  return most;
}

// Row 0 of tile 0 is row `first` of the whole.
void make_lists(const Execution& exec, const Lists& lists, std::int64_t first, const Batch& batch,
                std::uint32_t* records);

void check_signs(std::int64_t m, std::int64_t nnz, const Place& place);

}  // namespace quadric::cuda::sketch
