// A pass of Sinkhorn's iteration over a stored cost: row sums, and then column sums with the new scalings of the rows,
// from one read.
//
// Floor: one read of C at 4.2 TB/s; float32 n = 10 000: 95 us, n = 20 000: 380 us, float64 n = 10 000: 190 us. To be
// reached: 90 %. A row takes 17 bytes a cycle and multiprocessor, 2400 cycles for 10 000 float32, of which 16
// exponentials a cycle take 630, and accesses to shared memory, with the copies, 1000. In float64 it is 14 operations
// for an entry at 64 a cycle: 0.47 of the time that its bytes take.
//
// A block, or a cluster of 2, 4 or 8 of them for wide rows, walks the rows of a slot, one or a few at once: a step.
// A thread owns columns, whose sums it keeps in registers. Nobody waits for all others:
//
//   costs of some steps ahead:           copied in bulk, for each warp its own part of a row, into a ring that no other
//                                        warp reads; as soon as a warp has read a place, it asks for what comes next
//   e = 2^(t + shift), partial row sums: all warps; e stays in registers
//   total, log2, u_i:                    one warp, blocks and warps by turns; meanwhile the others go on to what comes
//                                        next
//   column sums += u_i e_ij:             one step later
//
// A sum goes to place `half` of two in the block that decides, and u_i comes back to one of two places. No warp reports
// on a step before it has u of the step before the last one, so that all places have been read before they are written
// again.
//
// Passes walk the rows forwards and backwards by turns: what one has read last may still be in the second-level cache.
#include <algorithm>
#include <cstdint>

#include "early.cuh"
#include "require.hpp"
#include "transport/async.cuh"
#include "transport/pass.cuh"

namespace quadric::cuda::transport {
namespace {

template <class T>
inline constexpr int kLanes = 16 / static_cast<int>(sizeof(T));  // entries of 16 bytes

template <class T>
struct alignas(16) Vector {
  T x[kLanes<T>];
};

__device__ __forceinline__ char* dynamic_shared() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

// kWarps x 32 x kVectors x 16 bytes of a row in each of kRanks blocks, kRows rows at once, kStages times as many in
// flight. kShare blocks are to share a multiprocessor.
template <class T_, int kWarps_, int kVectors_, int kRows_, int kStages_, int kRanks_, int kShare_>
struct Shape {
  using T = T_;
  static constexpr int kWarps = kWarps_, kVectors = kVectors_, kRows = kRows_, kStages = kStages_, kRanks = kRanks_,
                       kShare = kShare_, kThreads = 32 * kWarps, kOfWarp = 32 * kVectors, kPieces = kWarps * kOfWarp,
                       kParts = kRanks * kWarps,
                       kOfRow = 32 / kRows;  // lanes that have a row's sum
  static_assert(32 % kRows == 0 && kRanks <= kOfRow, "a lane for each message");
  // Short parts of rows are copied by the lanes that read them.
  static constexpr bool kBulk = kVectors > 1;

  struct Shared {
    Vector<T> ring[kStages][kRows][kPieces];  // of costs
    Vector<T> weight[kPieces];
    T parts[2][kRows][kParts];  // of sums over rows
    T u[2][kRows];              // kAgain: the row is to be done again
    T again_parts[kParts], again_reply;
    std::uint64_t arrived[kStages][kWarps];  // costs
    std::uint64_t heard[2], told[2];         // parts, u
    std::uint64_t heard_again, told_again;
  };
};
constexpr int kAgain = -1;  // no scaling is negative

__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

// 2^(t + shift) for many t and one shift. Numbers below the smallest normal one are 0, NaN stays; `over` is set where a
// number is too large, which then is anything. By all lanes of a warp.
template <class T>
struct Exponential;

template <>
struct Exponential<float> {
  using Row = float;
  explicit __device__ __forceinline__ Exponential(int) {}
  static __device__ __forceinline__ Row row(float shift) { return shift; }
  __device__ __forceinline__ float operator()(float t, Row shift, bool&) const { return power(t, shift); }
};

const __constant__ double kRoots[32] = {// 2^(k / 32)
                                        1.0,
                                        1.0218971486541166,
                                        1.0442737824274138,
                                        1.0671404006768237,
                                        1.0905077326652577,
                                        1.1143867425958924,
                                        1.1387886347566916,
                                        1.1637248587775775,
                                        1.189207115002721,
                                        1.215247359980469,
                                        1.241857812073484,
                                        1.2690509571917332,
                                        1.2968395546510096,
                                        1.3252366431597413,
                                        1.3542555469368927,
                                        1.383909881963832,
                                        1.4142135623730951,
                                        1.4451808069770467,
                                        1.4768261459394993,
                                        1.5091644275934228,
                                        1.5422108254079407,
                                        1.5759808451078865,
                                        1.6104903319492543,
                                        1.645755478153965,
                                        1.681792830507429,
                                        1.718619298122478,
                                        1.7562521603732995,
                                        1.7947090750031072,
                                        1.8340080864093424,
                                        1.8741676341103,
                                        1.9152065613971474,
                                        1.9571441241754002};

// The nearest multiple of 1/32 goes into the exponent and a factor that one of the lanes holds; for the rest, within
// 1/64, a minimax polynomial with a relative error of 7.1e-17. 12 operations on float64.
template <>
struct Exponential<double> {
  struct Row {
    int moved;               // 32 shift
    double lowest, highest;  // t with normal results
  };
  explicit __device__ __forceinline__ Exponential(int lane) {
    high_ = __double2hiint(kRoots[lane]) - (lane << 15);
    low_ = __double2loint(kRoots[lane]);
  }
  static __device__ __forceinline__ Row row(double shift) {
    return {__double2loint(shift + kMagic), -1021.5 - shift, 1023.0 - shift};
  }
  __device__ __forceinline__ double operator()(double t, const Row& row, bool& over) const {
    const double moved = t + kMagic;
    const double r = t - (moved - kMagic);
    const int place = __double2loint(moved) + row.moved;  // 32 (t + shift - r)
    const int low = __shfl_sync(0xffffffffu, low_, place & 31), high = __shfl_sync(0xffffffffu, high_, place & 31);
    double q = 0.0013333502289351708;
    q = fma(q, r, 0.009618185516828368);
    q = fma(q, r, 0.05550410866771944);
    q = fma(q, r, 0.24022650695393635);
    q = fma(q, r, 0.6931471805599451);
    q = fma(q, r, 7.004447264876491e-17);
    // The last five bits of `place` have been taken off in high_.
    const double scale =
        __hiloint2double(static_cast<int>(static_cast<unsigned>(high) + (static_cast<unsigned>(place) << 15)), low);
    over = over || t > row.highest;
    return t < row.lowest ? 0.0 : fma(scale, q, scale);
  }

 private:
  static constexpr double kMagic = 211106232532992.0;  // 1.5 2^47: the sum's lowest bits are the nearest multiple
  int high_, low_;
};

template <class S>
class Worker {
  using T = typename S::T;
  static constexpr int kL = kLanes<T>;
  using Piece = Vector<T>[S::kVectors];

 public:
  __device__ __forceinline__ Worker(const Pass<T>& pass, bool aligned, std::int64_t problem, std::int64_t slot)
      : pass_(pass),
        room_(*reinterpret_cast<typename S::Shared*>(dynamic_shared())),
        problem_(static_cast<int>(problem)),
        slot_(static_cast<int>(slot)),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32),
        rank_(S::kRanks == 1 ? 0 : static_cast<int>(cluster_rank())),
        aligned_(aligned),
        bulk_(S::kBulk && aligned && pass.cost.m % kL == 0) {
    const std::int64_t n = pass.cost.n, begin = n * slot / pass.slots, end = n * (slot + 1) / pass.slots;
    rows_ = static_cast<int>(end - begin);
    steps_ = (rows_ + S::kRows - 1) / S::kRows;
    const std::int64_t first = pass.backwards ? end - 1 : begin;
    at_ = problem * n + first;
    const int m = static_cast<int>(pass.cost.m), pieces = (m + kL - 1) / kL;
    const int each = (pieces + S::kRanks - 1) / S::kRanks * kL;
    first_ = each * rank_;
    end_ = first_ + each < m ? first_ + each : m;
    costs_ = pass.cost.M + problem * pass.cost.M_problem + first * pass.cost.M_row;
  }

  __device__ __forceinline__ void run() {
    open();
    // A single problem is active most often, and its costs are there long before.
    const bool early = pass_.cost.problems == 1;
    if (early) fetch_first();
    if constexpr (S::kRanks > 1)
      sync_cluster();
    else
      __syncthreads();
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const Flags flags = pass_.flags[problem_];
    if (flags.active == 0) {  // all blocks of a cluster alike
      if (early)
        for (int s = 0; s < S::kStages && s < steps_; ++s) wait_round(&room_.arrived[s][warp_], 0);
      return;
    }
    rebase_ = flags.rebase != 0;
    form_ = flags.slot;
    if (!early) fetch_first();
    compute();
    // Nobody leaves while another block of the cluster may still write here.
    if constexpr (S::kRanks > 1) sync_cluster();
  }

 private:
  __device__ __forceinline__ int piece(int v) const { return warp_ * S::kOfWarp + v * 32 + lane_; }
  __device__ __forceinline__ int column(int v) const { return first_ + piece(v) * kL; }
  // The place of the k-th row that this slot works on among all rows; its costs; where its G and weight are.
  __device__ __forceinline__ std::int64_t row(int k) const { return pass_.backwards ? at_ - k : at_ + k; }
  const __device__ __forceinline__ T* costs(int k) const {
    return costs_ + (pass_.backwards ? -k : k) * pass_.cost.M_row;
  }
  __device__ __forceinline__ std::int64_t side() const {
    return (static_cast<std::int64_t>(problem_) * 4 + form_) * pass_.width;
  }
  __device__ __forceinline__ T shift_of(int k) const { return k < rows_ ? pass_.shift[row(k)] : T(0); }

  __device__ __forceinline__ void open() {
    // Within a block all lanes arrive, what they have read and written being read and written then; messages to other
    // blocks arrive by themselves.
    constexpr unsigned kReports = S::kRanks == 1 ? S::kThreads : 1, kAnswers = S::kRanks == 1 ? 32 : 1;
    if (threadIdx.x == 0) {
      for (int half = 0; half < 2; ++half) {
        open_barrier(&room_.heard[half], kReports);
        open_barrier(&room_.told[half], kAnswers);
      }
      open_barrier(&room_.heard_again, kReports);
      open_barrier(&room_.told_again, kAnswers);
    }
    if (lane_ == 0)
      for (int s = 0; s < S::kStages; ++s) open_barrier(&room_.arrived[s][warp_], bulk_ ? 1 : 32);
    publish_mail();
    __syncwarp();
  }

  __device__ __forceinline__ void fetch_first() {
    const Vector<T> zero{};
#pragma unroll 1
    for (int s = 0; s < S::kStages; ++s) {
      // What lies beyond the columns is never copied.
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v)
        if (column(v) + kL > end_)
          for (int r = 0; r < S::kRows; ++r) room_.ring[s][r][piece(v)] = zero;
      fetch(s, s);
    }
  }

  // The costs of a step go to a stage of the ring, whose old ones this warp has read.
  __device__ __forceinline__ void fetch(int step, int stage) {
    const int k = step * S::kRows;
    if (k >= rows_) return;
    std::uint64_t* const arrived = &room_.arrived[stage][warp_];
    if (bulk_) {
      __syncwarp();
      if (lane_ != 0) return;
      const int there = end_ - column(0);
      const int entries = there < 0 ? 0 : there < S::kOfWarp * kL ? there : S::kOfWarp * kL;
      const int bytes = entries * static_cast<int>(sizeof(T)), rows = rows_ - k < S::kRows ? rows_ - k : S::kRows;
      expect_bytes(arrived, static_cast<unsigned>(rows * bytes));
      if (bytes == 0) return;
#pragma unroll
      for (int r = 0; r < S::kRows; ++r)
        if (r < rows)
          copy_bulk(&room_.ring[stage][r][piece(0)], costs(k + r) + column(0), static_cast<unsigned>(bytes), arrived);
    } else {
#pragma unroll 1
      for (int r = 0; r < S::kRows && k + r < rows_; ++r) {
        const T* const from = costs(k + r);
#pragma unroll
        for (int v = 0; v < S::kVectors; ++v) {
          const int j = column(v);
          T* const to = room_.ring[stage][r][piece(v)].x;
          if (aligned_ && j + kL <= end_) {
            copy_async<16>(to, from + j);
          } else {
#pragma unroll
            for (int q = 0; q < kL; ++q)
              if (j + q < end_) copy_async<sizeof(T)>(to + q, from + j + q);
          }
        }
      }
      arrive_after_copies(arrived);
    }
  }

  __device__ __forceinline__ void compute() {
    const Exponential<T> exponential(lane_);
    factor_ = static_cast<T>(-pass_.kappa);
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
      load_G(v);
      Vector<T> weight{};
      if (column(v) < end_) weight = *reinterpret_cast<const Vector<T>*>(pass_.weight + side() + column(v));
      room_.weight[piece(v)] = weight;
    }
    Piece columns = {};
    if (rebase_)
      walk_anew(exponential, columns);
    else
      walk(exponential, columns);
    T* const out = pass_.partial + (problem_ * pass_.slots + slot_) * pass_.width;
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v)
      if (column(v) < end_) *reinterpret_cast<Vector<T>*>(out + column(v)) = columns[v];
  }

  __device__ __forceinline__ void load_G(int v) {
#pragma unroll
    for (int q = 0; q < kL; ++q) G_[v].x[q] = -static_cast<T>(INFINITY);
    if (column(v) < end_) G_[v] = *reinterpret_cast<const Vector<T>*>(pass_.G + side() + column(v));
  }

  __device__ __forceinline__ void walk(const Exponential<T>& exponential, Piece& columns) {
    Piece even[S::kRows], odd[S::kRows];
    T shift[S::kRows];
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) shift[r] = shift_of(r);
    // Step `step` in `now`; the one before, in `last`, is done with.
    const auto advance = [&](int step, Piece(&now)[S::kRows], Piece(&last)[S::kRows]) {
      if (step < steps_) {
        typename Exponential<T>::Row rows[S::kRows];
#pragma unroll
        for (int r = 0; r < S::kRows; ++r) {
          rows[r] = exponential.row(shift[r]);
          shift[r] = shift_of((step + 1) * S::kRows + r);
        }
        T sum[S::kRows] = {};
        bool over[S::kRows] = {};
        read(step, [&](int r, int v, int q, T t, T weight) {
          const T x = exponential(t, rows[r], over[r]);
          now[r][v].x[q] = x;
          sum[r] = fma(x, weight, sum[r]);
        });
#pragma unroll
        for (int r = 0; r < S::kRows; ++r)
          if (over[r]) sum[r] = static_cast<T>(INFINITY);
        report<false>(step, sum);
      }
      if (step > 0) add(step - 1, step - 1, last, columns);
      if (step < steps_ && decides(step)) decide(step, step, shift_of(step * S::kRows + lane_ / S::kOfRow));
    };
#pragma unroll 1
    for (int step = 0; step <= steps_; step += 2) {
      advance(step, even, odd);
      if (step < steps_) advance(step + 1, odd, even);
    }
  }

  // With rebase: rows relative to their largest entries, which are found first. Two rounds of messages for a step.
  __device__ __forceinline__ void walk_anew(const Exponential<T>& exponential, Piece& columns) {
    Piece e[S::kRows];
#pragma unroll 1
    for (int step = 0; step < steps_; ++step) {
      T value[S::kRows];
#pragma unroll
      for (int r = 0; r < S::kRows; ++r) value[r] = -static_cast<T>(INFINITY);
      read(step, [&](int r, int v, int q, T t, T) {
        e[r][v].x[q] = t;
        value[r] = larger(value[r], t);
      });
      report<true>(2 * step, value);
      if (decides(2 * step)) decide_shifts(2 * step);
      wait_round(&room_.told[0], static_cast<unsigned>(step) % 2);
#pragma unroll
      for (int r = 0; r < S::kRows; ++r) {
        const auto row = exponential.row(room_.u[0][r]);
        bool over = false;
        value[r] = 0;
#pragma unroll
        for (int v = 0; v < S::kVectors; ++v) {
          const Vector<T> weight = room_.weight[piece(v)];
#pragma unroll
          for (int q = 0; q < kL; ++q) {
            e[r][v].x[q] = exponential(e[r][v].x[q], row, over);
            value[r] = fma(e[r][v].x[q], weight.x[q], value[r]);
          }
        }
      }
      report<false>(2 * step + 1, value);
      if (decides(2 * step + 1)) decide(2 * step + 1, step, room_.u[0][lane_ / S::kOfRow]);
      add(2 * step + 1, step, e, columns);
    }
  }

  // call(r, v, q, t, weight) for all entries of a step, whose place then is filled again.
  template <class Call>
  __device__ __forceinline__ void read(int step, const Call& call) {
    wait_round(&room_.arrived[stage_][warp_], turn_);
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
      const Vector<T> weight = room_.weight[piece(v)];
#pragma unroll
      for (int r = 0; r < S::kRows; ++r) {
        const Vector<T> cost = room_.ring[stage_][r][piece(v)];
#pragma unroll
        for (int q = 0; q < kL; ++q) call(r, v, q, fma(cost.x[q], factor_, G_[v].x[q]), weight.x[q]);
      }
    }
    fetch(step + S::kStages, stage_);
    if (++stage_ == S::kStages) {
      stage_ = 0;
      turn_ ^= 1;
    }
  }

  // A round of messages: this warp's sums or largest numbers, to the warp that decides on the round.
  template <bool kMaximum>
  __device__ __forceinline__ void report(int round, T (&value)[S::kRows]) {
    const auto join = [](T x, T y) { return kMaximum ? larger(x, y) : x + y; };
    // value[0] becomes that of row lane / kOfRow.
    int lanes = 16;
#pragma unroll
    for (int half = S::kRows / 2; half > 0; half /= 2, lanes /= 2) {
      const bool upper = (lane_ & lanes) != 0;
#pragma unroll
      for (int r = 0; r < half; ++r) {
        const T gone = upper ? value[r] : value[r + half], kept = upper ? value[r + half] : value[r];
        value[r] = join(kept, __shfl_xor_sync(0xffffffffu, gone, lanes));
      }
    }
#pragma unroll
    for (; lanes > 0; lanes /= 2) value[0] = join(value[0], __shfl_xor_sync(0xffffffffu, value[0], lanes));
    const unsigned half = static_cast<unsigned>(round) / S::kRanks % 2;
    T* const place = &room_.parts[half][lane_ / S::kOfRow][rank_ * S::kWarps + warp_];
    if constexpr (S::kRanks == 1) {
      if (lane_ % S::kOfRow == 0) *place = value[0];
      arrive(&room_.heard[half]);
    } else {
      if (threadIdx.x == 0) expect_bytes(&room_.told[round % 2], S::kRows * sizeof(T));
      if (lane_ % S::kOfRow == 0) send(place, value[0], &room_.heard[half], static_cast<unsigned>(round) % S::kRanks);
    }
  }

  // What was decided on a step, in a round.
  __device__ __forceinline__ void add(int round, int step, const Piece (&e)[S::kRows], Piece& columns) {
    const int half = round % 2;
    wait_round(&room_.told[half], static_cast<unsigned>(round) / 2 % 2);
    bool again = false;
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      if (S::kRows > 1 && step * S::kRows + r >= rows_) break;
      const T u = room_.u[half][r];
      if (u == static_cast<T>(kAgain)) {
        again = true;
        continue;
      }
#pragma unroll
      for (int v = 0; v < S::kVectors; ++v) {
#pragma unroll
        for (int q = 0; q < kL; ++q) columns[v].x[q] = fma(u, e[r][v].x[q], columns[v].x[q]);
      }
    }
    if (!again) return;
#pragma unroll 1
    for (int r = 0; r < S::kRows && step * S::kRows + r < rows_; ++r)
      if (room_.u[half][r] == static_cast<T>(kAgain)) redo(step, step * S::kRows + r, columns);
  }

  // Row k anew, relative to its largest entry, from memory: its place in the ring is taken. Rare.
  __device__ __forceinline__ void redo(int step, int k, Piece& columns) {
    constexpr unsigned kAll = 0xffffffffu;
    const T *const cost = costs(k), *const G = pass_.G + side(), *const weights = pass_.weight + side();
    const auto for_entries = [&](const auto& call) {
#pragma unroll 1
      for (int v = 0; v < S::kVectors; ++v)
        for (int j = column(v); j < column(v) + kL && j < end_; ++j) call(fma(cost[j], factor_, G[j]), weights[j]);
    };
    T largest = -static_cast<T>(INFINITY), sum = 0;
    for_entries([&](T t, T) { largest = larger(largest, t); });
    for (int lanes = 16; lanes > 0; lanes /= 2) largest = larger(largest, __shfl_xor_sync(kAll, largest, lanes));
    const T shift = exchange(step, largest, [&] {
      for (int part = lane_; part < S::kParts; part += 32) largest = larger(largest, room_.again_parts[part]);
      for (int lanes = 16; lanes > 0; lanes /= 2) largest = larger(largest, __shfl_xor_sync(kAll, largest, lanes));
      return -rint(largest);
    });
    for_entries([&](T t, T weight) { sum = fma(power(t, shift), weight, sum); });
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAll, sum, lanes);
    const T u = exchange(step, sum, [&] {
      double total = 0;
      for (int part = lane_; part < S::kParts; part += 32) total += static_cast<double>(room_.again_parts[part]);
      for (int lanes = 16; lanes > 0; lanes /= 2) total += __shfl_xor_sync(kAll, total, lanes);
      const RowInputs inputs = load_row(pass_, row(k));
      const RelaxedRow relaxed = relaxed_row(pass_, inputs, pass_.omega[problem_], total, shift);
      __syncwarp();  // all have read F
      if (lane_ == 0) keep_row(pass_, problem_, row(k), inputs, relaxed, total, shift, rebase_);
      return static_cast<T>(relaxed.u);
    });
#pragma unroll
    for (int v = 0; v < S::kVectors; ++v) {
      __syncwarp();  // few registers are left for loads ahead of their use,
      load_G(v);     // and none was for G meanwhile
#pragma unroll
      for (int q = 0; q < kL; ++q)
        if (column(v) + q < end_)
          columns[v].x[q] = fma(u, power(fma(cost[column(v) + q], factor_, G_[v].x[q]), shift), columns[v].x[q]);
    }
  }

  // A warp's value of a row that is done again goes to the block that decides on the step; what its first warp makes of
  // those of all warps comes back.
  template <class Combine>
  __device__ __forceinline__ T exchange(int step, T value, const Combine& combine) {
    const unsigned decider = static_cast<unsigned>(step) % S::kRanks;
    T* const place = &room_.again_parts[rank_ * S::kWarps + warp_];
    if constexpr (S::kRanks == 1) {
      if (lane_ == 0) *place = value;
      arrive(&room_.heard_again);
    } else if (lane_ == 0) {
      if (warp_ == 0) expect_bytes(&room_.told_again, sizeof(T));
      send(place, value, &room_.heard_again, decider);
    }
    __syncwarp();
    if (decider == static_cast<unsigned>(rank_)) {
      if (warp_ == 0) {
        if (S::kRanks > 1 && lane_ == 0) expect_bytes(&room_.heard_again, S::kParts * sizeof(T));
        wait_round(&room_.heard_again, heard_turn_);
        answer(&room_.again_reply, &room_.told_again, combine(), lane_);
      }
      heard_turn_ ^= 1;
    }
    wait_round(&room_.told_again, told_turn_);
    told_turn_ ^= 1;
    return room_.again_reply;
  }
  __device__ __forceinline__ bool decides(int round) const {
    return static_cast<unsigned>(round) % S::kRanks == static_cast<unsigned>(rank_) &&
           static_cast<unsigned>(round) / S::kRanks % S::kWarps == static_cast<unsigned>(warp_);
  }
  // What the warps have reported of row lane / kOfRow, joined in a fixed order.
  template <bool kMaximum>
  __device__ __forceinline__ double hear(int round) {
    const unsigned mine = static_cast<unsigned>(round) / S::kRanks, half = mine % 2;
    if (S::kRanks > 1 && lane_ == 0) expect_bytes(&room_.heard[half], S::kRows * S::kParts * sizeof(T));
    wait_round(&room_.heard[half], mine / 2 % 2);
    double total = kMaximum ? -static_cast<double>(INFINITY) : 0.0;
    const auto join = [&](double x) { total = kMaximum ? fmax(total, x) : total + x; };
#pragma unroll
    for (int part = 0; part < S::kParts; part += S::kOfRow)
      if (S::kParts % S::kOfRow == 0 || part + lane_ % S::kOfRow < S::kParts)
        join(static_cast<double>(room_.parts[half][lane_ / S::kOfRow][part + lane_ % S::kOfRow]));
#pragma unroll
    for (int lanes = S::kOfRow / 2; lanes > 0; lanes /= 2) join(__shfl_xor_sync(0xffffffffu, total, lanes));
    return total;
  }

  // By one warp: the shifts or the scalings of a step. Lanes r kOfRow and on have row r.
  __device__ __forceinline__ void decide_shifts(int round) {
    answer(&room_.u[round % 2][lane_ / S::kOfRow], &room_.told[round % 2], static_cast<T>(-rint(hear<true>(round))),
           lane_ % S::kOfRow);
  }
  __device__ __forceinline__ void decide(int round, int step, T shift) {
    const int r = lane_ / S::kOfRow, member = lane_ % S::kOfRow, k = step * S::kRows + r;
    const bool real = k < rows_;
    RowInputs inputs;
    if (real) inputs = load_row(pass_, row(k));
    const double total = hear<false>(round);
    const bool again = real && !rebase_ && outside<T>(total);
    RelaxedRow relaxed;
    if (real && !again) relaxed = relaxed_row(pass_, inputs, pass_.omega[problem_], total, shift);
    answer(&room_.u[round % 2][r], &room_.told[round % 2], again ? static_cast<T>(kAgain) : static_cast<T>(relaxed.u),
           member);
    if (real && !again && member == 0) keep_row(pass_, problem_, row(k), inputs, relaxed, total, shift, rebase_);
  }

  // `value` to all blocks, by the lanes that have it.
  __device__ __forceinline__ void answer(T* place, std::uint64_t* told, T value, int member) {
    if constexpr (S::kRanks == 1) {
      if (member == 0) *place = value;
      arrive(told);
    } else {
      if (member < S::kRanks) send(place, value, told, static_cast<unsigned>(member));
    }
  }

  const Pass<T>& pass_;
  typename S::Shared& room_;
  const int problem_, slot_, warp_, lane_, rank_;
  const bool aligned_, bulk_;
  int rows_, steps_;
  int first_, end_;  // columns of this block
  std::int64_t at_;  // the first row
  const T* costs_;   // its costs
  bool rebase_ = false;
  int form_ = 0;  // of G and weight
  T factor_ = 0;
  Vector<T> G_[S::kVectors];
  int stage_ = 0;  // of the ring
  unsigned turn_ = 0, heard_turn_ = 0, told_turn_ = 0;
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
  static_assert(S::kShare * (sizeof(typename S::Shared) + 1024) <= 228 * 1024, "more than a multiprocessor has");
  const Batch<T>& cost = pass.cost;
  const std::int64_t blocks = cost.problems * pass.slots * S::kRanks;
  QUADRIC_REQUIRE(blocks < std::int64_t{1} << 31, "M has too many problems for one call");
  const bool aligned = reinterpret_cast<std::uintptr_t>(cost.M) % 16 == 0 && cost.M_row % kLanes<T> == 0 &&
                       (cost.problems == 1 || cost.M_problem % kLanes<T> == 0);
  constexpr auto kShared = sizeof(typename S::Shared);
  if (kShared > 48 * 1024)
    QUADRIC_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(&pass_kernel<S>),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kShared)));
  launch_early(exec, &pass_kernel<S>, static_cast<unsigned>(blocks), S::kThreads, kShared, S::kRanks, pass, aligned);
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
  if (pieces(1) <= 32) return call(Shape<T, 1, 1, 4, 2, 1, 8>());
  if (pieces(1) <= 64) return call(Shape<T, 2, 1, 4, 2, 1, 8>());
  if (pieces(1) <= 128) return call(Shape<T, 2, 2, 2, 4, 1, 8>());
  if (pieces(1) <= 256) return call(Shape<T, 4, 2, 2, 4, 1, 4>());
  if (pieces(1) <= 512) return call(Shape<T, 8, 2, 2, 4, 1, 2>());
  if (pieces(1) <= 1024) return call(Shape<T, 8, 4, 1, 5, 1, 2>());
  if (pieces(1) <= 1536) return call(Shape<T, 16, 3, 1, 6, 1, 1>());
  if (pieces(1) <= 2048) return call(Shape<T, 16, 4, 1, 5, 1, 1>());
  if (pieces(1) <= 2560) return call(Shape<T, 16, 5, 1, 4, 1, 1>());
  if (pieces(2) <= 1536) return call(Shape<T, 16, 3, 1, 6, 2, 1>());
  if (pieces(2) <= 2048) return call(Shape<T, 16, 4, 1, 5, 2, 1>());
  if (pieces(2) <= 2560) return call(Shape<T, 16, 5, 1, 4, 2, 1>());
  if (pieces(4) <= 2560) return call(Shape<T, 16, 5, 1, 4, 4, 1>());
  if (pieces(8) <= 2560) return call(Shape<T, 16, 5, 1, 4, 8, 1>());
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
