// S A for sparse signs and sparse A.
//
// Floor: A once for each sign, 12 bytes an entry, from the second-level cache: n = 1e6 rows of 10 entries with 8 signs
// each, 1 GB at 5.5 TB/s = 0.2 ms. But rows are short, and each is a chain of three reads, of which two are made for 32
// rows at a time: 8e6 rows by 9000 warps in about 0.5 us each = 0.5 ms. To be reached: 1 ms.
//
// A warp has one row of S A in shared memory, so that nothing is added by two warps, and takes its rows of A in order.
#include <cstdint>

#include "sketch/lists.cuh"
#include "sketch/tiles.cuh"
#include "sketch/warp_rows.cuh"

namespace quadric::cuda::sketch {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kWindowBytes = 8192;            // of a row of S A at a time
constexpr std::int64_t kManyWarps = 1 << 13;  // that fill any device
constexpr unsigned kAll = 0xffffffffu;

template <class T>
struct Sums {
  const std::uint32_t* records;
  std::int64_t row, rows;  // of S A: the first one and how many
  std::int64_t d, windows;
  int window;  // columns
  T* out;      // or sums of part p from out + p * size on
  bool add;    // to what is there
  std::int64_t parts, size;
};

// sums += +-(entries [begin, end) of A) that are in `width` columns from `column` on.
template <class T, class Index>
__device__ __forceinline__ void add_row(const SparseRows<T, Index>& A, std::int64_t begin, std::int64_t end,
                                        std::uint32_t sign, std::int64_t column, int width, T* sums) {
  for (std::int64_t e = begin; e < end; e += 32) {
    const std::int64_t at = e + threadIdx.x % 32;
    std::int64_t to = -1;
    T value = 0;
    if (at < end) {
      to = static_cast<std::int64_t>(A.columns[at]) - column;
      if (to < 0 || to >= width) to = -1;
      value = flipped(A.values[at], sign);
    }
    add_entries(sums, to, value);
  }
}

template <class T, class Index>
__global__ void __launch_bounds__(kThreads)
    csr_kernel(const SparseRows<T, Index> A, const Lists lists, const Batch batch, const Sums<T> f) {
  extern __shared__ __align__(16) char shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t task = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  if (task >= f.rows * f.windows * f.parts) return;  // the whole warp
  const std::int64_t row = f.row + task % f.rows, rest = task / f.rows;
  const std::int64_t column = rest % f.windows * f.window, part = rest / f.windows;
  const int width = f.d - column < f.window ? static_cast<int>(f.d - column) : f.window;
  const std::int64_t chunk = lists.chunk_of(row), local = row - lists.first_row(chunk);
  T* const sums = reinterpret_cast<T*>(shared) + warp * f.window;
  for (int j = lane; j < width; j += 32) sums[j] = 0;
  __syncwarp();
  const std::int64_t begin = batch.tiles * part / f.parts, end = batch.tiles * (part + 1) / f.parts;
  for (std::int64_t t0 = begin; t0 < end; t0 += 32) {
    const auto record_of = [&](std::int64_t t) {
      return f.records + (t * batch.chunks + chunk - batch.first_chunk) * lists.words();
    };
    const std::uint32_t spans = t0 + lane < end ? record_of(t0 + lane)[local] : 0;
    for (int turn = 0; turn < 32 && t0 + turn < end; ++turn) {
      const std::uint32_t span = __shfl_sync(kAll, spans, turn);
      const std::uint32_t* const entries = record_of(t0 + turn) + lists.padded + (span & 0xffff);
      const int count = static_cast<int>(span >> 16);
      const std::int64_t first = (batch.first_tile + t0 + turn) * lists.tile;
      for (int e = 0; e < count; e += 32) {
        std::uint32_t entry = 0;
        std::int64_t from = 0, to = 0;
        if (e + lane < count) {
          entry = entries[e + lane];
          const std::int64_t i = first + (entry & 0x7fffffffu);
          from = static_cast<std::int64_t>(A.starts[i]);
          to = static_cast<std::int64_t>(A.starts[i + 1]);
        }
        for (int u = 0; u < 32 && e + u < count; ++u)
          add_row(A, __shfl_sync(kAll, from, u), __shfl_sync(kAll, to, u), __shfl_sync(kAll, entry, u), column, width,
                  sums);
      }
    }
  }
  T* const to = f.out + part * f.size + row * f.d + column;
  for (int j = lane; j < width; j += 32) to[j] = f.add ? to[j] + sums[j] : sums[j];
}

}  // namespace

template <class T, class Index>
void sparse_sign_csr(const Execution& exec, const SparseRows<T, Index>& A, Place place, std::int64_t nnz,
                     MatrixView<T> out) {
  const std::int64_t m = out.rows, d = out.cols;
  check_signs(m, nnz, place);
  if (A.rows == 0 || out.empty()) return;
  const Lists lists(place.seed, A.rows, m, nnz, 232448);
  Scratch scratch(exec);
  std::uint32_t* const records = scratch.get<std::uint32_t>(words_of_batch(lists));
  constexpr std::int64_t kWindow = kWindowBytes / static_cast<std::int64_t>(sizeof(T));
  Sums<T> f{};
  f.records = records;
  f.d = d;
  f.window = static_cast<int>(std::min(d, kWindow));
  f.windows = ceil_div(d, f.window);
  const auto parts_of = [&](const Batch& batch) {
    if (batch.chunks < lists.chunks) return std::int64_t{1};
    return std::clamp<std::int64_t>(kManyWarps / (m * f.windows), 1, batch.tiles);
  };
  std::int64_t most = 1;
  for_batches(lists, [&](const Batch& batch) { most = std::max(most, parts_of(batch)); });
  T* const spare = most > 1 ? scratch.get<T>(most * m * d) : nullptr;
  const std::int64_t bytes = kWarps * f.window * static_cast<std::int64_t>(sizeof(T));
  const auto kernel = csr_kernel<T, Index>;
  allow_shared(kernel, bytes);
  for_batches(lists, [&](const Batch& batch) {
    make_lists(exec, lists, place.first, batch, records);
    const std::int64_t last = batch.first_chunk + batch.chunks - 1;
    f.row = lists.first_row(batch.first_chunk);
    f.rows = lists.first_row(last) + lists.count_rows(last) - f.row;
    f.parts = parts_of(batch);
    f.add = f.parts == 1;
    f.out = f.add ? out.data : spare;
    f.size = f.add ? 0 : m * d;
    kernel<<<grid_of(ceil_div(f.rows * f.windows * f.parts, kWarps)), kThreads, static_cast<std::size_t>(bytes),
             stream(exec)>>>(A, lists, batch, f);
    QUADRIC_CUDA_LAUNCHED();
    if (!f.add) add_parts(exec, spare, f.parts, m * d, out.data);
  });
}

#define QUADRIC_INSTANTIATE(T)                                                                                         \
  template QUADRIC_API void sparse_sign_csr(const Execution&, const SparseRows<T, std::int32_t>&, Place, std::int64_t, \
                                            MatrixView<T>);                                                            \
  template QUADRIC_API void sparse_sign_csr(const Execution&, const SparseRows<T, std::int64_t>&, Place, std::int64_t, \
                                            MatrixView<T>);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::sketch
