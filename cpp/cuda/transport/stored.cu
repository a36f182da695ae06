// A pass of Sinkhorn's iteration over a stored cost: row sums, and then column sums with the new scalings of the rows,
// from one read.
//
// Floor: one read of C at 4.2 TB/s; float32 n = 10 000: 95 us, n = 20 000: 380 us, float64 n = 10 000: 190 us. To be
// reached: 85 %. A row takes 18 bytes a cycle and multiprocessor; in float32 an entry costs two operations on its way
// to the exponential, one of 16 exponentials a cycle, and two more: 0.3 of the time that its bytes take. In float64 it
// is 18 operations at 64 a cycle: 0.65 of it, which leaves less room for the waits between the stages of a row.
//
// A block of threads, or a cluster of 2, 4 or 8 of them for wide rows, walks the rows of a slot, a few at once. Each
// thread owns columns: it copies their costs to shared memory for itself, three rows ahead, and nobody else reads them,
// so that no barrier is needed for the data. As soon as costs have been read, those of a later row are asked for in
// their place: memory is to be busy while exponentials are computed, too. The exponentials of a row stay in registers
// between the two sums, as the sums of columns do all along.
#include <cooperative_groups.h>

#include <algorithm>
#include <cstdint>

#include "require.hpp"
#include "transport/pass.cuh"

namespace quadric::cuda::transport {
namespace {

template <class T>
inline constexpr int kLanes = 16 / static_cast<int>(sizeof(T));  // entries of 16 bytes

template <class T>
struct alignas(16) Vector {
  T x[kLanes<T>];
};

// 16 bytes, or one entry where rows are not aligned.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  const auto shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(from), "n"(kBytes) : "memory");
}
// To where `used` was read from, not before. Other accesses may be moved across it: nothing waits for this place before
// wait_for_copies.
template <class T>
__device__ __forceinline__ void replace_async(Vector<T>* to, const T* from, const Vector<T>& used) {
  const auto shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (sizeof(T) == 4)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from), "f"(used.x[0]), "f"(used.x[1]),
                 "f"(used.x[2]), "f"(used.x[3]));
  else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from), "d"(used.x[0]), "d"(used.x[1]));
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All but the last `kPending` groups of this thread have arrived.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ char* dynamic_shared() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

// The blocks of a cluster, or the one block where there is no cluster.
template <int kRanks>
struct Team {
  static __device__ __forceinline__ int rank() {
    if constexpr (kRanks == 1) return 0;
    return static_cast<int>(cooperative_groups::this_cluster().block_rank());
  }
  static __device__ __forceinline__ void sync() {
    if constexpr (kRanks == 1)
      __syncthreads();
    else
      cooperative_groups::this_cluster().sync();
  }
  // The same place in the shared memory of another block.
  template <class U>
  static __device__ __forceinline__ U* of(U* mine, int rank) {
    if constexpr (kRanks == 1) return mine;
    return cooperative_groups::this_cluster().map_shared_rank(mine, rank);
  }
};

// kThreads x kVectors x 16 bytes of a row in each of kRanks blocks, kRows rows at once, kStages of them in flight.
// kShare blocks are to share a multiprocessor.
template <class T_, int kThreads_, int kVectors_, int kRows_, int kStages_, int kRanks_, int kShare_>
struct Shape {
  using T = T_;
  static constexpr int kThreads = kThreads_, kVectors = kVectors_, kRows = kRows_, kStages = kStages_, kRanks = kRanks_,
                       kShare = kShare_, kWarps = kThreads / 32, kPieces = kThreads * kVectors,
                       kEach = (kRows + kWarps - 1) / kWarps;  // rows of a step that a warp relaxes
  static_assert(kStages >= kRows, "a row's copies are waited for in order");
  // Whether the copies of rows that are worked on at once are one group; else each row is one.
  static constexpr bool kTogether = kStages % kRows == 0;
  static constexpr int kPending = kTogether ? kStages / kRows - 1 : kStages - kRows;  // groups that may be on the way
  // Rows whose place is filled again as it is read; in double that costs registers that the exponentials need.
  static constexpr int kEarly = sizeof(T) == 8 ? 0 : kTogether ? kRows : 1;

  struct Shared {
    Vector<T> ring[kStages][kPieces];  // of costs
    Vector<T> G[kPieces], weight[kPieces];
    T parts[kRanks * kWarps][kRows];  // of a sum or a maximum over a row; in the first block
    T u[kRows];
    T shift[kRows];
    int again[kRows];
  };
};

__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

template <class S>
class Worker {
  using T = typename S::T;
  using At = Team<S::kRanks>;
  static constexpr int kL = kLanes<T>;

 public:
  __device__ __forceinline__ Worker(const Pass<T>& pass, bool aligned, std::int64_t problem, std::int64_t slot)
      : pass_(pass),
        shared_(*reinterpret_cast<typename S::Shared*>(dynamic_shared())),
        problem_(problem),
        slot_(slot),
        begin_(pass.cost.n * slot / pass.slots),
        rows_(static_cast<int>(pass.cost.n * (slot + 1) / pass.slots - begin_)),
        thread_(static_cast<int>(threadIdx.x)),
        aligned_(aligned) {
    const std::int64_t m = pass.cost.m, pieces = (m + kL - 1) / kL;
    const std::int64_t each = (pieces + S::kRanks - 1) / S::kRanks, first = each * At::rank();
    first_ = first * kL;
    end_ = (first + each) * kL < m ? (first + each) * kL : m;
    costs_ = pass.cost.M + problem * pass.cost.M_problem + begin_ * pass.cost.M_row;
    const int whole = static_cast<int>(end_ > first_ ? end_ - first_ : 0) / kL;
    whole_ = aligned ? (whole > thread_ ? whole - thread_ + S::kThreads - 1 : 0) / S::kThreads : 0;
  }

  __device__ __forceinline__ void run() {
    const Flags flags = pass_.flags[problem_];
    if (flags.active == 0) return;  // all blocks of a cluster alike
    rebase_ = flags.rebase != 0;
    omega_ = pass_.omega[problem_];
    factor_ = static_cast<T>(-pass_.kappa);
    const Vector<T> zero{};
    if constexpr (S::kRanks > 1) At::sync();  // the others are there
#pragma unroll
    for (int s = 0; s < S::kStages; ++s) {
      // What lies beyond the columns is never copied.
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v)
        if (column(v) + kL > end_) shared_.ring[s][piece(v)] = zero;
      fetch(s, s);
      if (!S::kTogether || s % S::kRows == S::kRows - 1) commit_copies();
    }
    const std::int64_t side = (problem_ * 4 + flags.slot) * pass_.width;
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
      Vector<T> G, weight = zero;
#pragma unroll
      for (int q = 0; q < kL; ++q) G.x[q] = -static_cast<T>(INFINITY);
      if (column(v) < end_) {
        G = *reinterpret_cast<const Vector<T>*>(pass_.G + side + column(v));
        weight = *reinterpret_cast<const Vector<T>*>(pass_.weight + side + column(v));
      }
      shared_.G[piece(v)] = G;
      shared_.weight[piece(v)] = weight;
    }
    Vector<T> columns[S::kVectors] = {};
    int stage = 0;  // of row k
    for (int k = 0; k < rows_; k += S::kRows) {
      step(k, stage, columns);
      stage = (stage + S::kRows) % S::kStages;
    }
    T* const out = pass_.partial + (problem_ * pass_.slots + slot_) * pass_.width;
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v)
      if (column(v) < end_) *reinterpret_cast<Vector<T>*>(out + column(v)) = columns[v];
    // Nobody leaves while another block of the cluster may still write here.
    if constexpr (S::kRanks > 1) At::sync();
  }

 private:
  __device__ __forceinline__ int piece(int v) const { return v * S::kThreads + thread_; }
  __device__ __forceinline__ std::int64_t column(int v) const {
    return first_ + static_cast<std::int64_t>(piece(v)) * kL;
  }

  // Row k of the slot goes to a stage of the ring; nothing does for rows beyond the last.
  __device__ __forceinline__ void fetch(int k, int stage) {
    if (k < rows_) {
      const T* const from = costs_ + k * pass_.cost.M_row;
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v) {
        const std::int64_t j = column(v);
        T* const to = shared_.ring[stage][piece(v)].x;
        if (v < whole_) {
          copy_async<16>(to, from + j);
        } else {
#pragma unroll
          for (int q = 0; q < kL; ++q)
            if (j + q < end_) copy_async<sizeof(T)>(to + q, from + j + q);
        }
      }
    }
  }

  // What of that row is less than a piece; the others have been asked for.
  __device__ __forceinline__ void fetch_end(int k, int stage) {
    if (k >= rows_ || (aligned_ && end_ % kL == 0)) return;
    const T* const from = costs_ + k * pass_.cost.M_row;
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
      const std::int64_t j = column(v);
      if (v < whole_) continue;
#pragma unroll
      for (int q = 0; q < kL; ++q)
        if (j + q < end_) copy_async<sizeof(T)>(shared_.ring[stage][piece(v)].x + q, from + j + q);
    }
  }

  // Rows k to k + kRows, which have arrived, or will have.
  __device__ __forceinline__ void step(int k, int stage, Vector<T> (&columns)[S::kVectors]) {
    const int warp = thread_ / 32, lane = thread_ % 32;
    // The row that this thread relaxes, if it does.
    const int own = warp + lane * S::kWarps;
    const bool relaxes = At::rank() == 0 && lane < S::kEach && own < S::kRows && k + own < rows_;
    RowInputs inputs;
    if (relaxes) inputs = load_row(pass_, problem_, begin_ + k + own);
    T shift[S::kRows];
#pragma unroll
    for (int r = 0; r < S::kRows; ++r)
      shift[r] = k + r < rows_ && !rebase_ ? pass_.shift[problem_ * pass_.cost.n + begin_ + k + r] : T(0);
    wait_for_copies<S::kPending>();

    Vector<T> e[S::kRows][S::kVectors];
    T sum[S::kRows] = {};
    if (rebase_) {
      T largest[S::kRows];
#pragma unroll
      for (int r = 0; r < S::kRows; ++r) largest[r] = -static_cast<T>(INFINITY);
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v) {
        const Vector<T> G = shared_.G[piece(v)];
#pragma unroll
        for (int r = 0; r < S::kRows; ++r)
          exponents(shared_.ring[(stage + r) % S::kStages][piece(v)], G, e[r][v], largest[r]);
      }
      find_shifts(largest, shift);
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v) {
        const Vector<T> weight = shared_.weight[piece(v)];
#pragma unroll
        for (int r = 0; r < S::kRows; ++r) raise(weight, shift[r], e[r][v], sum[r]);
      }
    } else {
      const T* ahead[S::kEarly > 0 ? S::kEarly : 1];  // the rows that follow in the same places
      int early[S::kEarly > 0 ? S::kEarly : 1];       // pieces that there are
#pragma unroll
      for (int r = 0; r < S::kEarly; ++r) {
        ahead[r] = costs_ + (k + r + S::kStages) * pass_.cost.M_row + column(0);
        early[r] = k + r + S::kStages < rows_ ? whole_ : 0;
      }
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v) {
        const Vector<T> G = shared_.G[piece(v)], weight = shared_.weight[piece(v)];
#pragma unroll
        for (int r = 0; r < S::kRows; ++r) {
          Vector<T>* const place = &shared_.ring[(stage + r) % S::kStages][piece(v)];
          const Vector<T> cost = *place;
          if (r < S::kEarly && v < early[r]) replace_async(place, ahead[r] + v * S::kThreads * kL, cost);
#pragma unroll
          for (int q = 0; q < kL; ++q) {
            const T x = power(fma(cost.x[q], factor_, G.x[q]), shift[r]);
            e[r][v].x[q] = x;
            sum[r] += x * weight.x[q];
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      const int place = (stage + r) % S::kStages;
      if (r >= S::kEarly || rebase_)
        fetch(k + r + S::kStages, place);
      else
        fetch_end(k + r + S::kStages, place);
      if (!S::kTogether || r == S::kRows - 1) commit_copies();
    }

    gather(sum);
    if (At::rank() == 0 && warp < S::kRows) {
      double total = 0;
#pragma unroll
      for (int each = 0; each < S::kEach; ++each) {
        const double found = warp + each * S::kWarps < S::kRows ? add_parts(warp + each * S::kWarps) : 0.0;
        total = lane == each ? found : total;
      }
      if (relaxes) {
        const bool again = !rebase_ && outside<T>(total);
        T u = 0;
        if (!again) u = relax_row(pass_, problem_, begin_ + k + own, inputs, omega_, total, pick(shift, own), rebase_);
#pragma unroll
        for (int rank = 0; rank < S::kRanks; ++rank) {
          At::of(shared_.u, rank)[own] = u;
          At::of(shared_.again, rank)[own] = again ? 1 : 0;
        }
      }
    }
    At::sync();
    bool again = false;
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      if (k + r >= rows_) break;
      if (shared_.again[r] != 0) {
        again = true;
        continue;
      }
      add(shared_.u[r], e[r], columns);
    }
    if (!again) return;
#pragma unroll 1
    for (int r = 0; r < S::kRows && k + r < rows_; ++r)
      if (shared_.again[r] != 0) redo(k + r, r, columns);
  }

  __device__ __forceinline__ void add(T u, const Vector<T> (&e)[S::kVectors], Vector<T> (&columns)[S::kVectors]) {
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
#pragma unroll
      for (int q = 0; q < kL; ++q) columns[v].x[q] = fma(u, e[v].x[q], columns[v].x[q]);
    }
  }

  __device__ __forceinline__ void exponents(const Vector<T>& cost, const Vector<T>& G, Vector<T>& t, T& largest) {
#pragma unroll
    for (int q = 0; q < kL; ++q) {
      t.x[q] = fma(cost.x[q], factor_, G.x[q]);
      largest = larger(largest, t.x[q]);
    }
  }
  // t becomes e.
  __device__ __forceinline__ void raise(const Vector<T>& weight, T shift, Vector<T>& t, T& sum) {
#pragma unroll
    for (int q = 0; q < kL; ++q) {
      t.x[q] = power(t.x[q], shift);
      sum += t.x[q] * weight.x[q];
    }
  }

  // Values of each row from all warps to the first block. Everybody waits.
  template <bool kMaximum = false, int kCount>
  __device__ __forceinline__ void gather(T (&value)[kCount]) {
    T* const parts = At::of(&shared_.parts[0][0], 0) + (At::rank() * S::kWarps + thread_ / 32) * S::kRows;
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {
        const T other = __shfl_xor_sync(0xffffffffu, value[r], step);
        value[r] = kMaximum ? larger(value[r], other) : value[r] + other;
      }
      if (thread_ % 32 == 0) parts[r] = value[r];
    }
    At::sync();
  }

  // By one warp of the first block: the sum for row r, the same in all lanes.
  __device__ __forceinline__ double add_parts(int r) const {
    double total = 0;
    for (int part = thread_ % 32; part < S::kRanks * S::kWarps; part += 32)
      total += static_cast<double>(shared_.parts[part][r]);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
    return total;
  }

  // Rows relative to their largest exponents.
  template <int kCount>
  __device__ __forceinline__ void find_shifts(T (&largest)[kCount], T (&shift)[kCount]) {
    gather<true>(largest);
    if (At::rank() == 0) {
      for (int r = thread_ / 32; r < kCount; r += S::kWarps) {
        T most = -static_cast<T>(INFINITY);
        for (int part = thread_ % 32; part < S::kRanks * S::kWarps; part += 32)
          most = larger(most, shared_.parts[part][r]);
#pragma unroll
        for (int step = 16; step > 0; step /= 2) most = larger(most, __shfl_xor_sync(0xffffffffu, most, step));
        if (thread_ % 32 == 0)
          for (int rank = 0; rank < S::kRanks; ++rank) At::of(shared_.shift, rank)[r] = -rint(most);
      }
    }
    At::sync();
#pragma unroll
    for (int r = 0; r < kCount; ++r) shift[r] = shared_.shift[r];
  }

  // Row k anew, relative to its largest entry, from memory: its place in the ring is taken. Rare.
  __device__ __forceinline__ void redo(int k, int r, Vector<T> (&columns)[S::kVectors]) {
    Vector<T> e[S::kVectors];
    T largest[1] = {-static_cast<T>(INFINITY)}, shift[1], sum[1] = {};
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
      Vector<T> cost{};
#pragma unroll
      for (int q = 0; q < kL; ++q)
        if (column(v) + q < end_) cost.x[q] = costs_[k * pass_.cost.M_row + column(v) + q];
      exponents(cost, shared_.G[piece(v)], e[v], largest[0]);
    }
    find_shifts(largest, shift);
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) raise(shared_.weight[piece(v)], shift[0], e[v], sum[0]);
    gather(sum);
    if (At::rank() == 0 && thread_ < 32) {
      const double total = add_parts(0);
      if (thread_ == 0) {
        const std::int64_t i = begin_ + k;
        const T u = relax_row(pass_, problem_, i, load_row(pass_, problem_, i), omega_, total, shift[0], false);
        for (int rank = 0; rank < S::kRanks; ++rank) At::of(shared_.u, rank)[r] = u;
      }
    }
    At::sync();
    add(shared_.u[r], e, columns);
  }

  // x[i] without an index that would send the array to local memory.
  static __device__ __forceinline__ T pick(const T (&x)[S::kRows], int i) {
    T value = x[0];
#pragma unroll
    for (int r = 1; r < S::kRows; ++r) value = i == r ? x[r] : value;
    return value;
  }

  const Pass<T>& pass_;
  typename S::Shared& shared_;
  const std::int64_t problem_, slot_, begin_;
  const int rows_, thread_;
  const bool aligned_;
  std::int64_t first_, end_;  // columns of this block
  const T* costs_;            // from row begin_ on
  bool rebase_ = false;
  double omega_ = 1;
  T factor_ = 0;
  int whole_;  // pieces of this thread that are copied as such
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kShare)
    pass_kernel(const __grid_constant__ Pass<typename S::T> pass, const bool aligned) {
  const std::int64_t unit = static_cast<std::int64_t>(blockIdx.x) / S::kRanks;
  Worker<S>(pass, aligned, unit / pass.slots, unit % pass.slots).run();
}

template <class S>
void launch(const Execution& exec, const Pass<typename S::T>& pass) {
  using T = typename S::T;
  static_assert(sizeof(typename S::Shared) <= 227 * 1024, "more than a block may have");
  const Batch<T>& cost = pass.cost;
  const std::int64_t blocks = cost.problems * pass.slots * S::kRanks;
  QUADRIC_REQUIRE(blocks < std::int64_t{1} << 31, "M has too many problems for one call");
  const bool aligned = reinterpret_cast<std::uintptr_t>(cost.M) % 16 == 0 && cost.M_row % kLanes<T> == 0 &&
                       (cost.problems == 1 || cost.M_problem % kLanes<T> == 0);
  constexpr auto kShared = sizeof(typename S::Shared);
  if (kShared > 48 * 1024)
    QUADRIC_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(&pass_kernel<S>),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kShared)));
  if constexpr (S::kRanks == 1) {
    pass_kernel<S><<<static_cast<unsigned>(blocks), S::kThreads, kShared, stream(exec)>>>(pass, aligned);
  } else {
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = S::kRanks;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(S::kThreads);
    config.dynamicSmemBytes = kShared;
    config.stream = stream(exec);
    config.attrs = &cluster;
    config.numAttrs = 1;
    QUADRIC_CUDA(cudaLaunchKernelEx(&config, &pass_kernel<S>, pass, aligned));
  }
  QUADRIC_CUDA_LAUNCHED();
}

// ---- rows that are too wide for a cluster: two reads ---------------------------------------------------------------

constexpr int kWide = 256;  // threads

// u_i and the shifts that it is for. A block for each row.
template <class T>
__global__ void __launch_bounds__(kWide)
    wide_rows_kernel(const __grid_constant__ Pass<T> pass, T* __restrict__ u, T* __restrict__ shifts) {
  __shared__ double parts[kWide / 32];
  const std::int64_t n = pass.cost.n, m = pass.cost.m, p = blockIdx.x / n, i = blockIdx.x % n;
  const Flags flags = pass.flags[p];
  if (flags.active == 0) return;
  const T* const cost = pass.cost.M + p * pass.cost.M_problem + i * pass.cost.M_row;
  const T* const G = pass.G + (p * 4 + flags.slot) * pass.width;
  const T* const weight = pass.weight + (p * 4 + flags.slot) * pass.width;
  const T factor = static_cast<T>(-pass.kappa);
  T shift = pass.shift[p * n + i];
  // The sum or the largest of what the threads have, in all threads.
  const auto reduce = [&](double x, bool sum) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      const double other = __shfl_xor_sync(0xffffffffu, x, step);
      x = sum ? x + other : fmax(x, other);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = parts[0];
    for (int warp = 1; warp < kWide / 32; ++warp) x = sum ? x + parts[warp] : fmax(x, parts[warp]);
    return x;
  };
  double total = 0;
  for (bool anew = flags.rebase != 0;; anew = true) {
    if (anew) {
      T most = -static_cast<T>(INFINITY);
      for (std::int64_t j = threadIdx.x; j < m; j += kWide) most = larger(most, fma(cost[j], factor, G[j]));
      shift = static_cast<T>(-rint(reduce(static_cast<double>(most), false)));
    }
    double sum = 0;
    for (std::int64_t j = threadIdx.x; j < m; j += kWide)
      sum += static_cast<double>(power(fma(cost[j], factor, G[j]), shift) * weight[j]);
    total = reduce(sum, true);
    if (anew || !outside<T>(total)) break;
  }
  if (threadIdx.x != 0) return;
  shifts[p * n + i] = shift;
  u[p * n + i] = relax_row(pass, p, i, total, shift, flags.rebase != 0);
}

// A block for a slot and kWide columns.
template <class T>
__global__ void __launch_bounds__(kWide)
    wide_columns_kernel(const __grid_constant__ Pass<T> pass, const T* __restrict__ u, const T* __restrict__ shifts) {
  const std::int64_t n = pass.cost.n, m = pass.cost.m, tiles = (m + kWide - 1) / kWide;
  const std::int64_t j = blockIdx.x % tiles * kWide + threadIdx.x, unit = blockIdx.x / tiles;
  const std::int64_t slot = unit % pass.slots, p = unit / pass.slots;
  const Flags flags = pass.flags[p];
  if (flags.active == 0 || j >= m) return;
  const T* const cost = pass.cost.M + p * pass.cost.M_problem + j;
  const T G = pass.G[(p * 4 + flags.slot) * pass.width + j], factor = static_cast<T>(-pass.kappa);
  T sum = 0;
#pragma unroll 4
  for (std::int64_t i = n * slot / pass.slots; i < n * (slot + 1) / pass.slots; ++i)
    sum = fma(u[p * n + i], power(fma(cost[i * pass.cost.M_row], factor, G), shifts[p * n + i]), sum);
  pass.partial[(p * pass.slots + slot) * pass.width + j] = sum;
}

template <class T>
void wide_pass(const Execution& exec, const Pass<T>& pass) {
  Scratch scratch(exec);
  const Batch<T>& cost = pass.cost;
  const std::int64_t rows = cost.problems * cost.n;
  const std::int64_t blocks = cost.problems * pass.slots * ((cost.m + kWide - 1) / kWide);
  QUADRIC_REQUIRE(rows < std::int64_t{1} << 31 && blocks < std::int64_t{1} << 31, "M is too large for one call");
  T* const u = scratch.get<T>(rows);
  T* const shifts = scratch.get<T>(rows);
  wide_rows_kernel<T><<<static_cast<unsigned>(rows), kWide, 0, stream(exec)>>>(pass, u, shifts);
  QUADRIC_CUDA_LAUNCHED();
  wide_columns_kernel<T><<<static_cast<unsigned>(blocks), kWide, 0, stream(exec)>>>(pass, u, shifts);
  QUADRIC_CUDA_LAUNCHED();
}

// ---- the shape for a width -----------------------------------------------------------------------------------------

constexpr std::int64_t kAtOnce = 132;    // blocks for whose number slots are made: the multiprocessors of an H200
constexpr std::int64_t kMostRows = 512;  // of a slot, whose columns are summed in T
constexpr std::int64_t kLeastRows = 8;

// call(Shape), or other() where no shape is wide enough.
template <class T, class Call, class Other>
void with_shape(std::int64_t m, const Call& call, const Other& other) {
  const auto pieces = [&](int ranks) { return ((m + kLanes<T> - 1) / kLanes<T> + ranks - 1) / ranks; };
  if (pieces(1) <= 32) return call(Shape<T, 32, 1, 4, 8, 1, 8>());
  if (pieces(1) <= 64) return call(Shape<T, 32, 2, 4, 8, 1, 8>());
  if (pieces(1) <= 128) return call(Shape<T, 64, 2, 4, 8, 1, 8>());
  if (pieces(1) <= 256) return call(Shape<T, 128, 2, 4, 8, 1, 4>());
  if (pieces(1) <= 512) return call(Shape<T, 128, 4, 2, 4, 1, 4>());
  if (pieces(1) <= 1024) return call(Shape<T, 256, 4, 2, 4, 1, 2>());
  if (pieces(1) <= 1536) return call(Shape<T, 512, 3, 2, 4, 1, 1>());
  if (pieces(1) <= 2048) return call(Shape<T, 512, 4, 2, 4, 1, 1>());
  if (pieces(1) <= 2560) return call(Shape<T, 512, 5, 2, 3, 1, 1>());
  if (pieces(2) <= 1536) return call(Shape<T, 512, 3, 2, 4, 2, 1>());
  if (pieces(2) <= 2048) return call(Shape<T, 512, 4, 2, 4, 2, 1>());
  if (pieces(2) <= 2560) return call(Shape<T, 512, 5, 2, 3, 2, 1>());
  if (pieces(4) <= 2560) return call(Shape<T, 512, 5, 2, 3, 4, 1>());
  if (pieces(8) <= 2560) return call(Shape<T, 512, 5, 2, 3, 8, 1>());
  other();
}

}  // namespace

template <class T>
std::int64_t stored_slots(std::int64_t n, std::int64_t m) {
  std::int64_t slots = 16;
  with_shape<T>(
      m,
      [&](auto shape) {
        using S = decltype(shape);
        // Groups of 16 or 18 multiprocessors hold whole clusters only.
        slots = (S::kRanks > 2 ? kAtOnce / 16 * 16 : kAtOnce) / S::kRanks * S::kShare;
      },
      [] {});
  const std::int64_t rounds = std::max<std::int64_t>((n + kMostRows * slots - 1) / (kMostRows * slots), 1);
  return std::max<std::int64_t>(std::min(slots * rounds, n / kLeastRows), 1);
}

template <class T>
void stored_pass(const Execution& exec, const Pass<T>& pass) {
  with_shape<T>(pass.cost.m, [&](auto shape) { launch<decltype(shape)>(exec, pass); }, [&] { wide_pass(exec, pass); });
}

#define QUADRIC_INSTANTIATE(T)                                       \
  template std::int64_t stored_slots<T>(std::int64_t, std::int64_t); \
  template void stored_pass<T>(const Execution&, const Pass<T>&);
QUADRIC_INSTANTIATE(float)
QUADRIC_INSTANTIATE(double)

}  // namespace quadric::cuda::transport
