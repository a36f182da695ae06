// A pass from float32 points of more than 8 coordinates: products x . y by the tensor cores, evaluated twice, for the
// sums of the rows and then for those of the columns; both by the same instructions, so that both see the same e.
//
// Each coordinate is the sum of two float16, 22 bits of it (points.cu); of the four products the one of both lower
// parts is left out. Sums are float32. So t has the error that float32 coordinates would give it.
//
// A block has 128 own points and walks over the other side in tiles of 128, 64 coordinates at a time, copied ahead into
// the half of shared memory that is not in use, and has the products in registers. Two blocks fit on a multiprocessor
// (d <= 64), so that one multiplies while the other raises to powers. The blocks of a cluster share the own points in
// the kernel of the rows, where the whole sums must be known to go on; that of the columns writes slots.
//
// Code for sm_90a multiplies from shared memory, four warps together (64 x 128 products); other code loads the same
// shared memory into registers, a warp for 32 x 64 products.
//
// Floor: 2 x 3 products, 12 n m d operations at 900 TFLOP/s (sm_90a; 600 else): 2.1 ms (3.2) for n = m = 50 000, d =
// 64, 0.09 ms (0.13) for 10 000; the exponentials run beside them (1.4 ms and 55 us).
#include "require.hpp"
#include "transport/async.cuh"
#include "transport/points.cuh"

namespace quadric::cuda::transport {
namespace {

constexpr int kThreads = 256, kTile = static_cast<int>(kTensorTile), kChunk = static_cast<int>(kHalfDepth);
constexpr int kStride = kChunk;         // float16 between rows in shared memory
constexpr int kPart = kTile * kStride;  // float16 of one part of a chunk
constexpr int kMostBlocks = 8;          // of a cluster
// A warp has tiles of 16 x 8 products, a block kWarpRows x kWarpColumns warps.
#ifdef QUADRIC_WIDE_PRODUCTS
constexpr int kRowTiles = 1, kColumnTiles = 16, kWarpRows = 8, kWarpColumns = 1;
#else
constexpr int kRowTiles = 2, kColumnTiles = 8, kWarpRows = 4, kWarpColumns = 2;
#endif

// Beside the chunks in shared memory.
struct alignas(1024) Room {
  float first[2][kTile], second[2][kTile];  // of the other points of a tile: G and weight, or shift and u
  float parts[kMostBlocks * 2][kTile];      // row sums by blocks and warps; of the columns kernel by warps
  float own[kTile];                         // shifts of the own rows, or G of the own columns
};

constexpr std::size_t shared_bytes(bool resident) {
  return sizeof(Room) + sizeof(std::uint16_t) * 2 * kPart * (resident ? 3 : 4);
}

// One problem as a kernel sees it.
struct Sides {
  const std::uint16_t *own[2], *other[2];
  std::int64_t own_first;       // own point that the block begins with
  std::int64_t begin, end;      // tiles of the other side
  const float *first, *second;  // of all other points
  std::int64_t limit;           // other points beyond have first = -infinity, second = 0
  int chunks, d;
};

struct Tensor {
  Side<float> x, y;
  std::int64_t depth;
  const int* largest;
  double scale;  // of y
  float *u, *shift;
  std::int64_t first_problem;
};

// Where coordinate k of a row is in shared memory: pieces of 8 change places with the row, against bank conflicts.
__device__ __forceinline__ int swizzled(int row, int k) { return row * kStride + (k ^ row % 8 * 8); }

// Copies 128 points' coordinates from 64 chunk on, both parts.
__device__ __forceinline__ void fetch_chunk(std::uint16_t* to, const std::uint16_t* const (&from)[2],
                                            std::int64_t first, int chunk, int chunks) {
  constexpr int kPieces = kChunk / 8,
                kAtOnce = kThreads / kPieces;  // 16 bytes each; rows that the block copies at once
  const int row = static_cast<int>(threadIdx.x) / kPieces, piece = static_cast<int>(threadIdx.x) % kPieces * 8;
  const std::int64_t depth = static_cast<std::int64_t>(chunks) * kChunk;
  to += swizzled(row, piece);
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    const std::uint16_t* source = from[part] + (first + row) * depth + chunk * kChunk + piece;
#pragma unroll
    for (int i = 0; i < kTile / kAtOnce; ++i, source += kAtOnce * depth)
      copy_async<16>(to + part * kPart + i * kAtOnce * kStride, source);
  }
}

__device__ __forceinline__ void fetch_values(Room& room, int half, const Sides& sides, std::int64_t tile) {
  const int j = static_cast<int>(threadIdx.x) % kTile;
  const std::int64_t at = tile * kTile + j;
  const bool second = static_cast<int>(threadIdx.x) >= kTile;
  float* const to = second ? &room.second[half][j] : &room.first[half][j];
  if (at < sides.limit)
    copy_async<4>(to, (second ? sides.second : sides.first) + at);
  else
    *to = second ? 0 : -INFINITY;
}

#ifdef QUADRIC_WIDE_PRODUCTS
// sums += x y^T over the first `depth` coordinates of a chunk.
__device__ __forceinline__ void multiply_step(std::uint64_t x, std::uint64_t y,
                                              float (&sums)[kRowTiles][kColumnTiles][4]) {
  constexpr int kLower = kPart * 2 >> 4;
  multiply_wide(sums[0], x + kLower, y);
  multiply_wide(sums[0], x, y + kLower);
  multiply_wide(sums[0], x, y);
}
__device__ __forceinline__ void multiply_chunk(const std::uint16_t* x, const std::uint16_t* y, int depth,
                                               float (&sums)[kRowTiles][kColumnTiles][4]) {
  const std::uint64_t rows = swizzled_rows(x + threadIdx.x / 128 * 64 * kStride), columns = swizzled_rows(y);
  if (depth >= kChunk) {
    begin_products();
#pragma unroll
    for (int k = 0; k < kChunk / 16; ++k) multiply_step(rows + 2 * k, columns + 2 * k, sums);
    end_products();
  } else {
#pragma unroll 1
    for (int k = 0; 16 * k < depth; ++k) {
      begin_products();
      multiply_step(rows + 2 * k, columns + 2 * k, sums);
      end_products();
    }
  }
}
#else
// sums += x y^T over 16 coordinates; x and y: this lane's addresses for load_matrices.
__device__ __forceinline__ void multiply_step(const std::uint16_t* x, const std::uint16_t* y,
                                              float (&sums)[kRowTiles][kColumnTiles][4]) {
  unsigned a[2][kRowTiles][4];
#pragma unroll
  for (int part = 0; part < 2; ++part)
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) load_matrices(a[part][r], x + part * kPart + 16 * r * kStride);
#pragma unroll
  for (int c = 0; c < kColumnTiles; c += 2) {
    unsigned b[2][4];
#pragma unroll
    for (int part = 0; part < 2; ++part) load_matrices(b[part], y + part * kPart + 8 * c * kStride);
#pragma unroll
    for (int which = 0; which < 3; ++which)  // lower x upper, upper x lower, upper x upper
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int l = 0; l < 2; ++l)
          multiply(sums[r][c + l], a[which == 0][r], b[which == 1][2 * l], b[which == 1][2 * l + 1]);
  }
}

// The same over the first `depth` coordinates of a chunk.
__device__ __forceinline__ void multiply_chunk(const std::uint16_t* x, const std::uint16_t* y, int depth,
                                               float (&sums)[kRowTiles][kColumnTiles][4]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  x += (warp % kWarpRows * 16 * kRowTiles + lane % 16) * kStride;
  y += (warp / kWarpRows * 8 * kColumnTiles + lane / 16 * 8 + lane % 8) * kStride;
  const int x_piece = swizzled(lane % 8, lane / 16 * 8) % kStride,
            y_piece = swizzled(lane % 8, lane / 8 % 2 * 8) % kStride;
  if (depth >= kChunk) {
#pragma unroll
    for (int k = 0; k < kChunk; k += 16) multiply_step(x + (x_piece ^ k), y + (y_piece ^ k), sums);
  } else {
#pragma unroll 1
    for (int k = 0; k < depth; k += 16) multiply_step(x + (x_piece ^ k), y + (y_piece ^ k), sums);
  }
}

#endif

// body(sums, half) for each tile of the other side, with its values in room.first[half] and room.second[half].
template <bool rows, class Body>
__device__ __forceinline__ void for_tiles(char* shared, const Sides& sides, const Body& body) {
  Room& room = *reinterpret_cast<Room*>(shared);
  auto* const chunks = reinterpret_cast<std::uint16_t*>(shared + sizeof(Room));
  const bool resident = sides.chunks == 1;
  const auto other = [&](int half) { return chunks + 2 * kPart * half; };
  const auto own = [&](int half) { return chunks + 2 * kPart * (resident ? 2 : 2 + half); };
  const auto fetch = [&](std::int64_t tile, int chunk, int half, int tile_half, bool begins) {
    fetch_chunk(other(half), sides.other, tile * kTile, chunk, sides.chunks);
    if (begins || !resident) fetch_chunk(own(half), sides.own, sides.own_first, chunk, sides.chunks);
    if (chunk == 0) fetch_values(room, tile_half, sides, tile);
    commit_copies();
  };
  __syncthreads();  // what was in shared memory has been read
  if (sides.begin < sides.end) fetch(sides.begin, 0, 0, 0, true);
  int half = 0, tile_half = 0;
  for (std::int64_t tile = sides.begin; tile < sides.end; ++tile, tile_half ^= 1) {
    float sums[kRowTiles][kColumnTiles][4] = {};
    for (int chunk = 0; chunk < sides.chunks; ++chunk, half ^= 1) {
      wait_copies<0>();
#ifdef QUADRIC_WIDE_PRODUCTS
      publish_for_products();
#endif
      __syncthreads();  // this chunk is there, and the one before has been read
      if (chunk + 1 < sides.chunks)
        fetch(tile, chunk + 1, half ^ 1, tile_half, false);
      else if (tile + 1 < sides.end)
        fetch(tile + 1, 0, half ^ 1, tile_half ^ 1, false);
      multiply_chunk(rows ? own(half) : other(half), rows ? other(half) : own(half), sides.d - chunk * kChunk, sums);
    }
    body(sums, tile_half);
  }
}

// This thread's rows of a warp's products are 16 r + 8 h + lane / 4, its columns 8 c + 2 (lane % 4) + l; the product is
// sums[r][c][2 h + l].
__device__ __forceinline__ int row_of(int r, int h) {
  return threadIdx.x / 32 % kWarpRows * 16 * kRowTiles + 16 * r + 8 * h + threadIdx.x % 32 / 4;
}
__device__ __forceinline__ int column_of(int c) {
  return threadIdx.x / 32 / kWarpRows * 8 * kColumnTiles + 8 * c + threadIdx.x % 4 * 2;
}

__device__ __forceinline__ float product_scale(const Tensor& tensor, std::int64_t p) {
  const int both = half_exponent(tensor.largest[2 * p], 1) + half_exponent(tensor.largest[2 * p + 1], tensor.scale);
  return ldexpf(1, -both);
}

// The sum of e weight, or the largest t, of each of the block's rows, in room.parts of all blocks of the cluster.
template <bool largest>
__device__ __forceinline__ void scan_rows(char* shared, const Sides& sides, float scale) {
  Room& room = *reinterpret_cast<Room*>(shared);
  float shift[kRowTiles][2];
  double value[kRowTiles][2];
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      value[r][h] = largest ? -INFINITY : 0;
      shift[r][h] = room.own[row_of(r, h)];
    }
  for_tiles<true>(shared, sides, [&](const float (&sums)[kRowTiles][kColumnTiles][4], int half) {
    float here[kRowTiles][2];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) here[r][0] = here[r][1] = largest ? -INFINITY : 0;
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
      const float2 G = *reinterpret_cast<const float2*>(&room.first[half][column_of(c)]);
      const float2 weight = *reinterpret_cast<const float2*>(&room.second[half][column_of(c)]);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float t0 = fmaf(sums[r][c][2 * h], scale, G.x), t1 = fmaf(sums[r][c][2 * h + 1], scale, G.y);
          if constexpr (largest) {
            here[r][h] = fmaxf(here[r][h], fmaxf(t0, t1));
          } else {
            here[r][h] = fmaf(power(t0, shift[r][h]), weight.x, here[r][h]);
            here[r][h] = fmaf(power(t1, shift[r][h]), weight.y, here[r][h]);
          }
        }
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const auto wide = static_cast<double>(here[r][h]);
        value[r][h] = largest ? fmax(value[r][h], wide) : value[r][h] + wide;
      }
  });
  const int rank = static_cast<int>(cluster_rank()), blocks = static_cast<int>(cluster_size());
  const int part = rank * kWarpColumns + static_cast<int>(threadIdx.x) / 32 / kWarpRows;
  sync_cluster();  // the parts have been read
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      auto all = static_cast<float>(value[r][h]);
#pragma unroll
      for (int lanes = 1; lanes < 4; lanes *= 2) {
        const float there = __shfl_xor_sync(~0U, all, lanes);
        all = largest ? fmaxf(all, there) : all + there;
      }
      for (int to = threadIdx.x % 4; to < blocks; to += 4)
        put(&room.parts[part][row_of(r, h)], all, static_cast<unsigned>(to));
    }
  sync_cluster();
}

template <bool largest>
__device__ __forceinline__ float join_parts(const Room& room, int row) {
  float value = room.parts[0][row];
  const int count = static_cast<int>(cluster_size()) * kWarpColumns;
  for (int part = 1; part < count; ++part)
    value = largest ? fmaxf(value, room.parts[part][row]) : value + room.parts[part][row];
  return value;
}

__global__ void __launch_bounds__(kThreads, 2)
    row_sums(const __grid_constant__ Pass<float> pass, const __grid_constant__ Tensor tensor) {
  extern __shared__ __align__(1024) char shared[];
  Room& room = *reinterpret_cast<Room*>(shared);
  const std::int64_t p = tensor.first_problem + blockIdx.y, n = pass.cost.n, m = pass.cost.m;
  const Flags flags = pass.flags[p];
  if (!flags.active) return;  // the whole cluster
  const bool rebase = flags.rebase;
  const auto rank = static_cast<std::int64_t>(cluster_rank()), blocks = static_cast<std::int64_t>(cluster_size());
  const std::int64_t tiles = tensor.y.padded_count / kTile, values = (p * 4 + flags.slot) * pass.width;
  Sides sides;
  for (int part = 0; part < 2; ++part) {
    sides.own[part] = tensor.x.parts[part] + p * tensor.x.padded_count * tensor.depth;
    sides.other[part] = tensor.y.parts[part] + p * tensor.y.padded_count * tensor.depth;
  }
  sides.own_first = blockIdx.x / blocks * kTile;
  sides.begin = tiles * rank / blocks;
  sides.end = tiles * (rank + 1) / blocks;
  sides.first = pass.G + values;
  sides.second = pass.weight + values;
  sides.limit = m;
  sides.chunks = static_cast<int>(tensor.depth / kChunk);
  sides.d = static_cast<int>(pass.cost.d);
  const float scale = product_scale(tensor, p);

  const int row = static_cast<int>(threadIdx.x);  // that this thread decides about
  const std::int64_t i = sides.own_first + row;
  const bool mine = row < kTile, real = mine && i < n;
  if (mine) room.own[row] = real ? pass.shift[p * n + i] : 0;
  __syncthreads();
  float sum = 0;
  bool look = rebase, wanted = mine;  // for a new shift, of any row and of this one
  for (bool tried = false;; tried = true) {
    if (look) {
      scan_rows<true>(shared, sides, scale);
      if (wanted) room.own[row] = -rintf(join_parts<true>(room, row));
      __syncthreads();
    }
    scan_rows<false>(shared, sides, scale);
    if (mine) sum = join_parts<false>(room, row);
    wanted = !tried && !rebase && real && outside<float>(static_cast<double>(sum));
    look = __syncthreads_or(static_cast<int>(wanted)) != 0;
    if (!look) break;
  }
  if (mine && rank == 0) {
    const std::int64_t at = p * tensor.x.padded_count + i;
    const float shift = room.own[row];
    tensor.u[at] = real ? relax_row(pass, p, i, static_cast<double>(sum), shift, rebase) : 0;
    tensor.shift[at] = real ? shift : -INFINITY;
  }
  sync_cluster();  // no block goes while others write to it
}

__global__ void __launch_bounds__(kThreads, 2)
    column_sums(const __grid_constant__ Pass<float> pass, const __grid_constant__ Tensor tensor) {
  extern __shared__ __align__(1024) char shared[];
  Room& room = *reinterpret_cast<Room*>(shared);
  const std::int64_t p = tensor.first_problem + blockIdx.y, slot = blockIdx.x % pass.slots;
  const Flags flags = pass.flags[p];
  if (!flags.active) return;
  const std::int64_t tiles = tensor.x.padded_count / kTile;
  Sides sides;
  for (int part = 0; part < 2; ++part) {
    sides.own[part] = tensor.y.parts[part] + p * tensor.y.padded_count * tensor.depth;
    sides.other[part] = tensor.x.parts[part] + p * tensor.x.padded_count * tensor.depth;
  }
  sides.own_first = blockIdx.x / pass.slots * kTile;
  sides.begin = tiles * slot / pass.slots;
  sides.end = tiles * (slot + 1) / pass.slots;
  sides.first = tensor.shift + p * tensor.x.padded_count;
  sides.second = tensor.u + p * tensor.x.padded_count;
  sides.limit = tensor.x.padded_count;
  sides.chunks = static_cast<int>(tensor.depth / kChunk);
  sides.d = static_cast<int>(pass.cost.d);
  const float scale = product_scale(tensor, p);
  const float* const all_G = pass.G + (p * 4 + flags.slot) * pass.width;

  const int column = static_cast<int>(threadIdx.x);
  const std::int64_t j = sides.own_first + column;
  if (column < kTile) room.own[column] = j < pass.cost.m ? all_G[j] : -INFINITY;

  float value[kColumnTiles][2] = {};
  for_tiles<false>(shared, sides, [&](const float (&sums)[kRowTiles][kColumnTiles][4], int half) {
    float shift[kRowTiles][2], u[kRowTiles][2];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        shift[r][h] = room.first[half][row_of(r, h)];
        u[r][h] = room.second[half][row_of(r, h)];
      }
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
      const float2 G = *reinterpret_cast<const float2*>(&room.own[column_of(c)]);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float t0 = fmaf(sums[r][c][2 * h], scale, G.x), t1 = fmaf(sums[r][c][2 * h + 1], scale, G.y);
          value[c][0] = fmaf(power(t0, shift[r][h]), u[r][h], value[c][0]);
          value[c][1] = fmaf(power(t1, shift[r][h]), u[r][h], value[c][1]);
        }
    }
  });
#pragma unroll
  for (int c = 0; c < kColumnTiles; ++c)
#pragma unroll
    for (int l = 0; l < 2; ++l) {
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) value[c][l] += __shfl_xor_sync(~0U, value[c][l], lanes);
      if (threadIdx.x % 32 < 4) room.parts[threadIdx.x / 32 % kWarpRows][column_of(c) + l] = value[c][l];
    }
  __syncthreads();
  if (column < kTile && j < pass.cost.m) {
    float sum = 0;
    for (int part = 0; part < kWarpRows; ++part) sum += room.parts[part][column];
    pass.partial[(p * pass.slots + slot) * pass.width + j] = sum;
  }
}

// Into how many parts the other side is cut: the fewest, up to 8, that fill the device (132 multiprocessors with two
// blocks each, whatever the device is) nearly as well as the best number does.
int parts_for(std::int64_t problems, std::int64_t own_tiles, std::int64_t other_tiles, bool clusters) {
  const auto share = [&](int parts) {
    const std::int64_t blocks = problems * own_tiles * parts;
    const std::int64_t at_once = 2 * (clusters && parts > 2 ? 120 : 132);  // larger clusters leave gaps
    const std::int64_t rounds = (blocks + at_once - 1) / at_once;
    return static_cast<double>(blocks) / static_cast<double>(rounds * at_once);
  };
  double best = 0;
  for (int parts = 1; parts <= kMostBlocks && parts <= other_tiles; parts *= 2) best = std::max(best, share(parts));
  int parts = 1;
  while (share(parts) < 0.95 * best) parts *= 2;
  return parts;
}

std::int64_t tiles_of(std::int64_t count) { return (count + kTile - 1) / kTile; }

template <class Kernel>
void launch(const Execution& exec, Kernel kernel, const Pass<float>& pass, Tensor& tensor, std::int64_t blocks,
            int cluster_blocks, std::size_t shared) {
  QUADRIC_REQUIRE(blocks < (std::int64_t{1} << 31), "x or y has too many points");
  QUADRIC_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared)));
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(cluster_blocks);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared;
  config.stream = stream(exec);
  config.attrs = &cluster;
  config.numAttrs = 1;
  constexpr std::int64_t kMostProblems = 65535;
  for (std::int64_t first = 0; first < pass.cost.problems; first += kMostProblems) {
    tensor.first_problem = first;
    config.gridDim =
        dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(std::min(pass.cost.problems - first, kMostProblems)));
    QUADRIC_CUDA(cudaLaunchKernelEx(&config, kernel, pass, tensor));
  }
}

}  // namespace

std::int64_t points_tensor_slots(const Batch<float>& cost) {
  return parts_for(cost.problems, tiles_of(cost.m), tiles_of(cost.n), false);
}

void points_tensor(const Execution& exec, const Points<float>& points, const Pass<float>& pass) {
  Tensor tensor = {points.x, points.y, points.half_depth, points.largest, 0, points.u, points.shift, 0};
  tensor.scale = pass.cost.kind == CostKind::sqeuclidean ? 2 * pass.kappa : pass.kappa;
  const std::size_t shared = shared_bytes(points.half_depth == kChunk);
  const std::int64_t row_tiles = tiles_of(pass.cost.n), column_tiles = tiles_of(pass.cost.m);
  const int parts = parts_for(pass.cost.problems, row_tiles, column_tiles, true);
  launch(exec, row_sums, pass, tensor, row_tiles * parts, parts, shared);
  launch(exec, column_sums, pass, tensor, column_tiles * pass.slots, 1, shared);
}

}  // namespace quadric::cuda::transport
