// S A for sparse signs in turns, see turns.cuh: contiguous A, blocks of S of about 50 to 400 rows.
//
// n = 1e6, d = 256, m = 2048, 8 signs, float32. Floor: one read of A, 1 GB at 4.2 TB/s = 0.24 ms; 2e9 additions, each
// with one read of shared memory, 128 bytes a cycle and multiprocessor: 485e3 cycles, 0.27 ms at 1.8 GHz. What comes
// on top: A comes into shared memory twice, for 1024 rows of S A each, a quarter; codes, a twentieth: 630e3 cycles,
// 0.35 ms. About as many go to instructions: ten for each of the 16 rows of S A that a thread has, whether or not there
// is something to add in this turn, and fifty more a turn. Measured: 0.64 ms, of which warps wait a third for tiles,
// and 0.15 ms for the schedule before. Two blocks that share the tiles by multicast wait more for each other: 0.90 ms.
//
// A block of threads has the sums of 128 bytes of up to 1024 rows of S A in its registers: eight threads a row, 16
// bytes each, so that a read of a tile's row takes a whole cycle of shared memory and meets no conflict. Tiles of A are
// in a ring, and a code says where in the ring the row of A is that a row of S A adds in this turn; behind the ring
// there is a row of zeros. Next tiles and codes come by asynchronous copies. Late entries are not spread evenly, so
// warps need not be in the same turn: the last one that is done with a turn orders what takes the place of its codes
// and of the tile that leaves. All parts of the rows are of a fixed number and are added up in their order.
#include <type_traits>

#include "sketch/bulk_copies.cuh"
#include "sketch/turns.cuh"

namespace quadric::cuda::sketch {
namespace {

constexpr int kFar = 4;        // tiles behind those on their way that are fetched into the second-level cache
constexpr int kMostFills = 6;  // packs that a thread converts in a turn

template <class T>
inline constexpr int kColumns = kLine / static_cast<int>(sizeof(T));  // of a tile

template <class T>
struct Sums {
  T* out;       // or sums of part p from out + p * size on
  bool add;     // to what is there
  bool packed;  // rows begin at multiples of 16 bytes
  std::int64_t size;
};

// 1 or -1, by the top bit of `bits`. `sign` is kSign.
template <class T>
__device__ __forceinline__ T one_of(std::uint32_t bits, std::uint32_t sign) {
  if constexpr (sizeof(T) == 8)
    return __hiloint2double(static_cast<int>((bits & sign) | 0x3ff00000u), 0);
  else
    return __uint_as_float((bits & sign) | 0x3f800000u);
}

template <class T>
__device__ __forceinline__ void add(T (&sum)[kPack<T>], const Pack<T>& x, T sign) {
#pragma unroll
  for (int e = 0; e < kPack<T>; ++e) sum[e] += sign * x.at[e];
}

// sum[j] += sign x for a j that all threads of the warp share.
template <int kRows, class T>
__device__ __forceinline__ void add_to(T (&sum)[kRows][kPack<T>], int j, const Pack<T>& x, T sign) {
#define QUADRIC_CASE(J)                            \
  case J:                                          \
    if constexpr (J < kRows) add(sum[J], x, sign); \
    break;
  switch (j) {
    QUADRIC_CASE(0)
    QUADRIC_CASE(1)
    QUADRIC_CASE(2)
    QUADRIC_CASE(3)
    QUADRIC_CASE(4)
    QUADRIC_CASE(5)
    QUADRIC_CASE(6)
    QUADRIC_CASE(7)
    QUADRIC_CASE(8)
    QUADRIC_CASE(9)
    QUADRIC_CASE(10)
    QUADRIC_CASE(11)
    QUADRIC_CASE(12)
    QUADRIC_CASE(13)
    QUADRIC_CASE(14)
    QUADRIC_CASE(15)
  }
#undef QUADRIC_CASE
}

// The way of tiles of 16-bit entries into the ring: by the registers, where they are converted.
template <class S>
class Fill {
 public:
  __device__ __forceinline__ void begin(const Source<S>& A, std::int64_t first, int count, std::int64_t column,
                                        char* tile) {
    to_ = tile + slot() * kLine + lane() * 16;
    count_ = count;
    const std::int64_t mine = column + lane() * kPack<float>;
    const S* const from = A.data + (first + slot()) * A.row_stride + mine;
#pragma unroll
    for (int i = 0; i < kMostFills; ++i)
      if (slot() + i * kSlots < count) bits_[i] = read_bits(from + i * (kSlots * A.row_stride), A.cols - mine);
  }
  // What was begun last.
  __device__ __forceinline__ void end() {
#pragma unroll
    for (int i = 0; i < kMostFills; ++i)
      if (slot() + i * kSlots < count_)
        *reinterpret_cast<Pack<float>*>(to_ + i * kSlots * kLine) = widened<S>(bits_[i]);
    count_ = 0;
  }

 private:
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kLanes; }
  static __device__ __forceinline__ int slot() { return static_cast<int>(threadIdx.x) / kLanes; }

  char* to_ = nullptr;
  int count_ = 0;
  uint2 bits_[kMostFills];
};
struct NoFill {};

// 16-bit entries are converted by the threads that add; others come by the orders of one of them.
template <class S, class T>
inline constexpr bool kConverts = !std::is_same_v<S, T>;

template <class S, class T, int kRows>
__global__ void __launch_bounds__(kTurnThreads, 1)
    sparse_sign_turns_kernel(const Source<S> A, const __grid_constant__ CUtensorMap map, const Turns f,
                             const Schedule schedule, const Sums<T> sums) {
  extern __shared__ __align__(128) char shared[];
  constexpr int kPadded = kRows * kSlots, kRecord = record_bytes(kPadded);
  const int ring = f.ring(), tile_bytes = f.tile * kLine, ring_bytes = ring * tile_bytes, buffers = f.ahead + 1;
  char* const records = shared + ring_bytes + kLine;
  // For the record and the tile of a turn: that they are there, and that all warps are done with the turn; and how many
  // are, of all turns with this place.
  std::uint64_t* const full = reinterpret_cast<std::uint64_t*>(records + buffers * kRecord);
  std::uint64_t* const empty = full + buffers;
  std::uint32_t* const done = reinterpret_cast<std::uint32_t*>(empty + buffers);
  std::uint32_t* const signs = reinterpret_cast<std::uint32_t*>(records + buffers * kRecord + kBarrierBytes) - 1;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes, slot = thread / kLanes;
  // Chunks of the same tile are neighbours, so that all but one find it in the second-level cache.
  const int chunks = static_cast<int>(f.chunks), chunk = static_cast<int>(blockIdx.x) % chunks;
  const std::int64_t rest = blockIdx.x / chunks, columns = (A.cols + kColumns<T> - 1) / kColumns<T>;
  const std::int64_t column = rest % columns * kColumns<T>, part = rest / columns;
  const std::int64_t begin = f.first_turn(part), end = f.first_turn(part + 1);

  if (thread < kLanes) *reinterpret_cast<uint4*>(shared + ring_bytes + thread * 16) = uint4{0, 0, 0, 0};
  if (thread == 0) {
    for (int i = 0; i < buffers; ++i) {
      open_barrier(full + i);
      open_barrier(empty + i, kTurnWarps);
      done[i] = 0;
    }
    *signs = kSign;
    publish_barriers();
  }
  __syncthreads();

  // By one thread; the place of the record is `buffer`.
  const auto order = [&](std::int64_t t, int buffer) {
    std::uint64_t* const barrier = full + buffer;
    expect_bytes(barrier, kRecord + (kConverts<S, T> ? 0 : tile_bytes));
    copy_bulk(records + buffer * kRecord, schedule.records + (t * chunks + chunk) * record_words(kPadded), kRecord,
              barrier);
    if constexpr (!kConverts<S, T>) {
      const int pieces = f.pieces(), rows = f.tile / pieces;
      char* const to = shared + static_cast<int>(t) % ring * tile_bytes;
      for (int i = 0; i < pieces; ++i)
        copy_tile(to + i * rows * kLine, map, static_cast<int>(t) * f.tile + i * rows, static_cast<int>(column),
                  barrier);
    }
  };
  const auto fetch_far = [&](std::int64_t t) {  // chunks in turn
    if (t >= end || static_cast<int>(t) % chunks != chunk) return;
    const int pieces = f.pieces(), rows = f.tile / pieces;
    for (int i = 0; i < pieces; ++i)
      prefetch_tile(map, static_cast<int>(t) * f.tile + i * rows, static_cast<int>(column));
  };

  int arriving = static_cast<int>(begin % ring) * tile_bytes, buffer = 0;  // places of the next tile and record
  std::conditional_t<kConverts<S, T>, Fill<S>, NoFill> fill;
  const auto fetch = [&](std::int64_t t) {
    if constexpr (kConverts<S, T>) {
      if (t >= end) return;
      if (thread == 0) order(t, buffer);
      fill.begin(A, t * f.tile, f.count(t), column, shared + arriving);
      arriving = arriving + tile_bytes < ring_bytes ? arriving + tile_bytes : 0;
      buffer = buffer < f.ahead ? buffer + 1 : 0;
    }
  };
  if constexpr (kConverts<S, T>) {
    for (int i = 0; i < f.ahead; ++i) {
      fetch(begin + i);
      fill.end();
    }
  } else if (thread == 0) {
    for (int i = 0; i < buffers && begin + i < end; ++i) order(begin + i, i);
    for (int i = 0; i < kFar; ++i) fetch_far(begin + buffers + i);
  }

  const auto own_lane = static_cast<std::uint32_t>(lane * 16), zeros = static_cast<std::uint32_t>(ring_bytes);
  // From memory, no constant for the compiler: one instruction has room for one of them.
  const std::uint32_t sign_bit = *static_cast<volatile std::uint32_t*>(signs);
  T sum[kRows][kPack<T>] = {};
  T x[2][2][kPack<T>] = {};  // of two rows each; where nothing is added a load leaves what was there
  int now = 0;               // place of the record
  unsigned parity = 0;
  for (std::int64_t t = begin; t < end; ++t) {
    wait_round(full + now, parity);
    if constexpr (kConverts<S, T>) __syncthreads();  // the tile is there; what it and the record replace is done with
    fetch(t + f.ahead);

    const char* const record = records + now * kRecord;
    const char* const codes = record + slot * (2 * kRows);
    std::uint32_t words[kRows / 2];
#pragma unroll
    for (int j = 0; j < kRows / 2; j += 2) {
      const uint2 two = *reinterpret_cast<const uint2*>(codes + 4 * j);
      words[j] = two.x;
      words[j + 1] = two.y;
    }
    const std::uint32_t* const heads = reinterpret_cast<const std::uint32_t*>(record) + kPadded / 2;
    const std::uint32_t head = heads[thread / 32], last = (head & 0xffff) + (head >> 16);
    constexpr int kGroupThreads = 32 * kGroupWarps;
    const std::uint32_t* const lates = heads + kHeads + thread / kGroupThreads * kMostLate;
#pragma unroll 1
    for (std::uint32_t i = head & 0xffff; i < last; ++i) {
      const std::uint32_t late =
          i < kMostLate ? lates[i] : schedule.rest[heads[kTurnWarps + thread / kGroupThreads] + i];
      Pack<T> x{};
      if ((late >> kLateSlot & 3) == static_cast<std::uint32_t>(slot % 4))
        x = *reinterpret_cast<const Pack<T>*>(shared + ((late & kPlaces) | own_lane));
      add_to<kRows>(sum, static_cast<int>(late >> kLateRow & 15), x, one_of<T>(late, sign_bit));
    }

#pragma unroll
    for (int j = 0; j < kRows; j += 2) {
      const std::uint32_t word = words[j / 2];  // the place and the lane in one instruction
      add_two(reinterpret_cast<T(&)[2][kPack<T>]>(sum[j]), x[j / 2 % 2], shared,
              {(word & kPlaces) | own_lane, (word >> kSecond & kPlaces) | own_lane}, zeros,
              {one_of<T>(word << 31, sign_bit), one_of<T>(word, sign_bit)});
    }
    if constexpr (kConverts<S, T>) {
      fill.end();
    } else {
      __syncwarp();
      if (thread % 32 == 0) {
        arrive(empty + now);
        // The last warp sees to what takes the place of the record, and of the tile that has left.
        if ((atomicAdd(done + now, 1u) + 1) % kTurnWarps == 0) {
          wait_round(empty + now, parity);
          if (t + buffers < end) order(t + buffers, now);
          fetch_far(t + buffers + kFar);
        }
      }
    }
    if (now < f.ahead) {
      ++now;
    } else {
      now = 0;
      parity ^= 1;
    }
  }

  const std::int64_t row0 = chunk * f.per * f.block, at = column + lane * kPack<T>;
  const int rows = static_cast<int>(f.blocks(chunk) * f.block);
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
    const int row = slot * kRows + j;
    if (row >= rows) break;
    T* const to = sums.out + part * sums.size + (row0 + row) * A.cols + at;
    if (sums.packed && at + kPack<T> <= A.cols) {
      Pack<T> pack{};
      if (sums.add) pack = *reinterpret_cast<const Pack<T>*>(to);
#pragma unroll
      for (int e = 0; e < kPack<T>; ++e) pack.at[e] += sum[j][e];
      *reinterpret_cast<Pack<T>*>(to) = pack;
    } else {
#pragma unroll
      for (int e = 0; e < kPack<T>; ++e)
        if (at + e < A.cols) to[e] = sums.add ? to[e] + sum[j][e] : sum[j][e];
    }
  }
}

template <class S, class T, int kRows>
void launch(const Execution& exec, const Source<S>& A, const Turns& f, const Schedule& schedule, const Sums<T>& sums) {
  const std::int64_t bytes = (static_cast<std::int64_t>(f.ring()) * f.tile + 1) * kLine +
                             (f.ahead + 1) * record_bytes(f.padded) + kBarrierBytes;
  CUtensorMap map{};
  if constexpr (std::is_same_v<S, T>)
    map = tile_map(A.data, sizeof(T), A.rows, A.cols, A.row_stride, f.tile / f.pieces(), kColumns<T>);
  const auto kernel = sparse_sign_turns_kernel<S, T, kRows>;
  allow_shared(kernel, bytes);
  kernel<<<grid_of(f.chunks * ceil_div(A.cols, kColumns<T>) * f.parts), kTurnThreads, static_cast<std::size_t>(bytes),
           stream(exec)>>>(A, map, f, schedule, sums);
  QUADRIC_CUDA_LAUNCHED();
}

// Rows of A at a time, so that a schedule takes a bounded amount of memory.
template <class S, class T>
void add_rows(const Execution& exec, const Source<S>& A, const Place& place, std::int64_t nnz,
              const MatrixView<T>& out) {
  const std::int64_t m = out.rows, d = A.cols;
  const double each = static_cast<double>(m) * static_cast<double>(d) * sizeof(T) / 1.5e6;  // a turn takes 0.7 us
  const Turns f(place, A.rows, m, nnz, ceil_div(d, kColumns<T>), each);
  Scratch scratch(exec);
  const std::int64_t bytes = schedule_bytes(f), sums_size = f.parts > 1 ? f.parts * m * d : 0;
  char* const memory = scratch.get<char>(bytes + sums_size * static_cast<std::int64_t>(sizeof(T)));
  const Schedule schedule = make_schedule(exec, memory, f);
  T* const spare = f.parts > 1 ? reinterpret_cast<T*>(memory + bytes) : out.data;
  const Sums<T> sums{spare, f.parts == 1, aligned(spare, 16) && d % kPack<T> == 0, m * d};
  switch (f.padded / kSlots) {
    case 4:
      launch<S, T, 4>(exec, A, f, schedule, sums);
      break;
    case 8:
      launch<S, T, 8>(exec, A, f, schedule, sums);
      break;
    case 12:
      launch<S, T, 12>(exec, A, f, schedule, sums);
      break;
    default:
      launch<S, T, 16>(exec, A, f, schedule, sums);
  }
  if (f.parts > 1) add_parts(exec, spare, f.parts, m * d, out.data);
}

}  // namespace

template <class S, class T>
void add_signs_in_turns(const Execution& exec, const Source<S>& A, const Place& place, std::int64_t nnz,
                        const MatrixView<T>& out) {
  constexpr std::int64_t kEntries = std::int64_t{1} << 24;
  const std::int64_t batches = ceil_div(A.rows * nnz, kEntries);
  for (std::int64_t b = 0; b < batches; ++b) {
    const std::int64_t begin = A.rows * b / batches;
    Source<S> rows = A;
    rows.data += begin * A.row_stride;
    rows.rows = A.rows * (b + 1) / batches - begin;
    add_rows(exec, rows, Place{place.seed, place.first + begin}, nnz, out);
  }
}

template void add_signs_in_turns(const Execution&, const Source<Float16>&, const Place&, std::int64_t,
                                 const MatrixView<float>&);
template void add_signs_in_turns(const Execution&, const Source<Bfloat16>&, const Place&, std::int64_t,
                                 const MatrixView<float>&);
template void add_signs_in_turns(const Execution&, const Source<float>&, const Place&, std::int64_t,
                                 const MatrixView<float>&);
template void add_signs_in_turns(const Execution&, const Source<double>&, const Place&, std::int64_t,
                                 const MatrixView<double>&);

}  // namespace quadric::cuda::sketch
