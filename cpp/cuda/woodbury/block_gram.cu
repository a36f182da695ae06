// sums += X_b^T X_b for all blocks b of B weights, in float64 on the tensor cores: the larger of one read of G and one
// read and write of the sums at 4.2 TB/s, and of rows d 8 ceil(B / 8) flops (the lower tiles of 8 x 8) at 60 TFLOP/s.
// d = 4 M, B = 50, 1024 rows: 4.0 ms of G against 4.9 ms of products, which run side by side; 7 ms to be reached.
// d = 85 M, 64 rows at a time: 5.2 ms of G, 8.2 ms of sums, 6.5 ms of products; 16 ms to be reached.
// Beyond B = 56 a block is cut into squares of 32 x 32 sums; G then comes from L2 B / 64 times, at about half the rate.
//
// A block belongs to one warp (or a square of it does), which keeps its tiles in registers for all rows and adds them
// to the sums once. Fragments a and b of X^T X are the same: entry (row of G, weight) of lane 4 r + q is (q, r).
#include <algorithm>
#include <utility>

#include "quadric/cuda/woodbury.hpp"
#include "require.hpp"
#include "woodbury/warp.cuh"

namespace quadric::cuda::woodbury {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kStages = 3;  // of rows in shared memory: one in use, two under way
constexpr int kSteps = 2;   // 4 kSteps rows to an instruction: 1, 2 or 4, at 14 registers a step for B = 50
constexpr int kSquare = 32, kPieces = 2 * kWarps;

template <class E>
constexpr int kRows = sizeof(E) == 8 && kSteps < 4 ? 8 : 16;  // of a stage

// Bytes between rows in shared memory: a fragment's 4 rows x 8 entries then lie in different banks.
__host__ __device__ constexpr int row_pitch(int bytes) { return (bytes + 31) / 64 * 64 + 32; }

struct Rows {
  const char* data;
  std::int64_t rows, row_bytes, bytes;  // bytes: of the columns of one row

  // Rows begin anywhere, but copies of 16 bytes do not: they come with the bytes before them, which the same
  // allocation holds.
  __device__ int shift(std::int64_t row, std::int64_t begin) const {
    return static_cast<int>((reinterpret_cast<std::uintptr_t>(data) + row * row_bytes + begin) & 15);
  }

  // Copy q of 16 bytes of a row from byte `begin` on; what lies beyond the last row or column becomes zero.
  __device__ void copy(std::int64_t row, std::int64_t begin, int q, char* to) const {
    const int late = shift(row, begin);
    const std::int64_t at = begin - late + 16 * q;
    const std::int64_t left = row < rows ? bytes - at : 0;
    const int valid = left < 0 ? 0 : left > 16 ? 16 : static_cast<int>(left);
    copy_async(to + 16 * q, data + row * row_bytes + at, valid);
  }
};

// f(0), f(1), ... with compile-time arguments, as registers want them.
template <class F, int... I>
__device__ __forceinline__ void each(std::integer_sequence<int, I...>, const F& f) {
  (f(std::integral_constant<int, I>{}), ...);
}

// The tiles (i, j), j <= i < G, in pairs of one column. A tile of an odd column moves to the other side of the
// diagonal, into the next odd column, so that at most one tile stays alone (second = -1).
template <int G>
struct Pairs {
  int count = 0;
  int first[G * G] = {}, second[G * G] = {}, column[G * G] = {};

  constexpr Pairs() {
    int rows[G][G + 1] = {}, heights[G] = {};
    int odd = -1;
    for (int j = 0; j < G; ++j) {
      for (int i = j; i < G; ++i) rows[j][heights[j]++] = i;
      if ((G - j) % 2 == 0) continue;
      if (odd < 0) {
        odd = j;
        continue;
      }
      int kept = 0;
      for (int t = 0; t < heights[odd]; ++t)
        if (rows[odd][t] != j) rows[odd][kept++] = rows[odd][t];
      heights[odd] = kept;
      rows[j][heights[j]++] = odd;
      odd = -1;
    }
    for (int j = 0; j < G; ++j) {
      for (int t = 0; t < heights[j]; t += 2, ++count) {
        first[count] = rows[j][t];
        second[count] = t + 1 < heights[j] ? rows[j][t + 1] : -1;
        column[count] = j;
      }
    }
  }
};
template <int G>
constexpr Pairs<G> kPairs{};

// Adds pairs of doubles to memory: at(i, to, value) says where and what for i < count, or false. Many reads under way
// at a time.
template <class At>
__device__ __forceinline__ void add_pairs(int count, bool aligned, const At& at) {
  constexpr int kBatch = 8;
  for (int base = threadIdx.x; base < count; base += kThreads * kBatch) {
    double* to[kBatch];
    double2 value[kBatch], old[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int i = base + k * kThreads;
      to[k] = nullptr;
      if (i >= count || !at(i, to[k], value[k])) to[k] = nullptr;
      if (to[k] != nullptr) old[k] = aligned ? *reinterpret_cast<double2*>(to[k]) : double2{to[k][0], to[k][1]};
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (to[k] == nullptr) continue;
      const double2 sum{old[k].x + value[k].x, old[k].y + value[k].y};
      if (aligned) {
        *reinterpret_cast<double2*>(to[k]) = sum;
      } else {
        to[k][0] = sum.x;
        to[k][1] = sum.y;
      }
    }
  }
}

// The stages of a block of threads: fetch(stage, first row, where) starts the copies, use(first row, where) computes.
template <int Rows, class Fetch, class Use>
__device__ __forceinline__ void pass(std::int64_t rows, int stage_bytes, const Fetch& fetch, const Use& use) {
  const std::int64_t stages = (rows + Rows - 1) / Rows;
  char* const memory = dynamic_shared();
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < stages) fetch(static_cast<std::int64_t>(s) * Rows, memory + s * stage_bytes);
    commit_copies();
  }
  for (std::int64_t s = 0; s < stages; ++s) {
    wait_copies<kStages - 2>();
    __syncthreads();  // all have the stage, and nobody reads the one before
    const std::int64_t next = s + kStages - 1;
    if (next < stages) fetch(next * Rows, memory + next % kStages * stage_bytes);
    commit_copies();
    use(s * Rows, memory + s % kStages * stage_bytes);
  }
  wait_copies<0>();
  __syncthreads();
}

// Doubles between the triangles of two blocks in shared memory: 4 mod 16, for reads across blocks.
__host__ __device__ constexpr int triangle_pitch(int entries) { return (entries + 11) / 16 * 16 + 4; }

// B <= 8 G; a warp has C blocks.
template <class E, int G, int C>
__global__ void __launch_bounds__(kThreads, (G == 4 || G == 7 ? 3 : 4) - (kSteps == 4))
    block_gram_kernel(Rows g, int B, std::int64_t blocks, int pitch, double* sums) {
  constexpr int kBlocks = kWarps * C, kSize = static_cast<int>(sizeof(E));
  constexpr auto kAllPairs = std::make_integer_sequence<int, kPairs<G>.count>{};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, q = lane % 4;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kBlocks;
  const std::int64_t begin = first * B * kSize;
  const int width = kBlocks * B * kSize;
  double sum[C][kPairs<G>.count][2][2] = {};

  const auto fetch = [&](std::int64_t row, char* to) {
    for (int i = warp; i < kRows<E>; i += kWarps) {
      const int copies = (g.shift(row + i, begin) + width + 15) / 16;
      for (int c = lane; c < copies; c += 32) g.copy(row + i, begin, c, to + i * pitch);
    }
  };
  const auto use = [&](std::int64_t row, const char* from) {
    for (int k = 0; k < kRows<E> && row + k < g.rows; k += 4 * kSteps) {
      const E* x[kSteps];
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const int i = k + 4 * s + q;
        x[s] = reinterpret_cast<const E*>(from + i * pitch + g.shift(row + i, begin)) + warp * C * B + r;
      }
#pragma unroll
      for (int c = 0; c < C; ++c) {
        double fragment[G][kSteps];
#pragma unroll
        for (int s = 0; s < kSteps; ++s)
#pragma unroll
          for (int i = 0; i < G; ++i) fragment[i][s] = widen(x[s][c * B + 8 * i]);
        each(kAllPairs, [&](auto pair) {
          constexpr int s = pair(), i = kPairs<G>.first[s], ii = kPairs<G>.second[s], j = kPairs<G>.column[s];
          if constexpr (ii >= 0) {
            mma(sum[c][s][0], sum[c][s][1], fragment[i], fragment[ii], fragment[j]);
          } else {
#pragma unroll
            for (int t = 0; t < kSteps; ++t) mma(sum[c][s][0], fragment[i][t], fragment[j][t]);
          }
        });
      }
    }
  };
  pass<kRows<E>>(g.rows, kRows<E> * pitch, fetch, use);

  // Through shared memory, one packed triangle after another, into sectors of the interleaved layout.
  const int entries = B * (B + 1) / 2, stride = triangle_pitch(entries);
  double* const triangles = reinterpret_cast<double*>(dynamic_shared());
#pragma unroll
  for (int c = 0; c < C; ++c) {
    double* const own = triangles + (warp * C + c) * stride;
    each(kAllPairs, [&](auto pair) {
      constexpr int s = pair();
      each(std::make_integer_sequence<int, kPairs<G>.second[s] >= 0 ? 2 : 1>{}, [&](auto which) {
        constexpr int row = which() == 0 ? kPairs<G>.first[s] : kPairs<G>.second[s], column = kPairs<G>.column[s];
        for (int t = 0; t < 2; ++t) {
          const int i = 8 * row + r, j = 8 * column + 2 * q + t;
          const int high = row < column ? j : i, low = row < column ? i : j;
          if (low <= high && high < B) own[high * (high + 1) / 2 + low] = sum[c][s][which()][t];
        }
      });
    });
  }
  __syncthreads();
  constexpr int kGroup = C == 1 ? 4 : 8;  // blocks whose sums lie side by side
  const bool aligned = (reinterpret_cast<std::uintptr_t>(sums) & 15) == 0;
  for (int part = 0; part < kBlocks && first + part < blocks; part += kGroup) {
    const std::int64_t block = first + part;
    double* const chunk = sums + block / kLanes * entries * kLanes + block % kLanes;
    add_pairs(entries * (kGroup / 2), aligned, [&](int index, double*& to, double2& value) {
      const int e = index / (kGroup / 2), lanes = index % (kGroup / 2) * 2;
      to = chunk + static_cast<std::int64_t>(e) * kLanes + lanes;
      const double* const from = triangles + (part + lanes) * stride + e;
      value = {from[0], from[stride]};
      return true;
    });
  }
}

template <class E>
constexpr int kPiece = (kSquare * static_cast<int>(sizeof(E)) + 30) / 16;  // copies
template <class E>
constexpr int kSquarePitch = row_pitch(kPieces * kPiece<E> * 16);

// Square (I, J) of four blocks: rows of entries 32 I + 0 ... 31, columns 32 J + 0 ... 31. Pieces 2 w and 2 w + 1 of a
// row in shared memory are the two of warp w.
template <class E>
__global__ void __launch_bounds__(kThreads, 3) square_gram_kernel(Rows g, int B, std::int64_t blocks, double* sums) {
  constexpr int kGroups = kSquare / 8, kPitch = kSquarePitch<E>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, q = lane % 4;
  const int side = (B + kSquare - 1) / kSquare, squares = side * (side + 1) / 2;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x / squares) * kWarps;
  int I = 0, J = static_cast<int>(blockIdx.x % squares);
  while (J > I) J -= ++I;
  const auto begin = [&](int piece) {
    return ((first + piece / 2) * B + kSquare * (piece % 2 == 0 ? I : J)) * static_cast<std::int64_t>(sizeof(E));
  };
  double sum[kGroups][kGroups][2] = {};

  const auto fetch = [&](std::int64_t row, char* to) {
    for (int c = threadIdx.x; c < kRows<E> * kPieces * kPiece<E>; c += kThreads) {
      const int i = c / (kPieces * kPiece<E>), piece = c / kPiece<E> % kPieces;
      g.copy(row + i, begin(piece), c % kPiece<E>, to + i * kPitch + piece * kPiece<E> * 16);
    }
  };
  const auto use = [&](std::int64_t row, const char* from) {
    for (int k = 0; k < kRows<E> && row + k < g.rows; k += 4 * kSteps) {
      double a[kGroups][kSteps], b[kGroups][kSteps];
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
#pragma unroll
        for (int which = 0; which < 2; ++which) {
          const int piece = 2 * warp + which, i = k + 4 * s + q;
          const char* const entries = from + i * kPitch + piece * kPiece<E> * 16;
          const E* const x = reinterpret_cast<const E*>(entries + g.shift(row + i, begin(piece))) + r;
#pragma unroll
          for (int j = 0; j < kGroups; ++j) (which == 0 ? a : b)[j][s] = widen(x[8 * j]);
        }
      }
#pragma unroll
      for (int i = 0; i < kGroups; i += 2)
#pragma unroll
        for (int j = 0; j < kGroups; ++j) mma(sum[i][j], sum[i + 1][j], a[i], a[i + 1], b[j]);
    }
  };
  pass<kRows<E>>(g.rows, kRows<E> * kPitch, fetch, use);

  constexpr int kStride = triangle_pitch(kSquare * kSquare);
  double* const squares_of = reinterpret_cast<double*>(dynamic_shared());
#pragma unroll
  for (int i = 0; i < kGroups; ++i)
#pragma unroll
    for (int j = 0; j < kGroups; ++j)
#pragma unroll
      for (int t = 0; t < 2; ++t) squares_of[warp * kStride + (8 * i + r) * kSquare + 8 * j + 2 * q + t] = sum[i][j][t];
  __syncthreads();
  const std::int64_t entries = static_cast<std::int64_t>(B) * (B + 1) / 2;
  double* const chunk = sums + first / kLanes * entries * kLanes + first % kLanes;
  const bool aligned = (reinterpret_cast<std::uintptr_t>(sums) & 15) == 0;
  add_pairs(2 * kSquare * kSquare, aligned, [&](int index, double*& to, double2& value) {
    const int lanes = index % 2 * 2, a = index / 2 / kSquare, b = index / 2 % kSquare;
    const int i = kSquare * I + a, j = kSquare * J + b;
    to = chunk + (static_cast<std::int64_t>(i) * (i + 1) / 2 + j) * kLanes + lanes;
    const double* const from = squares_of + lanes * kStride + a * kSquare + b;
    value = {from[0], from[kStride]};
    return i < B && j <= i;
  });
}

template <class E, int G, int C>
void run(const Execution& exec, const Rows& g, int B, std::int64_t blocks, double* sums) {
  constexpr int kBlocks = kWarps * C;
  // With the entries that tiles have beyond the last block.
  const int pitch = row_pitch((kBlocks * B + 8 * G - B) * static_cast<int>(sizeof(E)) + 16);
  const int stages = kStages * kRows<E> * pitch;
  const int triangles = kBlocks * triangle_pitch(B * (B + 1) / 2) * static_cast<int>(sizeof(double));
  launch(block_gram_kernel<E, G, C>, (blocks + kBlocks - 1) / kBlocks, kThreads,
         static_cast<std::size_t>(std::max(stages, triangles)), stream(exec), g, B, blocks, pitch, sums);
}

template <class E>
void run_squares(const Execution& exec, const Rows& g, int B, std::int64_t blocks, double* sums) {
  const int side = (B + kSquare - 1) / kSquare, squares = side * (side + 1) / 2;
  const int stages = kStages * kRows<E> * kSquarePitch<E>;
  const int sums_bytes = kWarps * triangle_pitch(kSquare * kSquare) * static_cast<int>(sizeof(double));
  launch(square_gram_kernel<E>, (blocks + kWarps - 1) / kWarps * squares, kThreads,
         static_cast<std::size_t>(std::max(stages, sums_bytes)), stream(exec), g, B, blocks, sums);
}

template <class E>
void run_any(const Execution& exec, const StoredRows& G, std::int64_t block_size, double* sums) {
  const auto size = static_cast<std::int64_t>(sizeof(E));
  const Rows g{static_cast<const char*>(G.data), G.rows, G.row_stride * size, G.cols * size};
  const int B = static_cast<int>(block_size);
  const std::int64_t blocks = (G.cols + B - 1) / B;
  switch ((B + 7) / 8) {
    case 1:
      return run<E, 1, 8>(exec, g, B, blocks, sums);
    case 2:
      return run<E, 2, 4>(exec, g, B, blocks, sums);
    case 3:
      return run<E, 3, 2>(exec, g, B, blocks, sums);
    case 4:
      return run<E, 4, 2>(exec, g, B, blocks, sums);
    case 5:
      return run<E, 5, 1>(exec, g, B, blocks, sums);
    case 6:
      return run<E, 6, 1>(exec, g, B, blocks, sums);
    case 7:
      return run<E, 7, 1>(exec, g, B, blocks, sums);
    default:
      return run_squares<E>(exec, g, B, blocks, sums);
  }
}

}  // namespace

void block_gram(const Execution& exec, const StoredRows& G, std::int64_t block_size, double* sums) {
  QUADRIC_REQUIRE(block_size >= 1 && block_size <= 256, "block_size must lie between 1 and 256");
  if (G.rows == 0 || G.cols == 0) return;
  switch (G.storage) {
    case Storage::float16:
      return run_any<__half>(exec, G, block_size, sums);
    case Storage::bfloat16:
      return run_any<__nv_bfloat16>(exec, G, block_size, sums);
    case Storage::float32:
      return run_any<float>(exec, G, block_size, sums);
    case Storage::float64:
      return run_any<double>(exec, G, block_size, sums);
  }
}

}  // namespace quadric::cuda::woodbury
