// Sparse signs in turns: in each turn each row of S A adds one row of A.
//
// Lists of what a tile of A gives to each row of S A have few entries and differ in length, and threads in step wait
// for the longest. But rows of A stay in shared memory for a while, so an entry may wait. Row i of S A is a queue: in
// turn t tile t of A arrives with about kArrivals entries for it; the turn serves the oldest one that waits, if there
// is one; tile t - reach + 1 leaves after the turn, and what still waits of it is served too, as `late`. All rows of
// S A take the same steps without a branch then, and late entries are few.
//
// With c for the entries that are served after turn t, A of those that have arrived, L of those that have left:
//   c(t) = max(min(c(t - 1) + 1, A(t)), L(t)).
// That takes a few operations on whole numbers for a turn, so all queues are followed from the first turn of a part of
// the rows to its last, and what they hold where a segment of turns begins is noted: segments are written side by side.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "device.hpp"
#include "quadric/cuda/sketch.hpp"
#include "sketch/tiles.cuh"

namespace quadric::cuda::sketch {

inline constexpr int kTurnThreads = 512, kTurnWarps = kTurnThreads / 32;
inline constexpr int kLineShift = 7, kLine = 1 << kLineShift;  // bytes of a row of A in a tile
inline constexpr int kLanes = kLine / 16;                      // threads for a row of S A, 16 bytes each
inline constexpr int kSlots = kTurnThreads / kLanes;           // rows of S A at a time
inline constexpr std::int64_t kTurnShared = 232448;  // bytes of shared memory that a block of an H200 may have

inline constexpr std::uint32_t kPlaces = 0x7ff << kLineShift, kSign = 0x80000000u;
inline constexpr int kSecond = 11, kLateRow = 18, kLateSlot = 22;
inline constexpr int kWarpGroups = 4, kGroupWarps = kTurnWarps / kWarpGroups;  // which share room for late entries
inline constexpr int kMostLate = 16, kHeads = kTurnWarps + kWarpGroups;
__host__ __device__ constexpr int record_words(int padded) { return padded / 2 + kHeads + kWarpGroups * kMostLate; }
__host__ __device__ constexpr int record_bytes(int padded) { return 4 * record_words(padded); }

inline constexpr int kBarrierBytes = 128;
inline constexpr int kGroup = 4;  // turns whose arrivals a word counts

struct Turns {
  std::uint64_t seed = 0;
  std::int64_t first = 0, rows = 0;        // of A: the first one in the whole, how many
  std::int64_t m = 0, nnz = 1, block = 1;  // block = m / nnz rows of S with one entry in each column
  int per = 1;                             // such blocks in a chunk: the rows of S A that a block of threads has
  std::int64_t chunks = 0;
  int padded = 0;  // rows of a chunk: 4, 8, 12 or 16 times kSlots
  int tile = 0;    // rows of A
  int ahead = 1;   // tiles that are on their way
  int reach = 0;   // turns for which a tile is there
  std::int64_t tiles = 0, parts = 1;
  std::int64_t segments = 1;  // of a part
  int most = 0;               // turns of a segment, a multiple of kGroup

  static constexpr double kArrivals = 0.78;  // at most
  static constexpr std::int64_t kLeastBlock = 48, kMostBlock = 420, kLeastTiles = 32;

  // Whether turns suit A and an S of m rows; the others need lists.cuh.
  template <class S>
  static bool suit(const Source<S>& A, std::int64_t m, std::int64_t nnz) {
    const std::int64_t block = m / nnz;
    return A.layout == Layout::packed && A.row_stride >= A.cols && A.row_stride < std::int64_t{1} << 30 &&
           block >= kLeastBlock && block <= kMostBlock && m >= 4 * kSlots && A.rows >= kLeastTiles * block &&
           shared_limit() >= kTurnShared;
  }

  // `columns` is the number of blocks of threads that share a row of A, a part's sums cost as much as `each` turns.
  Turns(const Place& place, std::int64_t n, std::int64_t m_, std::int64_t nnz_, std::int64_t columns, double each)
      : seed(place.seed), first(place.first), rows(n), m(m_), nnz(nnz_), block(m_ / nnz_) {
    chunks = ceil_div(nnz, std::min<std::int64_t>(kMostPer, 16 * kSlots / block));
    per = static_cast<int>(ceil_div(nnz, chunks));
    chunks = ceil_div(nnz, per);
    padded = static_cast<int>(ceil_div(per * block, 4 * kSlots)) * 4 * kSlots;
    const double fair = kArrivals * static_cast<double>(block);
    ahead = fair >= 240 ? 1 : fair >= 75 ? 2 : 4;
    const std::int64_t room = (kTurnShared - kBarrierBytes - (ahead + 1) * record_bytes(padded)) / kLine - 1;
    tile = static_cast<int>(room / static_cast<std::int64_t>(std::ceil(static_cast<double>(room) / fair)));
    tile -= tile % pieces();
    reach = static_cast<int>(std::min<std::int64_t>(room / tile - ahead, kMostReach));
    tiles = ceil_div(n, tile);
    parts = count_parts(chunks * columns, groups(), each / kGroup);
    // A segment but the last of a part has at least `reach` turns.
    const int least = 2 * static_cast<int>(ceil_div(reach, kGroup));
    const int in_segment = std::max(kMostSorted / (per * tile * kGroup), least);
    most = kGroup * in_segment;
    segments = ceil_div(ceil_div(groups(), parts), in_segment);
  }

  __host__ __device__ int pieces() const { return tile > 256 ? 2 : 1; }  // of a tile, for the engine that copies
  __host__ __device__ int ring() const { return reach + ahead; }         // tiles in shared memory
  // Groups of turns, and the first one of a part and of segment `q` of all.
  __host__ __device__ std::int64_t groups() const { return (tiles + kGroup - 1) / kGroup; }
  __host__ __device__ std::int64_t first_group(std::int64_t part) const { return groups() * part / parts; }
  __host__ __device__ std::int64_t group(std::int64_t q) const {
    const std::int64_t part = q / segments, from = first_group(part);
    return from + (first_group(part + 1) - from) * (q % segments) / segments;
  }
  __host__ __device__ std::int64_t first_turn(std::int64_t part) const {
    return part < parts ? kGroup * first_group(part) : tiles;
  }
  __host__ __device__ std::int64_t all_segments() const { return parts * segments; }
  __host__ __device__ std::int64_t begin(std::int64_t q) const { return kGroup * group(q); }
  __host__ __device__ std::int64_t end(std::int64_t q) const {
    return (q + 1) % segments == 0 ? first_turn(q / segments + 1) : begin(q + 1);
  }
  __host__ __device__ int turns(std::int64_t q) const { return static_cast<int>(end(q) - begin(q)); }
  // Rows of A in tile t, and in the tiles [from, to).
  __host__ __device__ int count(std::int64_t t) const {
    return t + 1 < tiles ? tile : static_cast<int>(rows - t * tile);
  }
  __host__ __device__ int count(std::int64_t from, std::int64_t to) const {
    return static_cast<int>((to < tiles ? to * tile : rows) - from * tile);
  }
  __host__ __device__ int blocks(std::int64_t chunk) const {
    const std::int64_t left = nnz - chunk * per;
    return left < per ? static_cast<int>(left) : per;
  }
  // Entries of a segment and a chunk, a multiple of 8, and those that may be late there: its own, and what waits.
  __host__ __device__ int room() const { return (per * most * tile + 7) / 8 * 8; }
  __host__ __device__ int late_room() const { return 2 * room(); }

 private:
  static constexpr int kMostPer = 16, kMostReach = 16;
  static constexpr int kMostSorted = 16 * 1024;  // entries of a segment, if it is not shorter than its queue
};

// What is done in a turn and a chunk is a record of 32-bit words:
//   padded / 2 codes of two rows of S A each: place | place << kSecond | sign | sign << 31
//   for each of kTurnWarps warps where its late entries begin in its group, and how many they are: begin | count << 16
//   for each group of kGroupWarps warps the place of its late entries in `rest`
//   for each group the first kMostLate late entries: place | row << kLateRow | slot % 4 << kLateSlot | sign << 31.
// A place is that of a row of A in the ring of tiles, times kLine, or behind the ring, where there are zeros. Eight
// threads, a `slot`, have padded / kSlots rows of the chunk, from slot * padded / kSlots on.
struct Schedule {
  std::uint32_t* records;  // those of the chunks of a turn are neighbours
  std::uint32_t* rest;     // late entries that are too many for their record
};

// In one piece of memory, at a multiple of 256 bytes: the caller's library may take microseconds for each piece.
std::int64_t schedule_bytes(const Turns& f);
Schedule make_schedule(const Execution& exec, char* memory, const Turns& f);

// out += S A.
template <class S, class T>
void add_signs_in_turns(const Execution& exec, const Source<S>& A, const Place& place, std::int64_t nnz,
                        const MatrixView<T>& out);

}  // namespace quadric::cuda::sketch
