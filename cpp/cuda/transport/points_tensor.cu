// A pass from float32 points of more than 8 coordinates: products x . y by the tensor cores, evaluated twice, for the
// sums of the rows and then for those of the columns; both by the same products in the same order, so that both see the
// same e.
//
// Each coordinate is the sum of two float16, 22 bits of it (points.cu); of the four products the one of both lower
// parts is left out. Sums are float32. So t has the error that float32 coordinates would give it.
//
// A block keeps its own points (256, or 128 longer ones) in registers and walks over the other side in tiles of 64,
// which a thread of its own copies ahead, a bulk copy each. Groups of four warps have a part of the own points each.
// Above 48 coordinates, two groups start the products of their next tile before they raise those of the last one to
// powers, so that the tensor cores have work waiting meanwhile. Below, where the exponentials weigh more, there are
// four groups, which have less to wait for each; if the products take longer than the exponentials they multiply in
// turn: the next group joins in when the first half of one's products is done. By count, at d = 64, the tensor cores
// read shared memory in half of the cycles that they are busy; the copies and the values of the other points take a
// quarter (with four groups, which have half as many points for each value, two fifths). Points of more than 128
// coordinates come in chunks of 64, those of both sides, for two tiles. The blocks of a cluster share the own points in
// the kernel of the rows, where the whole sums must be known to go on; that of the columns writes slots.
//
// Code for sm_90a multiplies asynchronously, four warps together; other code by warps, from the same registers and the
// same shared memory.
//
// Floor: 2 x 3 products, 12 n m d operations at 900 TFLOP/s (sm_90a; 600 else): 2.1 ms (3.2) for n = m = 50 000, d =
// 64, 0.09 ms (0.13) for 10 000; the exponentials run beside them (1.4 ms and 55 us) and are the floor for d <= 32.
// Measured: 3.1 ms and 0.22 ms; the tensor cores are busy in 74 % of the cycles, at a clock of 1.66 GHz.
#include "require.hpp"
#include "transport/async.cuh"
#include "transport/points.cuh"

namespace quadric::cuda::transport {
namespace {

constexpr int kMostBlocks = 8, kMostParts = 16;  // of a cluster; of the other side in the kernel of the columns
constexpr int kColumnTiles = kPage / 8;          // of 8 columns of products

// How a group does its tiles: one after the other; or the products of the next one during the exponentials of the last;
// or two at once, of points whose chunks, those of both sides, come through shared memory.
enum class Way { single, twofold, streamed };

// How long points are, in steps of 16 coordinates that are in registers at once; how many groups of four warps a block
// has, and how many rows a group, in tiles of 64.
template <int kSteps_, int kGroups_, int kRowTiles_, Way kWay_>
struct Form {
  static constexpr int kSteps = kSteps_, kGroups = kGroups_, kRowTiles = kRowTiles_;
  static constexpr Way kWay = kWay_;
  static constexpr bool kStreamed = kWay == Way::streamed;
  // The first thread of four more warps copies, unless the others want all registers.
  static constexpr bool kCopier = !kStreamed;
  static constexpr int kWorkers = 128 * kGroups, kThreads = kWorkers + (kCopier ? 128 : 0);
  static constexpr int kWidth = kSteps == 1 ? 16 : kSteps == 2 ? 32 : 64, kChunkSteps = kWidth / 16;
  static constexpr int kPart = kPage * kWidth;                                        // float16 of a part of a chunk
  static constexpr int kTile = (kSteps + kChunkSteps - 1) / kChunkSteps * 2 * kPart;  // of a tile of a stage
  static constexpr int kTiles = kStreamed ? 2 : 1;                                    // of a stage
  static constexpr int kOwn = kGroups * 64 * kRowTiles;
  static constexpr int kStages = kStreamed ? 2 : kSteps > 4 ? 6 : 8;
  static constexpr int kStage = kTile * (kTiles + (kStreamed ? kOwn / kPage : 0));
};

// One problem as a block sees it.
struct Sides {
  const std::uint16_t *own, *other;  // the block's first page, and the other side's
  std::int64_t begin, end;           // pages of the other side
  const float *first, *second;       // of all other points
  std::int64_t page;                 // float16 of one
  int chunks;                        // of one
};

// Beside the stages in shared memory.
struct alignas(1024) Room {
  Sides sides;
  std::uint64_t full[8], empty[8];
  alignas(16) float first[8][2 * kPage],
      second[8][2 * kPage];               // of the other points of a stage: G and weight, or shift and u
  float parts[kMostBlocks][kTensorTile];  // row sums by blocks
  float own[kTensorTile];                 // shifts of the own rows, or G of the own columns
};

template <class F>
constexpr std::size_t shared_bytes() {
  return sizeof(Room) + sizeof(std::uint16_t) * F::kStage * F::kStages;
}

struct Tensor {
  Side<float> x, y;
  std::int64_t depth;
  const int* largest;
  double scale;  // of y
  float *u, *shift;
  std::int64_t first_problem;
};

// Where a walk over the other side is among the stages, which go round. A walk begins at the first one and ends its
// last round.
template <class F>
struct Place {
  unsigned stage = 0, round = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == F::kStages) {
      stage = 0;
      ++round;
    }
  }
};
template <class F>
__device__ __forceinline__ std::uint16_t* stage_at(char* shared, unsigned stage) {
  return reinterpret_cast<std::uint16_t*>(shared + sizeof(Room)) + stage * F::kStage;
}

__device__ __forceinline__ void wait_for(std::uint64_t* barrier, unsigned parity) {
  while (!ended(barrier, parity)) {
  }
}

// ---- copies --------------------------------------------------------------------------------------------------------

// Stages that a walk takes.
template <class F>
__device__ __forceinline__ unsigned turns(const Sides& sides) {
  const auto tiles = static_cast<unsigned>(sides.end - sides.begin);
  return F::kStreamed ? (tiles + 1) / 2 * static_cast<unsigned>(sides.chunks) : tiles;
}

// Orders what turn q of a walk needs, which comes into stage `place`, once that is empty. By one thread. The values of
// the other points come with their last chunk.
template <class F>
__device__ __forceinline__ void fetch(char* shared, const Sides& sides, unsigned q, const Place<F>& place) {
  constexpr unsigned kTileBytes = 2 * F::kTile, kValueBytes = sizeof(float) * kPage;
  Room& room = *reinterpret_cast<Room*>(shared);
  const unsigned chunks = F::kStreamed ? static_cast<unsigned>(sides.chunks) : 1, chunk = q % chunks;
  const bool values = chunk + 1 == chunks;
  const std::int64_t tile = sides.begin + static_cast<std::int64_t>(q / chunks) * F::kTiles;
  const std::int64_t offset = static_cast<std::int64_t>(chunk) * F::kTile;  // in a page
  std::uint64_t* const full = &room.full[place.stage];
  wait_for(&room.empty[place.stage], place.round % 2 ^ 1);
  expect_bytes(full, 2 * F::kStage + (values ? 2 * F::kTiles * kValueBytes : 0));
  std::uint16_t* to = stage_at<F>(shared, place.stage);
#pragma unroll
  for (int l = 0; l < F::kTiles; ++l, to += F::kTile) {
    const std::int64_t at = tile + l < sides.end ? tile + l : tile;
    copy_bulk(to, sides.other + at * sides.page + offset, kTileBytes, full);
    if (values) {
      copy_bulk(&room.first[place.stage][l * kPage], sides.first + at * kPage, kValueBytes, full);
      copy_bulk(&room.second[place.stage][l * kPage], sides.second + at * kPage, kValueBytes, full);
    }
  }
  if constexpr (F::kStreamed)
    for (int page = 0; page < F::kOwn / kPage; ++page, to += F::kTile)
      copy_bulk(to, sides.own + page * sides.page + offset, kTileBytes, full);
}

// All of a walk. By the thread that copies.
template <class F>
__device__ __forceinline__ void fetch_all(char* shared, unsigned& round) {
  Room& room = *reinterpret_cast<Room*>(shared);
  const Sides sides = room.sides;
  const unsigned count = turns<F>(sides);
  Place<F> place = {0, round};
  for (unsigned q = 0; q < count; ++q, place.advance()) fetch<F>(shared, sides, q, place);
  for (; place.stage > 0; place.advance()) {
    wait_for(&room.empty[place.stage], place.round % 2 ^ 1);
    arrive(&room.full[place.stage]);
  }
  round = place.round;
}

// ---- products ------------------------------------------------------------------------------------------------------

// This thread's rows of a group's products are 64 r + 8 h + row_of(), its columns 8 c + column_of() + l; the product is
// sums[r][c][2 h + l].
template <class F>
using Products = float[F::kRowTiles][kColumnTiles][4];
// Its part of the group's own points: of tile r, both parts, 16 coordinates each.
template <class F>
using Fragments = unsigned[F::kRowTiles][2][F::kSteps][4];

__device__ __forceinline__ int lane_of() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int group_of() { return static_cast<int>(threadIdx.x) / 128; }
__device__ __forceinline__ int first_row_of() { return static_cast<int>(threadIdx.x) % 128 / 32 * 16; }
__device__ __forceinline__ int row_of() { return first_row_of() + lane_of() / 4; }
__device__ __forceinline__ int column_of() { return lane_of() % 4 * 2; }

// From device memory.
template <class F>
__device__ __forceinline__ void load_own(Fragments<F>& own, const Sides& sides) {
#pragma unroll
  for (int r = 0; r < F::kRowTiles; ++r) {
    const std::uint16_t* const page = sides.own + (group_of() * F::kRowTiles + r) * sides.page;
    int row = row_of();
    // The compiler does not see what that is and computes the places in each walk: kept from one to the next, they
    // would take the registers of the products.
    asm volatile("" : "+r"(row));
#pragma unroll
    for (int part = 0; part < 2; ++part)
#pragma unroll
      for (int step = 0; step < F::kSteps; ++step)
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          const int chunk = step / F::kChunkSteps, k = step % F::kChunkSteps * 16 + q / 2 * 8 + column_of();
          own[r][part][step][q] = *reinterpret_cast<const unsigned*>(page + (2 * chunk + part) * F::kPart +
                                                                     half_place(row + q % 2 * 8, k, F::kWidth));
        }
  }
}
// From a stage, of one chunk.
template <class F>
__device__ __forceinline__ void load_own(Fragments<F>& own, const std::uint16_t* pages) {
  const int row = first_row_of() + lane_of() % 16, k = lane_of() / 16 * 8;
#pragma unroll
  for (int r = 0; r < F::kRowTiles; ++r)
#pragma unroll
    for (int part = 0; part < 2; ++part)
#pragma unroll
      for (int step = 0; step < F::kSteps; ++step)
        load_matrices(own[r][part][step], pages + (group_of() * F::kRowTiles + r) * F::kTile + part * F::kPart +
                                              half_place(row, 16 * step + k, F::kWidth));
}

// A tile as start_products takes it: best made long before.
#ifdef QUADRIC_WIDE_PRODUCTS
constexpr bool kWide = true;
using Factor = std::uint64_t;
template <class F>
__device__ __forceinline__ Factor factor_at(const std::uint16_t* tile) {
  return swizzled_rows<F::kWidth>(tile);
}
#else
constexpr bool kWide = false;
using Factor = const std::uint16_t*;
template <class F>
__device__ __forceinline__ Factor factor_at(const std::uint16_t* tile) {
  return tile;
}
#endif

// sums = x y^T, or += with `add`, of the own points and a tile. The parts of x and y are multiplied in the same order
// whichever of them the own points are: lower x upper, upper x lower, upper x upper. Steps [kFrom, kTo) of them alone.
// Nothing touches sums until finish_products.
template <class F, bool rows, int kFrom = 0, int kTo = F::kSteps>
__device__ __forceinline__ void start_products(Products<F>& sums, const Fragments<F>& own, Factor other, bool add) {
#ifdef QUADRIC_WIDE_PRODUCTS
  if constexpr (kFrom == 0) begin_products();
#pragma unroll
  for (int step = kFrom; step < kTo; ++step)
#pragma unroll
    for (int which = 0; which < 3; ++which) {
      const int part = which == (rows ? 1 : 0), chunk = step / F::kChunkSteps;
#pragma unroll
      for (int r = 0; r < F::kRowTiles; ++r)
        multiply_wide(sums[r], own[r][which == (rows ? 0 : 1)][step],
                      other + (2 * chunk + part) * (F::kPart / 8) + 2 * (step % F::kChunkSteps),
                      add || step + which > 0);
    }
  commit_products();
#else
#pragma unroll
  for (int r = 0; r < F::kRowTiles; ++r)
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[r][c][i] = add || kFrom > 0 ? sums[r][c][i] : 0;
  const int row = lane_of() / 16 * 8 + lane_of() % 8, k = lane_of() / 8 % 2 * 8;
#pragma unroll
  for (int step = kFrom; step < kTo; ++step)
#pragma unroll
    for (int c = 0; c < kColumnTiles; c += 2) {
      unsigned b[2][4];
#pragma unroll
      for (int part = 0; part < 2; ++part)
        load_matrices(b[part], other + (2 * (step / F::kChunkSteps) + part) * F::kPart +
                                   half_place(8 * c + row, step % F::kChunkSteps * 16 + k, F::kWidth));
#pragma unroll
      for (int which = 0; which < 3; ++which)
#pragma unroll
        for (int r = 0; r < F::kRowTiles; ++r)
#pragma unroll
          for (int l = 0; l < 2; ++l)
            multiply(sums[r][c + l], own[r][which == (rows ? 0 : 1)][step], b[which == (rows ? 1 : 0)][2 * l],
                     b[which == (rows ? 1 : 0)][2 * l + 1]);
    }
#endif
}

// Until at most `kPending` later calls of start_products are under way. (Across iterations of a loop none may be: the
// compiler would serialize all products then.)
template <int kPending>
__device__ __forceinline__ void await_products() {
#ifdef QUADRIC_WIDE_PRODUCTS
  wait_products<kPending>();
#endif
}
// The same, before sums are read.
template <class F, int kPending = 0>
__device__ __forceinline__ void finish_products(Products<F>& sums) {
  await_products<kPending>();
#ifdef QUADRIC_WIDE_PRODUCTS
#pragma unroll
  for (int r = 0; r < F::kRowTiles; ++r)
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i) hold(sums[r][c][i]);
#endif
}

// Groups that multiply in turn, since groups that began together would share the tensor cores, be done together and
// leave them idle during the exponentials: one waits before it starts the products of a tile, and the next may start
// its own once the first half of them is done. `left` tiles are to do, this one with them: after the last one the first
// group has no turn. Barriers 1 to kGroups.
template <class F>
__device__ __forceinline__ void wait_turn() {
#ifdef QUADRIC_WIDE_PRODUCTS
  sync_some(1 + group_of(), 256);
#endif
}
template <class F>
__device__ __forceinline__ void pass_turn(int left) {
#ifdef QUADRIC_WIDE_PRODUCTS
  const int next = group_of() + 1;
  if (next < F::kGroups)
    arrive_some(1 + next, 256);
  else if (left > 1)
    arrive_some(1, 256);
#endif
}

// What becomes of a thread's rows: the largest t, or the sum of e times weight or u, as a float and what it lost.
template <class F>
struct Totals {
  float value[F::kRowTiles][2], rest[F::kRowTiles][2];
};

template <class F, bool rows, bool largest>
__device__ __forceinline__ void add_tile(Totals<F>& totals, const Products<F>& sums, const float* first,
                                         const float* second, float scale, const float (&own)[F::kRowTiles][2]) {
  float here[F::kRowTiles][2];
#pragma unroll
  for (int r = 0; r < F::kRowTiles; ++r) here[r][0] = here[r][1] = largest ? -INFINITY : 0;
#pragma unroll
  for (int c = 0; c < kColumnTiles; ++c) {
    const float2 a = *reinterpret_cast<const float2*>(first + 8 * c + column_of());
    const float2 b = *reinterpret_cast<const float2*>(second + 8 * c + column_of());
#pragma unroll
    for (int r = 0; r < F::kRowTiles; ++r)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float mine = own[r][h], *const sum = &sums[r][c][2 * h];
        const float t0 = fmaf(sum[0], scale, rows ? a.x : mine), t1 = fmaf(sum[1], scale, rows ? a.y : mine);
        if constexpr (largest) {
          here[r][h] = fmaxf(here[r][h], fmaxf(t0, t1));
        } else {
          here[r][h] = fmaf(power(t0, rows ? mine : a.x), b.x, here[r][h]);
          here[r][h] = fmaf(power(t1, rows ? mine : a.y), b.y, here[r][h]);
        }
      }
  }
#pragma unroll
  for (int r = 0; r < F::kRowTiles; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float& value = totals.value[r][h];
      if constexpr (largest) {
        value = fmaxf(value, here[r][h]);
      } else {
        const float sum = value + here[r][h];
        totals.rest[r][h] += here[r][h] - (sum - value);
        value = sum;
      }
    }
}

// One walk over the other side, from this round of the stages on. By all that work.
template <class F, bool rows, bool largest>
__device__ __forceinline__ Totals<F> add_tiles(char* shared, float scale, unsigned& round) {
  Room& room = *reinterpret_cast<Room*>(shared);
  Totals<F> totals;
  float mine[F::kRowTiles][2];
#pragma unroll
  for (int r = 0; r < F::kRowTiles; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      totals.value[r][h] = largest ? -INFINITY : 0;
      totals.rest[r][h] = 0;
      mine[r][h] = room.own[64 * (group_of() * F::kRowTiles + r) + 8 * h + row_of()];
    }
  Place<F> place = {0, round};
  auto left = static_cast<int>(room.sides.end - room.sides.begin);
  Fragments<F> own;
  const auto wait = [&](const Place<F>& at) { wait_for(&room.full[at.stage], at.round % 2); };
  const auto release = [&](const Place<F>& at) {
    __syncwarp();
    if (lane_of() == 0) arrive(&room.empty[at.stage]);
  };
  const auto add = [&](const Products<F>& sums, const Place<F>& at, int tile) {
    add_tile<F, rows, largest>(totals, sums, &room.first[at.stage][tile * kPage], &room.second[at.stage][tile * kPage],
                               scale, mine);
  };
  if constexpr (F::kStreamed) {
    Products<F> even = {}, odd = {};
    const int chunks = room.sides.chunks;
    const unsigned count = turns<F>(room.sides);
    unsigned ordered = 0;
    Place<F> order = place;
    const auto fetch_one = [&] {
      if (ordered < count) {
        if (threadIdx.x == 0) fetch<F>(shared, room.sides, ordered, order);
        ++ordered;
        order.advance();
      }
    };
    // All stages but one: that is this group's, until it has started the products of its last chunk.
    for (int turn = 0; turn + 1 < F::kStages; ++turn) fetch_one();
    for (; left > 0; left -= 2) {
      for (int chunk = 0;; ++chunk, place.advance()) {
        wait(place);
        const std::uint16_t* const stage = stage_at<F>(shared, place.stage);
        load_own<F>(own, stage + F::kTiles * F::kTile);
        start_products<F, rows>(even, own, factor_at<F>(stage), chunk > 0);
        start_products<F, rows>(odd, own, factor_at<F>(stage + F::kTile), chunk > 0);
        fetch_one();
        if (chunk + 1 == chunks) break;
        finish_products<F>(even);
        finish_products<F>(odd);
        release(place);
      }
      finish_products<F, 1>(even);
      add(even, place, 0);
      finish_products<F>(odd);
      if (left > 1) add(odd, place, 1);
      release(place);
      place.advance();
    }
    for (; order.stage > 0; order.advance())
      if (threadIdx.x == 0) {
        wait_for(&room.empty[order.stage], order.round % 2 ^ 1);
        arrive(&room.full[order.stage]);
      }
  } else if constexpr (kWide && F::kWay == Way::twofold) {
    Products<F> even = {}, odd = {};
    Place<F> next = place;  // of the products to be started
    const auto start = [&](Products<F>& sums) {
      wait(next);
      start_products<F, rows>(sums, own, factor_at<F>(stage_at<F>(shared, next.stage)), false);
      next.advance();
    };
    const auto finish = [&](Products<F>& sums) {
      add(sums, place, 0);
      release(place);
      place.advance();
    };
    load_own<F>(own, room.sides);
    if (left > 0) {
      start(even);
      finish_products<F>(even);
    }
    for (; left > 2; left -= 2) {
      start(odd);
      finish(even);
      finish_products<F>(odd);
      start(even);
      finish(odd);
      finish_products<F>(even);
    }
    if (left == 2) {
      start(odd);
      finish(even);
      finish_products<F>(odd);
      finish(odd);
    } else if (left == 1) {
      finish(even);
    }
  } else {
    Products<F> sums = {};
    load_own<F>(own, room.sides);
    constexpr bool kInTurn = kWide && F::kSteps > 2;  // where the products take longer than the exponentials
    constexpr int kFirst = F::kSteps / 2;
    if constexpr (kInTurn)
      if (left > 0 && group_of() == F::kGroups - 1) pass_turn<F>(left + 1);
    for (; left > 0; --left) {
      const Factor tile = factor_at<F>(stage_at<F>(shared, place.stage));
      wait(place);
      if constexpr (kInTurn) {
        wait_turn<F>();
        start_products<F, rows, 0, kFirst>(sums, own, tile, false);
        start_products<F, rows, kFirst>(sums, own, tile, false);
        await_products<1>();
        pass_turn<F>(left);
      } else {
        start_products<F, rows>(sums, own, tile, false);
      }
      finish_products<F>(sums);
      add(sums, place, 0);
      release(place);
      place.advance();
    }
  }
  for (; place.stage > 0; place.advance()) {  // to the end of the round
    wait(place);
    release(place);
  }
  round = place.round;
  // The four lanes of a row together.
#pragma unroll
  for (int r = 0; r < F::kRowTiles; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float& value = totals.value[r][h];
      value += totals.rest[r][h];
#pragma unroll
      for (int lanes = 1; lanes < 4; lanes *= 2) {
        const float there = __shfl_xor_sync(~0U, value, lanes);
        value = largest ? fmaxf(value, there) : value + there;
      }
    }
  return totals;
}

// Registers of the warps that copy for those that work.
__device__ __forceinline__ void give_registers() {
#ifdef QUADRIC_WIDE_PRODUCTS
  drop_registers<32>();
#endif
}
template <class F>
__device__ __forceinline__ void take_registers() {
#ifdef QUADRIC_WIDE_PRODUCTS
  if constexpr (F::kCopier) raise_registers<F::kGroups == 2 ? 232 : 112>();
#endif
}

// ---- kernels -------------------------------------------------------------------------------------------------------

template <class F>
__device__ __forceinline__ void open_room(char* shared, const Sides& sides) {
  Room& room = *reinterpret_cast<Room*>(shared);
  if (threadIdx.x == 0) {
    room.sides = sides;
    for (int stage = 0; stage < F::kStages; ++stage) {
      open_barrier(&room.full[stage]);
      open_barrier(&room.empty[stage], F::kWorkers / 32);
    }
    publish_mail();
  }
}

__device__ __forceinline__ float product_scale(const Tensor& tensor, std::int64_t p) {
  const int both = half_exponent(tensor.largest[2 * p], 1) + half_exponent(tensor.largest[2 * p + 1], tensor.scale);
  return ldexpf(1, -both);
}

// The pages of problem p from a point on.
const __device__ __forceinline__ std::uint16_t* pages_from(const Side<float>& side, std::int64_t depth, std::int64_t p,
                                                           std::int64_t point) {
  return side.parts + 2 * depth * (p * side.padded_count + point);
}

// The sum of e weight, or the largest t, of each of the block's rows, in room.parts of all blocks of the cluster.
template <class F, bool largest>
__device__ __forceinline__ void scan_rows(char* shared, float scale, unsigned& round) {
  Room& room = *reinterpret_cast<Room*>(shared);
  const Totals<F> totals = add_tiles<F, true, largest>(shared, scale, round);
  sync_cluster();  // the parts have been read
  const unsigned rank = cluster_rank(), blocks = cluster_size();
#pragma unroll
  for (int r = 0; r < F::kRowTiles; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float* const to = &room.parts[rank][64 * (group_of() * F::kRowTiles + r) + 8 * h + row_of()];
      for (auto block = static_cast<unsigned>(lane_of() % 4); block < blocks; block += 4)
        put(to, totals.value[r][h], block);
    }
  sync_cluster();
}

// What the warps that copy do meanwhile: they come to the same barriers.
template <class F>
__device__ __forceinline__ void copy_for_rows(char* shared, bool look) {
  unsigned round = 0;
  const auto walk = [&] {
    if (threadIdx.x == F::kWorkers) fetch_all<F>(shared, round);
    __syncwarp();
    sync_cluster();
    sync_cluster();
  };
  do {
    if (look) {
      walk();
      __syncthreads();
    }
    walk();
    look = __any_sync(~0U, __syncthreads_or(0));
  } while (look);
  sync_cluster();
}

template <bool largest>
__device__ __forceinline__ float join_parts(const Room& room, int row) {
  float value = room.parts[0][row];
  const auto count = static_cast<int>(cluster_size());
  for (int part = 1; part < count; ++part)
    value = largest ? fmaxf(value, room.parts[part][row]) : value + room.parts[part][row];
  return value;
}

template <class F>
__global__ void __launch_bounds__(F::kThreads, 1)
    row_sums(const __grid_constant__ Pass<float> pass, const __grid_constant__ Tensor tensor) {
  extern __shared__ __align__(1024) char shared[];
  Room& room = *reinterpret_cast<Room*>(shared);
  const std::int64_t p = tensor.first_problem + blockIdx.y, n = pass.cost.n;
  const Flags flags = pass.flags[p];
  if (!flags.active) return;  // the whole cluster
  const bool rebase = __any_sync(~0U, flags.rebase);
  const auto rank = static_cast<std::int64_t>(cluster_rank()), blocks = static_cast<std::int64_t>(cluster_size());
  const std::int64_t tiles = pass.width / kPage, values = (p * 4 + flags.slot) * pass.width;
  const std::int64_t own_first = blockIdx.x / blocks * F::kOwn;
  Sides sides;
  sides.own = pages_from(tensor.x, tensor.depth, p, own_first);
  sides.other = pages_from(tensor.y, tensor.depth, p, 0);
  sides.begin = tiles * rank / blocks;
  sides.end = tiles * (rank + 1) / blocks;
  sides.first = pass.G + values;
  sides.second = pass.weight + values;
  sides.page = 2 * kPage * tensor.depth;
  sides.chunks = static_cast<int>(tensor.depth / F::kWidth);
  const float scale = product_scale(tensor, p);

  const int row = static_cast<int>(threadIdx.x);  // that this thread decides about
  const std::int64_t i = own_first + row;
  const bool mine = row < F::kOwn, real = mine && i < n;
  open_room<F>(shared, sides);
  if (mine) room.own[row] = real ? pass.shift[p * n + i] : 0;
  __syncthreads();
  if (F::kCopier && threadIdx.x >= F::kWorkers) {
    give_registers();
    copy_for_rows<F>(shared, rebase);
    return;
  }
  take_registers<F>();
  float sum = 0;
  unsigned round = 0;
  bool look = rebase, wanted = mine;  // for a new shift, of any row and of this one
  for (bool tried = false;; tried = true) {
    if (look) {
      scan_rows<F, true>(shared, scale, round);
      if (wanted) room.own[row] = -rintf(join_parts<true>(room, row));
      __syncthreads();
    }
    scan_rows<F, false>(shared, scale, round);
    if (mine) sum = join_parts<false>(room, row);
    wanted = !tried && !rebase && real && outside<float>(static_cast<double>(sum));
    look = __any_sync(~0U, __syncthreads_or(static_cast<int>(wanted)));
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

template <class F>
__global__ void __launch_bounds__(F::kThreads, 1)
    column_sums(const __grid_constant__ Pass<float> pass, const __grid_constant__ Tensor tensor) {
  extern __shared__ __align__(1024) char shared[];
  Room& room = *reinterpret_cast<Room*>(shared);
  const std::int64_t p = tensor.first_problem + blockIdx.y, slot = blockIdx.x % pass.slots, m = pass.cost.m;
  const Flags flags = pass.flags[p];
  if (!flags.active) return;
  const std::int64_t tiles = (pass.cost.n + kPage - 1) / kPage, own_first = blockIdx.x / pass.slots * F::kOwn;
  Sides sides;
  sides.own = pages_from(tensor.y, tensor.depth, p, own_first);
  sides.other = pages_from(tensor.x, tensor.depth, p, 0);
  sides.begin = tiles * slot / pass.slots;
  sides.end = tiles * (slot + 1) / pass.slots;
  sides.first = tensor.shift + p * tensor.x.padded_count;
  sides.second = tensor.u + p * tensor.x.padded_count;
  sides.page = 2 * kPage * tensor.depth;
  sides.chunks = static_cast<int>(tensor.depth / F::kWidth);
  const float scale = product_scale(tensor, p);
  const float* const all_G = pass.G + (p * 4 + flags.slot) * pass.width;

  const int column = static_cast<int>(threadIdx.x);
  open_room<F>(shared, sides);
  if (column < F::kOwn) room.own[column] = own_first + column < m ? all_G[own_first + column] : -INFINITY;
  __syncthreads();
  unsigned round = 0;
  if (F::kCopier && threadIdx.x >= F::kWorkers) {
    give_registers();
    if (threadIdx.x == F::kWorkers) fetch_all<F>(shared, round);
    return;
  }
  take_registers<F>();
  const Totals<F> totals = add_tiles<F, false, false>(shared, scale, round);
#pragma unroll
  for (int r = 0; r < F::kRowTiles; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int64_t j = own_first + 64 * (group_of() * F::kRowTiles + r) + 8 * h + row_of();
      if (lane_of() % 4 == 0 && j < m) pass.partial[(p * pass.slots + slot) * pass.width + j] = totals.value[r][h];
    }
}

// ---- launches ------------------------------------------------------------------------------------------------------

// body(Form) with that of points of d coordinates.
template <class Body>
auto with_form(std::int64_t d, const Body& body) {
  if (d <= 16) return body(Form<1, 4, 1, Way::single>{});
  if (d <= 32) return body(Form<2, 4, 1, Way::single>{});
  if (d <= 48) return body(Form<3, 4, 1, Way::single>{});
  if (d <= 64) return body(Form<4, 2, 2, Way::twofold>{});
  if (d <= 96) return body(Form<6, 2, 1, Way::twofold>{});
  if (d <= 128) return body(Form<8, 2, 1, Way::twofold>{});
  return body(Form<4, 2, 2, Way::streamed>{});
}

std::int64_t own_tiles(std::int64_t count, std::int64_t d) {
  const std::int64_t own = with_form(d, [](auto form) { return decltype(form)::kOwn; });
  return (count + own - 1) / own;
}
std::int64_t other_tiles(std::int64_t count) { return (count + kPage - 1) / kPage; }

// Into how many parts the other side is cut: what 132 multiprocessors with a block each, whatever the device is, do in
// the shortest time; a block begins and ends in what two tiles take.
int parts_for(std::int64_t problems, std::int64_t own, std::int64_t other, bool clusters) {
  int best = 1;
  std::int64_t least = 0;
  for (int parts = 1; parts <= kMostParts && parts <= other; ++parts) {
    // Clusters leave gaps in the groups of 16 or 18 multiprocessors that hold them.
    constexpr int kClusters[] = {132, 66, 40, 30, 0, 0, 0, 15};
    const std::int64_t units = problems * own * (clusters ? 1 : parts), at_once = !clusters ? 132
                                                                                  : parts <= kMostBlocks
                                                                                      ? kClusters[parts - 1]
                                                                                      : 0;
    if (at_once == 0) continue;
    const std::int64_t time = (units + at_once - 1) / at_once * ((other + parts - 1) / parts + 2);
    if (parts > 1 && time >= least) continue;
    best = parts;
    least = time;
  }
  return best;
}

template <class Kernel>
void launch(const Execution& exec, Kernel kernel, const Pass<float>& pass, Tensor& tensor, std::int64_t blocks,
            int cluster_blocks, int threads, std::size_t shared) {
  QUADRIC_REQUIRE(blocks < (std::int64_t{1} << 31), "x or y has too many points");
  QUADRIC_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared)));
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(cluster_blocks);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.blockDim = dim3(static_cast<unsigned>(threads));
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
  return parts_for(cost.problems, own_tiles(cost.m, cost.d), other_tiles(cost.n), false);
}

void points_tensor(const Execution& exec, const Points<float>& points, const Pass<float>& pass) {
  Tensor tensor = {points.x, points.y, points.half_depth, points.largest, 0, points.u, points.shift, 0};
  tensor.scale = pass.cost.kind == CostKind::sqeuclidean ? 2 * pass.kappa : pass.kappa;
  const std::int64_t d = pass.cost.d, rows = own_tiles(pass.cost.n, d), columns = own_tiles(pass.cost.m, d);
  const int parts = parts_for(pass.cost.problems, rows, other_tiles(pass.cost.m), true);
  with_form(d, [&](auto form) {
    using F = decltype(form);
    launch(exec, row_sums<F>, pass, tensor, rows * parts, parts, F::kThreads, shared_bytes<F>());
    launch(exec, column_sums<F>, pass, tensor, columns * pass.slots, 1, F::kThreads, shared_bytes<F>());
  });
}

}  // namespace quadric::cuda::transport
