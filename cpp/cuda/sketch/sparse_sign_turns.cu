// S A for sparse signs in turns, see turns.cuh: contiguous A, blocks of S of about 50 to 400 rows.
//
// n = 1e6, d = 256, m = 2048, 8 signs, float32. Floor: one read of A, 1 GB at 4.2 TB/s = 0.24 ms; 2e9 additions, each
// with one read of shared memory, 128 bytes a cycle and multiprocessor: 485e3 cycles, 0.27 ms at 1.8 GHz. What comes
// on top: a turn of a row that has nothing to add, a fifth; A comes into shared memory twice, for 1024 rows of S A
// each, a quarter; codes, a twentieth: 750e3 cycles, 0.42 ms. Measured: 0.79 ms, a third of it at the barrier that ends
// a turn, and 0.37 ms for the schedule before it, made entry by entry.
//
// A block of threads has the sums of 128 bytes of up to 1024 rows of S A in its registers: eight threads a row, 16
// bytes each, so that a read of a tile's row takes a whole cycle of shared memory and meets no conflict. Tiles of A are
// in a ring, and a code says where in the ring the row of A is that a row of S A adds in this turn; behind the ring
// there is a row of zeros. Next tiles and codes come by asynchronous copies. All parts of the rows are of a fixed
// number and are added up in their order.
#include <type_traits>

#include "sketch/bulk_copies.cuh"
#include "sketch/turns.cuh"

namespace quadric::cuda::sketch {
namespace {

constexpr int kFar = 3;        // tiles behind those on their way that are fetched into the second-level cache
constexpr int kMostFills = 6;  // packs that a thread converts in a turn

template <class T>
inline constexpr int kColumns = kLine / static_cast<int>(sizeof(T));  // of a tile

template <class T>
struct Sums {
  T* out;       // or sums of part p from out + p * size on
  bool add;     // to what is there
  bool packed;  // rows begin at multiples of 16 bytes
  std::int64_t size;
  std::uint32_t sign = kSign;
};

// 1 or -1, by the top bit of `bits`. `sign` is kSign, but no constant: one instruction has room for one of them.
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

template <class S, class T, int kRows>
__global__ void __launch_bounds__(kTurnThreads, 1)
    sparse_sign_turns_kernel(const Source<S> A, const __grid_constant__ CUtensorMap map, const Turns f,
                             const Schedule schedule, const Sums<T> sums) {
  extern __shared__ __align__(128) char shared[];
  constexpr bool kConverts = !std::is_same_v<S, T>;
  constexpr int kPadded = kRows * kSlots, kRecord = record_bytes(kPadded);
  const int ring = f.ring(), tile_bytes = f.tile * kLine, ring_bytes = ring * tile_bytes;
  char* const records = shared + ring_bytes + kLine;
  std::uint64_t* const barriers = reinterpret_cast<std::uint64_t*>(records + (f.ahead + 1) * kRecord);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes, slot = thread / kLanes;
  // Chunks of the same tile are neighbours, so that all but one find it in the second-level cache.
  const int chunks = static_cast<int>(f.chunks), chunk = static_cast<int>(blockIdx.x) % chunks;
  const std::int64_t rest = blockIdx.x / chunks, columns = (A.cols + kColumns<T> - 1) / kColumns<T>;
  const std::int64_t column = rest % columns * kColumns<T>, part = rest / columns;
  const std::int64_t begin = f.first_turn(part), end = f.first_turn(part + 1);

  int arriving = static_cast<int>(begin % ring) * tile_bytes, buffer = 0;  // places of the next tile and record
  std::conditional_t<kConverts, Fill<S>, NoFill> fill;
  const auto fetch = [&](std::int64_t t) {
    if (t >= end) return;
    if (thread == 0) {
      std::uint64_t* const barrier = barriers + buffer;
      expect_bytes(barrier, kRecord + (kConverts ? 0 : tile_bytes));
      copy_bulk(records + buffer * kRecord, schedule.records + (t * chunks + chunk) * record_words(kPadded), kRecord,
                barrier);
      if constexpr (!kConverts) {
        const int pieces = f.pieces(), rows = f.tile / pieces;
        for (int i = 0; i < pieces; ++i)
          copy_tile(shared + arriving + i * rows * kLine, map, static_cast<int>(t) * f.tile + i * rows,
                    static_cast<int>(column), barrier);
      }
    }
    if constexpr (kConverts) fill.begin(A, t * f.tile, f.count(t), column, shared + arriving);
    arriving = arriving + tile_bytes < ring_bytes ? arriving + tile_bytes : 0;
    buffer = buffer < f.ahead ? buffer + 1 : 0;
  };
  const auto fetch_far = [&](std::int64_t t) {  // chunks in turn
    if constexpr (!kConverts) {
      if (thread != 0 || t >= end || t % chunks != chunk) return;
      const int pieces = f.pieces(), rows = f.tile / pieces;
      for (int i = 0; i < pieces; ++i)
        prefetch_tile(map, static_cast<int>(t) * f.tile + i * rows, static_cast<int>(column));
    }
  };

  if (thread < kLanes) *reinterpret_cast<uint4*>(shared + ring_bytes + thread * 16) = uint4{0, 0, 0, 0};
  if (thread == 0) {
    for (int i = 0; i <= f.ahead; ++i) open_barrier(barriers + i);
    publish_barriers();
  }
  __syncthreads();
  for (int i = 0; i < f.ahead; ++i) {
    fetch(begin + i);
    if constexpr (kConverts) fill.end();
  }
  for (int i = 0; i < kFar; ++i) fetch_far(begin + f.ahead + i);

  const auto own_lane = static_cast<std::uint32_t>(lane * 16);
  const auto line = [&](std::uint32_t code) {  // the place and the lane in one instruction
    return *reinterpret_cast<const Pack<T>*>(shared + ((code & kPlaces) | own_lane));
  };
  T sum[kRows][kPack<T>] = {};
  int now = 0;  // place of the record
  unsigned parity = 0;
  for (std::int64_t t = begin; t < end; ++t) {
    wait_round(barriers + now, parity);
    __syncthreads();  // all are done with the tile and the record whose places are taken now
    fetch(t + f.ahead);
    fetch_far(t + f.ahead + kFar);

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
#pragma unroll 1
    for (std::uint32_t i = head & 0xffff; i < last; ++i) {
      const std::uint32_t late = i < kMostLate ? heads[kHeads + i] : schedule.rest[heads[kTurnWarps] + i];
      Pack<T> x{};
      if ((late >> kLateSlot & 3) == static_cast<std::uint32_t>(slot % 4)) x = line(late);
      add_to<kRows>(sum, static_cast<int>(late >> kLateRow & 15), x, one_of<T>(late, sums.sign));
    }

#pragma unroll
    for (int j = 0; j < kRows / 2; ++j) {
      const std::uint32_t word = words[j];
      add(sum[2 * j], line(word), one_of<T>(word << 31, sums.sign));
      add(sum[2 * j + 1], line(word >> kSecond), one_of<T>(word, sums.sign));
    }
    if constexpr (kConverts) fill.end();
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
  const Schedule schedule = make_schedule(exec, scratch, f);
  T* const spare = f.parts > 1 ? scratch.get<T>(f.parts * m * d) : out.data;
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
