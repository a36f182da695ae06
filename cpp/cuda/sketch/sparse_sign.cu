// S A and S^T B for sparse signs.
//
// S A by lists: any shape and strides, any number of signs. Where turns.cuh suits, sparse_sign_turns.cu is twice
// as fast: here the rows of a warp wait for the longest of their lists, which have about three entries each.
// n = 1e6, d = 256, m = 2048, 8 signs, float32. Floor: one read of A, 1 GB at 4.2 TB/s = 0.24 ms; 2e9 additions, each
// with one read of shared memory: 8.2 GB at 128 bytes a cycle and multiprocessor, 29 TB/s, = 0.28 ms, and lists and
// tables half as much again. Measured: 2.5 ms.
//
// A block of threads has the sums of 128 bytes of up to 1024 rows of S A in its registers: eight threads a row, 16
// bytes each, so that a read of a tile's row takes a whole cycle of shared memory and meets no conflict. Tiles of A
// and lists of what goes where come by asynchronous copies while the tile before is added. No atomics: each row of S A
// adds its rows of A in their order.
//
// S^T B, same sizes. Floor: one write, 0.24 ms; 2e9 additions from shared memory, where 64 bytes of all rows of B are,
// 0.28 ms, 0.42 ms with the conflicts of the two rows that are read at a time. To be reached: 0.6 ms.
#include <cstdint>

#include "sketch/lists.cuh"
#include "sketch/tiles.cuh"
#include "sketch/turns.cuh"

namespace quadric::cuda::sketch {
namespace {

constexpr int kThreads = kTurnThreads;
constexpr std::int64_t kSpare = 16;  // behind the records

template <class T>
inline constexpr int kWidth = kLine / static_cast<int>(sizeof(T));  // columns of a tile

// ---- S A -----------------------------------------------------------------------------------------------------------

template <class T>
struct Sums {
  const std::uint32_t* records;
  T* out;              // or sums of part p from out + p * size on
  bool add;            // to what is there
  std::int64_t parts;  // of the batch's tiles
  std::int64_t size;
};

template <class S, class T, int kRows>
__global__ void __launch_bounds__(kThreads, 1)
    sparse_sign_kernel(const Source<S> A, const Lists lists, const Batch batch, const Sums<T> sums) {
  extern __shared__ __align__(128) char shared[];
  const int tile_bytes = lists.tile * kLine, words = lists.words();
  std::uint32_t* const all_records = reinterpret_cast<std::uint32_t*>(shared + 2 * tile_bytes);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes, slot = thread / kLanes;
  // Chunks of the same tile are neighbours, so that all but one find it in the second-level cache.
  const std::int64_t chunk = blockIdx.x % batch.chunks, rest = blockIdx.x / batch.chunks;
  const std::int64_t columns = (A.cols + kWidth<T> - 1) / kWidth<T>;
  const std::int64_t column = rest % columns * kWidth<T>, part = rest / columns;
  const std::int64_t begin = batch.tiles * part / sums.parts, end = batch.tiles * (part + 1) / sums.parts;

  const auto fetch = [&](std::int64_t t, int buffer) {
    const std::uint32_t* const from = sums.records + (t * batch.chunks + chunk) * words;
    std::uint32_t* const to = all_records + buffer * words;
    for (int i = 4 * thread; i < words; i += 4 * kThreads) copy_async<16>(to + i, from + i);
    const std::int64_t global = batch.first_tile + t;
    fill_tile<kLanes, kThreads>(
        A, global * lists.tile, lists.count(global), column, shared + buffer * tile_bytes,
        [](int row) { return row * kLine; }, T());
  };

  T sum[kRows][kPack<T>] = {};
  if (begin < end) fetch(begin, 0);
  for (std::int64_t t = begin; t < end; ++t) {
    const int buffer = static_cast<int>((t - begin) % 2);
    wait_all_copies();
    __syncthreads();
    if (t + 1 < end) fetch(t + 1, 1 - buffer);  // all threads are done with what was there
    const std::uint32_t* const table = all_records + buffer * words + slot;
    // Volatile: each entry is to be read while the row of the one before is.
    const volatile std::uint32_t* const entries = all_records + buffer * words + lists.padded;
    const char* const tile = shared + buffer * tile_bytes + lane * 16;
    std::uint32_t span = table[0], entry = entries[span & 0xffff];
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const volatile std::uint32_t* next = entries + (span & 0xffff);
      int left = static_cast<int>(span >> 16);
      std::uint32_t now = entry;
      if (j + 1 < kRows) {
        span = table[kSlots * (j + 1)];
        entry = entries[span & 0xffff];
      }
      // Not unrolled: sixteen loops shall stay in the cache of instructions.
#pragma unroll 1
      for (; left > 0; --left) {
        const std::uint32_t following = *++next;  // one too many at the end: there is a word behind the last record
        const Pack<T> x = *reinterpret_cast<const Pack<T>*>(tile + (now << kLineShift));  // without its sign
        const T sign = unit<T>(now);
#pragma unroll
        for (int e = 0; e < kPack<T>; ++e) sum[j][e] += sign * x.at[e];
        now = following;
      }
    }
  }

  const std::int64_t global = batch.first_chunk + chunk, row0 = lists.first_row(global);
  const int rows = lists.count_rows(global);
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
    const int row = slot + kSlots * j;
    if (row >= rows) break;
    T* const to = sums.out + part * sums.size + (row0 + row) * A.cols;
#pragma unroll
    for (int e = 0; e < kPack<T>; ++e) {
      const std::int64_t at = column + lane * kPack<T> + e;
      if (at < A.cols) to[at] = sums.add ? to[at] + sum[j][e] : sum[j][e];
    }
  }
}

template <class S, class T, int kRows>
void launch(const Execution& exec, const Source<S>& A, const Lists& lists, const Batch& batch, const Sums<T>& sums) {
  const std::int64_t bytes = 2 * (lists.tile * kLine + 4 * lists.words()) + kSpare;
  const std::int64_t columns = ceil_div(A.cols, kWidth<T>);
  const auto kernel = sparse_sign_kernel<S, T, kRows>;
  allow_shared(kernel, bytes);
  kernel<<<grid_of(batch.chunks * columns * sums.parts), kThreads, static_cast<std::size_t>(bytes), stream(exec)>>>(
      A, lists, batch, sums);
  QUADRIC_CUDA_LAUNCHED();
}

template <class S, class T>
void add_signs(const Execution& exec, const Source<S>& A, const Place& place, std::int64_t nnz,
               const MatrixView<T>& out) {
  const std::int64_t m = out.rows, d = A.cols;
  const Lists lists(place.seed, A.rows, m, nnz, std::min<std::int64_t>(kTurnShared, shared_limit()) - kSpare);
  Scratch scratch(exec);
  std::uint32_t* const records = scratch.get<std::uint32_t>(words_of_batch(lists));
  const auto parts_of = [&](const Batch& batch) {
    // Batches with some of the chunks have enough blocks of threads.
    if (batch.chunks < lists.chunks) return std::int64_t{1};
    return count_parts(batch.chunks * ceil_div(d, kWidth<T>), batch.tiles, sums_in_tiles<T>(m, d));
  };
  std::int64_t most = 1;
  for_batches(lists, [&](const Batch& batch) { most = std::max(most, parts_of(batch)); });
  T* const spare = most > 1 ? scratch.get<T>(most * m * d) : nullptr;
  for_batches(lists, [&](const Batch& batch) {
    make_lists(exec, lists, place.first, batch, records);
    const std::int64_t parts = parts_of(batch);
    const Sums<T> sums{records, parts > 1 ? spare : out.data, parts == 1, parts, parts > 1 ? m * d : 0};
    switch (lists.padded / kSlots) {
      case 1:
        launch<S, T, 1>(exec, A, lists, batch, sums);
        break;
      case 2:
        launch<S, T, 2>(exec, A, lists, batch, sums);
        break;
      case 4:
        launch<S, T, 4>(exec, A, lists, batch, sums);
        break;
      case 8:
        launch<S, T, 8>(exec, A, lists, batch, sums);
        break;
      default:
        launch<S, T, 16>(exec, A, lists, batch, sums);
    }
    if (parts > 1) add_parts(exec, spare, parts, m * d, out.data);
  });
}

// ---- S^T B ---------------------------------------------------------------------------------------------------------

constexpr int kMostSigns = 64;  // in a column, for what follows
constexpr int kCodes = 4096;    // entries of S that are known at a time
constexpr int kRowThreads = 1024;

// kLanesOf threads for 16 bytes each of a row of out; B's columns are in shared memory, `columns` is how many of such
// tiles there are, and `packed` says that rows of out and B begin at multiples of 16 bytes.
template <class T, int kLanesOf>
__global__ void __launch_bounds__(kRowThreads, 1)
    rows_kernel(const MatrixView<const T> B, const Place place, const int nnz, const MatrixView<T> out,
                const std::int64_t columns, const bool packed) {
  extern __shared__ __align__(128) char shared[];
  constexpr int kBytes = kLanesOf * 16, kColumns = kLanesOf * kPack<T>;
  std::uint32_t* const codes = reinterpret_cast<std::uint32_t*>(shared);
  char* const own = shared + 4 * kCodes;
  const int thread = static_cast<int>(threadIdx.x), m = static_cast<int>(B.rows);
  const std::int64_t column = blockIdx.x % columns * kColumns, share = blockIdx.x / columns,
                     shares = gridDim.x / columns, block = B.rows / nnz;
  for (int i = thread; i < m * kLanesOf; i += kRowThreads) {
    Pack<T> pack;
    const std::int64_t from = column + i % kLanesOf * kPack<T>;
#pragma unroll
    for (int e = 0; e < kPack<T>; ++e)
      pack.at[e] = from + e < B.cols ? B.data[i / kLanesOf * B.row_stride + (from + e) * B.col_stride] : T(0);
    *reinterpret_cast<Pack<T>*>(own + i / kLanesOf * kBytes + i % kLanesOf * 16) = pack;
  }
  const int batch = kCodes / nnz;
  const std::int64_t batches = (out.rows + batch - 1) / batch;
  for (std::int64_t b = batches * share / shares; b < batches * (share + 1) / shares; ++b) {
    const std::int64_t first = b * batch;
    const int count = out.rows - first < batch ? static_cast<int>(out.rows - first) : batch;
    const std::uint64_t word =
        (static_cast<std::uint64_t>(place.first) + static_cast<std::uint64_t>(first)) * static_cast<std::uint64_t>(nnz);
    const int before = static_cast<int>(word % 4), groups = (before + count * nnz + 3) / 4;
    __syncthreads();  // B is there, the codes before are used
    for (int g = thread; g < groups; g += kRowThreads) {
      const random::Words words = random::block_of_words(place.seed, static_cast<std::uint32_t>(Draw::sparse_sign),
                                                         word / 4 + static_cast<std::uint64_t>(g));
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int at = 4 * g + e - before;
        if (at < 0 || at >= count * nnz) continue;
        const std::int64_t row = at % nnz * block + row_of(words.at[e], block);
        codes[at] = static_cast<std::uint32_t>(row * kBytes) | words.at[e] << 31;
      }
    }
    __syncthreads();
    for (int i = thread; i < count * kLanesOf; i += kRowThreads) {
      const std::uint32_t* const code = codes + i / kLanesOf * nnz;
      const char* const from = own + i % kLanesOf * 16;
      T sum[kPack<T>] = {};
#pragma unroll 4
      for (int k = 0; k < nnz; ++k) {
        const Pack<T> x = *reinterpret_cast<const Pack<T>*>(from + (code[k] & 0x7fffffffu));
        const T sign = unit<T>(code[k]);
#pragma unroll
        for (int e = 0; e < kPack<T>; ++e) sum[e] += sign * x.at[e];
      }
      const std::int64_t at = column + i % kLanesOf * kPack<T>;
      T* const to = out.data + (first + i / kLanesOf) * out.cols + at;
      if (packed && at + kPack<T> <= out.cols) {
        Pack<T> pack;
#pragma unroll
        for (int e = 0; e < kPack<T>; ++e) pack.at[e] = sum[e];
        *reinterpret_cast<Pack<T>*>(to) = pack;
        continue;
      }
#pragma unroll
      for (int e = 0; e < kPack<T>; ++e)
        if (at + e < out.cols) to[e] = sum[e];
    }
  }
}

// An entry of out a thread, with B from the caches: for many signs in a column, and for a B of many rows.
template <class T>
__global__ void __launch_bounds__(kThreads)
    entries_kernel(const MatrixView<const T> B, const Place place, const std::int64_t nnz, const MatrixView<T> out) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads, size = out.rows * out.cols;
  const std::int64_t block = B.rows / nnz;
  for (std::int64_t u = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; u < size; u += step) {
    const std::int64_t i = u / out.cols, j = u % out.cols;
    const std::uint64_t first = static_cast<std::uint64_t>(place.first + i) * static_cast<std::uint64_t>(nnz);
    T sum = 0;
    for (std::uint64_t group = first / 4; 4 * group < first + static_cast<std::uint64_t>(nnz); ++group) {
      const random::Words words =
          random::block_of_words(place.seed, static_cast<std::uint32_t>(Draw::sparse_sign), group);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const std::uint64_t number = 4 * group + static_cast<std::uint64_t>(e);
        if (number < first || number >= first + static_cast<std::uint64_t>(nnz)) continue;
        const std::int64_t row = static_cast<std::int64_t>(number - first) * block + row_of(words.at[e], block);
        sum += unit<T>(words.at[e] << 31) * B.data[row * B.row_stride + j * B.col_stride];
      }
    }
    out.data[u] = sum;
  }
}

template <class T, int kLanesOf>
void launch_rows(const Execution& exec, const MatrixView<const T>& B, const Place& place, int nnz,
                 const MatrixView<T>& out) {
  const std::int64_t bytes = 4 * kCodes + B.rows * kLanesOf * 16;
  const std::int64_t columns = ceil_div(out.cols, kLanesOf * kPack<T>), batches = ceil_div(out.rows, kCodes / nnz);
  // Any number of shares gives the same bits.
  const std::int64_t shares = std::min(batches, std::max<std::int64_t>(1, multiprocessors() / columns));
  const bool packed = aligned(out.data, 16) && out.cols % kPack<T> == 0;
  const auto kernel = rows_kernel<T, kLanesOf>;
  allow_shared(kernel, bytes);
  kernel<<<grid_of(columns * shares), kRowThreads, static_cast<std::size_t>(bytes), stream(exec)>>>(B, place, nnz, out,
                                                                                                    columns, packed);
  QUADRIC_CUDA_LAUNCHED();
}

template <class T>
bool contiguous(const MatrixView<T>& a) {
  return a.empty() || ((a.cols == 1 || a.col_stride == 1) && (a.rows == 1 || a.row_stride == a.cols));
}

}  // namespace

template <class T>
void sparse_sign(const Execution& exec, const StoredMatrix& A, Place place, std::int64_t nnz, MatrixView<T> out) {
  check_signs(out.rows, nnz, place);
  QUADRIC_REQUIRE(out.cols == A.cols, "out must have the columns of A");
  QUADRIC_REQUIRE(contiguous(out), "out must be contiguous");
  if (A.empty() || out.rows == 0) return;
  with_source<T>(A, [&](const auto& from) {
    if (Turns::suit(from, out.rows, nnz))  // by the shape and the layout of A alone
      add_signs_in_turns(exec, from, place, nnz, out);
    else
      add_signs(exec, from, place, nnz, out);
  });
}

template <class T>
void sparse_sign_rows(const Execution& exec, MatrixView<const T> B, Place place, std::int64_t nnz, MatrixView<T> out) {
  check_signs(B.rows, nnz, place);
  QUADRIC_REQUIRE(out.cols == B.cols, "out must have the columns of B");
  QUADRIC_REQUIRE(contiguous(out), "out must be contiguous");
  if (out.empty()) return;
  QUADRIC_REQUIRE(B.rows > 0, "B must have rows");
  const std::int64_t room = (std::min<std::int64_t>(kTurnShared, shared_limit()) - 4 * kCodes) / B.rows;  // bytes a row
  const std::int64_t wide = B.cols * static_cast<std::int64_t>(sizeof(T));
  if (nnz > kMostSigns || room < 16) {
    const auto grid = static_cast<unsigned>(std::min<std::int64_t>(ceil_div(out.rows * out.cols, kThreads), 1 << 16));
    entries_kernel<T><<<grid, kThreads, 0, stream(exec)>>>(B, place, nnz, out);
    QUADRIC_CUDA_LAUNCHED();
    return;
  }
  const auto signs = static_cast<int>(nnz);
  if (room >= 128 && wide > 64) return launch_rows<T, 8>(exec, B, place, signs, out);
  if (room >= 64 && wide > 32) return launch_rows<T, 4>(exec, B, place, signs, out);
  if (room >= 32 && wide > 16) return launch_rows<T, 2>(exec, B, place, signs, out);
  launch_rows<T, 1>(exec, B, place, signs, out);
}

#define QUADRIC_INSTANTIATE(T)                                                                                      \
  template QUADRIC_API void sparse_sign(const Execution&, const StoredMatrix&, Place, std::int64_t, MatrixView<T>); \
  template QUADRIC_API void sparse_sign_rows(const Execution&, MatrixView<const T>, Place, std::int64_t, MatrixView<T>);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::sketch
