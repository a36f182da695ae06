// The schedule of sparse signs in turns; see turns.cuh.
//
// n = 1e6, 8 signs, m = 2048. Floor: 8e6 entries of 2 bytes written and read, and 20 MB of codes written, from and to
// the second-level cache: 10 us; 2e6 blocks of words, 5 us. What takes longer is the chains of reads of shared memory
// that a queue needs, two or three in each turn. To be reached: 30 us.
#include "sketch/turns.cuh"

#include "sketch/lists.cuh"

namespace quadric::cuda::sketch {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kMostRows = 16 * kSlots;  // of a chunk
constexpr std::uint32_t kAll = 0xffffffffu;
constexpr std::uint32_t kRow = 0x7fff;  // of a segment, in an entry

// A row of S A in a segment: its entries, and the map of the queue's state: however many wait when the segment begins,
// at least `low` and at most `high` of the segment's are served when it ends.
struct alignas(16) Queue {
  std::uint32_t begin;
  int total, low, high;

  // Entries that wait after `turns` turns, if `waiting` did before.
  __device__ __forceinline__ int left(int turns, int waiting) const {
    const int served = turns - waiting;
    return total - (served < low ? low : served < high ? served : high);
  }
};

struct Sorted {
  std::uint16_t* entries;  // room() a segment and chunk: (row of the segment) | (sign < 0) << 15, by rows of S A
  Queue* queues;           // `padded` a segment and chunk
};

// ---- one queue -----------------------------------------------------------------------------------------------------

// How many entries of a segment have arrived and left when a turn ends.
class Passage {
 public:
  __device__ __forceinline__ Passage(const Turns& f, std::int64_t q, const std::uint16_t* entries, int total)
      : entries_(entries),
        total_(total),
        turns_(f.turns(q)),
        kept_((q + 1) % f.segments == 0 ? turns_ : turns_ + f.grace - f.reach) {}

  __device__ __forceinline__ void go_on(const Turns& f, int turn) {
    const int end = turn + 1 < turns_ ? 0 : kept_;  // tiles that a later segment must not need
    const int gone = turn + 2 - f.reach;
    move(arrived, (turn + 1) * f.tile);
    move(left, (gone > end ? gone : end) * f.tile);
  }
  // Entries that are served after the turn, if there are `before`, and if without late ones there are `on_time`.
  __device__ __forceinline__ int on_time(int before) const { return before < arrived ? before + 1 : arrived; }
  __device__ __forceinline__ int after(const Turns& f, int turn, int on_time) const {
    return (turn + 1 >= f.grace || left > 0) && left > on_time ? left : on_time;
  }

  int arrived = 0, left = 0;

 private:
  __device__ __forceinline__ void move(int& at, int row) const {
    while (at < total_ && static_cast<int>(entries_[at] & kRow) < row) ++at;
  }

  const std::uint16_t* entries_;
  int total_, turns_, kept_;
};

// ---- entries by rows of S A ----------------------------------------------------------------------------------------

std::int64_t sort_bytes(const Turns& f) {
  const std::int64_t warps = std::max(1, kWarps / f.per);
  return 4 * warps * f.padded + 2 * 2 * static_cast<std::int64_t>(f.room());
}

// counts[w][r] becomes the first place of row r's entries that warp w of `warps` finds; begin(r, place, total) tells
// where all of them are.
template <class Begin>
__device__ __forceinline__ void scan(std::uint32_t* counts, int warps, int padded, const Begin& begin) {
  constexpr int kEach = kMostRows / kThreads;
  const int thread = static_cast<int>(threadIdx.x);
  std::uint32_t count[kEach] = {}, own = 0;
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int r = thread * kEach + e;
    if (r < padded)
      for (int w = 0; w < warps; ++w) count[e] += counts[w * padded + r];
    own += count[e];
  }
  std::uint32_t before = sum_before<kWarps>(own);
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int r = thread * kEach + e;
    if (r < padded) {
      begin(r, before, count[e]);
      for (int w = 0; w < warps; ++w) {
        const std::uint32_t here = counts[w * padded + r];
        counts[w * padded + r] = before;
        before += here;
      }
    }
  }
}

// A block of threads has a segment and a chunk. Counts are whole numbers, and a warp places rows of A for one block of
// S in their order, so the order does not depend on which thread comes first.
__global__ void __launch_bounds__(kThreads) sort_kernel(const Turns f, const Sorted sorted) {
  extern __shared__ __align__(16) char shared[];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const std::int64_t q = blockIdx.x / f.chunks, chunk = blockIdx.x % f.chunks, first = f.begin(q);
  const int blocks = f.blocks(chunk), count = f.count(first, f.end(q));
  const int warps = f.per < kWarps ? kWarps / f.per : 1;  // for each block of S
  std::uint32_t* const next = reinterpret_cast<std::uint32_t*>(shared);
  std::uint16_t* const entries = reinterpret_cast<std::uint16_t*>(next + warps * f.padded);
  std::uint16_t* const codes = entries + f.room();
  Queue* const queues = sorted.queues + static_cast<std::int64_t>(blockIdx.x) * f.padded;

  for (int i = thread; i < warps * f.padded; i += kThreads) next[i] = 0;
  draw<kThreads>(Drawn{f.seed, f.nnz, f.block, chunk * f.per, blocks, 0, f.padded},
                 static_cast<std::uint64_t>(f.first + first * f.tile), count, count, codes);
  __syncthreads();
  // A warp's rows for block k of S and the counts of that block's rows: no other warp changes those.
  const auto for_tasks = [&](const auto& body) {
    for (int task = thread / 32; task < blocks * warps; task += kWarps) {
      const int w = task / blocks;
      body(codes + task % blocks * count, count * w / warps, count * (w + 1) / warps, next + w * f.padded);
    }
  };
  for_tasks([&](const std::uint16_t* own, int begin, int end, std::uint32_t* counts) {
    for (int i = begin + lane; i < end; i += 32) atomicAdd(counts + (own[i] & kRow), 1u);
  });
  __syncthreads();
  scan(next, warps, f.padded, [&](int r, std::uint32_t place, std::uint32_t total) {
    queues[r].begin = place;
    queues[r].total = static_cast<int>(total);
  });
  __syncthreads();
  for_tasks([&](const std::uint16_t* own, int begin, int end, std::uint32_t* places) {
    for (int from = begin; from < end; from += 32) {
      const int i = from + lane;
      const std::uint16_t code = i < end ? own[i] : kElsewhere;
      const bool here = i < end;
      const std::uint32_t to = here ? code & kRow : kAll;
      const unsigned same = __match_any_sync(kAll, to);
      std::uint32_t place = 0;
      if (here) place = places[to] + __popc(same & ((1u << lane) - 1));
      __syncwarp();
      if (here) {
        entries[place] = static_cast<std::uint16_t>(static_cast<unsigned>(i) | (code & 0x8000u));
        if ((same >> lane) == 1u) places[to] = place + 1;  // the last of them
      }
      __syncwarp();
    }
  });
  __syncthreads();

  std::uint16_t* const out = sorted.entries + static_cast<std::int64_t>(blockIdx.x) * f.room();
  for (int i = 8 * thread; i < count * blocks; i += 8 * kThreads)  // what is behind the last entry is never used
    *reinterpret_cast<uint4*>(out + i) = *reinterpret_cast<const uint4*>(entries + i);
  constexpr int kFar = 1 << 20;
  const int turns = f.turns(q);
  for (int r = thread; r < f.padded; r += kThreads) {
    const std::uint32_t* const ends = next + (warps - 1) * f.padded;
    const std::uint32_t begin = r > 0 ? ends[r - 1] : 0;
    Passage passage(f, q, entries + begin, static_cast<int>(ends[r] - begin));
    int low = -kFar, high = kFar;
    for (int turn = 0; turn < turns; ++turn) {
      passage.go_on(f, turn);
      low = passage.after(f, turn, passage.on_time(low));
      high = passage.after(f, turn, passage.on_time(high));
    }
    queues[r].low = low;
    queues[r].high = high;
  }
}

// ---- the turns of each entry ---------------------------------------------------------------------------------------

std::int64_t turn_bytes(const Turns& f) {
  return 2 * static_cast<std::int64_t>(f.room()) + 4 * (kTurnWarps + 1) * f.most;
}

// counts[0, size) become what is before each, by the first warp.
__device__ __forceinline__ void scan_by_warp(std::uint32_t* counts, int size) {
  if (threadIdx.x >= 32) return;
  const int lane = static_cast<int>(threadIdx.x);
  std::uint32_t base = 0;
  for (int from = 0; from < size; from += 32) {
    const std::uint32_t own = from + lane < size ? counts[from + lane] : 0;
    std::uint32_t before = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const std::uint32_t other = __shfl_up_sync(kAll, before, step);
      if (lane >= step) before += other;
    }
    if (from + lane < size) counts[from + lane] = base + before - own;
    base += __shfl_sync(kAll, before, 31);
  }
}

// A block of threads has a segment and a chunk, a thread a row of S A.
__global__ void __launch_bounds__(kMostRows) turns_kernel(const Turns f, const Sorted sorted, const Schedule schedule) {
  extern __shared__ __align__(16) char shared[];
  std::uint16_t* const entries = reinterpret_cast<std::uint16_t*>(shared);
  std::uint32_t* const counts = reinterpret_cast<std::uint32_t*>(entries + f.room());  // of late entries
  std::uint32_t* const starts = counts + kTurnWarps * f.most;                          // of a turn's, among them
  const int row = static_cast<int>(threadIdx.x);
  const std::int64_t q = blockIdx.x / f.chunks, chunk = blockIdx.x % f.chunks, first = f.begin(q);
  const int turns = f.turns(q), all = f.count(first, f.end(q)) * f.blocks(chunk),
            in_part = static_cast<int>(q % f.segments);
  const std::uint16_t* const from = sorted.entries + static_cast<std::int64_t>(blockIdx.x) * f.room();
  for (int i = 8 * row; i < all; i += 8 * f.padded)
    *reinterpret_cast<uint4*>(entries + i) = *reinterpret_cast<const uint4*>(from + i);
  for (int i = row; i < turns * kTurnWarps; i += f.padded) counts[i] = 0;

  const auto queue_of = [&](int back) {
    return sorted.queues[(static_cast<std::int64_t>(blockIdx.x) - back * f.chunks) * f.padded + row];
  };
  const Queue own = queue_of(0);
  int waiting = 0, earlier_end = 0;
  if (in_part > 0) {
    int back = 0;
    Queue queue{};
    do queue = queue_of(++back);
    while (back < in_part && queue.low != queue.high);
    // The first segment of the part, or one that ends in the same state however it begins.
    waiting = queue.left(f.turns(q - back), 0);
    while (--back > 0) {
      queue = queue_of(back);
      waiting = queue.left(f.turns(q - back), waiting);
    }
    earlier_end = static_cast<int>(queue.begin) + queue.total;
  }
  const std::uint16_t* const earlier = from - f.chunks * f.room() + earlier_end;  // behind what may still wait
  const int ring_rows = f.ring() * f.tile;
  const int ring_first = static_cast<int>(first % f.ring()) * f.tile;
  const int ring_earlier = in_part > 0 ? static_cast<int>(f.begin(q - 1) % f.ring()) * f.tile : 0;
  const float per_ring = 1.0f / static_cast<float>(ring_rows);
  const auto code_of = [&](int number) {
    const std::uint32_t entry = number < 0 ? earlier[number] : entries[own.begin + static_cast<unsigned>(number)];
    const int at = static_cast<int>(entry & kRow) + (number < 0 ? ring_earlier : ring_first);
    const int rounds = static_cast<int>((static_cast<float>(at) + 0.5f) * per_ring);
    return static_cast<std::uint32_t>(at - rounds * ring_rows) << kLineShift | (entry & 0x8000u) << 16;
  };
  const int each = f.padded / kSlots, warp = row / (4 * each);
  const std::uint32_t target =
      static_cast<std::uint32_t>(row % each) << kLateRow | static_cast<std::uint32_t>(row / each % 4) << kLateSlot;
  const auto for_turns = [&](const auto& body) {
    Passage passage(f, q, entries + own.begin, own.total);
    int served = -waiting;
    for (int turn = 0; turn < turns; ++turn) {
      passage.go_on(f, turn);
      const int on_time = passage.on_time(served), after = passage.after(f, turn, on_time);
      body(turn, served, on_time, after);
      served = after;
    }
  };
  __syncthreads();
  for_turns([&](int turn, int, int on_time, int after) {
    if (after > on_time) atomicAdd(counts + turn * kTurnWarps + warp, static_cast<unsigned>(after - on_time));
  });
  __syncthreads();
  const std::int64_t step = f.chunks * record_words(f.padded);
  std::uint32_t* const record = schedule.records + (first * f.chunks + chunk) * record_words(f.padded);
  const auto rest = static_cast<std::uint32_t>(blockIdx.x) * static_cast<std::uint32_t>(f.late_room());
  const int heads = f.padded / 2, lates = heads + kHeads;
  const auto for_heads = [&](const auto& body) {
    for (int i = row; i < turns * kTurnWarps; i += f.padded)
      body(i, i / kTurnWarps, record + i / kTurnWarps * step + heads + i % kTurnWarps);
  };
  for_heads([&](int i, int, std::uint32_t* head) { *head = counts[i] << 16; });
  __syncthreads();
  scan_by_warp(counts, turns * kTurnWarps);
  __syncthreads();
  for_heads([&](int i, int turn, std::uint32_t* head) {
    const std::uint32_t start = counts[turn * kTurnWarps];
    *head |= counts[i] - start;
    if (i % kTurnWarps == 0) {
      starts[turn] = start;
      head[kTurnWarps] = rest + start;
    }
  });
  __syncthreads();
  // The threads of a warp take places in any order: their rows of S A are different sums.
  for_turns([&](int turn, int before, int on_time, int after) {
    const std::uint32_t code = on_time > before ? code_of(before) : static_cast<std::uint32_t>(ring_rows) << kLineShift;
    const std::uint32_t second = __shfl_xor_sync(kAll, code, 1);
    if (row % 2 == 0)
      record[turn * step + row / 2] = (code & kPlaces) | code >> 31 | (second & kPlaces) << kSecond | (second & kSign);
    if (after > on_time) {
      std::uint32_t at = atomicAdd(counts + turn * kTurnWarps + warp, static_cast<unsigned>(after - on_time));
      for (int number = on_time; number < after; ++number, ++at) {
        const std::uint32_t within = at - starts[turn];
        (within < kMostLate ? record[turn * step + lates + within] : schedule.rest[rest + at]) =
            code_of(number) | target;
      }
    }
  });
}

}  // namespace

Schedule make_schedule(const Execution& exec, Scratch& scratch, const Turns& f) {
  const std::int64_t records = f.all_segments() * f.chunks;
  Scratch own(exec);
  const Sorted sorted{own.get<std::uint16_t>(records * f.room()), own.get<Queue>(records * f.padded)};
  const Schedule schedule{scratch.get<std::uint32_t>(f.tiles * f.chunks * record_words(f.padded)),
                          scratch.get<std::uint32_t>(records * f.late_room())};
  allow_shared(sort_kernel, sort_bytes(f));
  sort_kernel<<<grid_of(records), kThreads, static_cast<std::size_t>(sort_bytes(f)), stream(exec)>>>(f, sorted);
  QUADRIC_CUDA_LAUNCHED();
  allow_shared(turns_kernel, turn_bytes(f));
  turns_kernel<<<grid_of(records), static_cast<unsigned>(f.padded), static_cast<std::size_t>(turn_bytes(f)),
                 stream(exec)>>>(f, sorted, schedule);
  QUADRIC_CUDA_LAUNCHED();
  return schedule;
}

}  // namespace quadric::cuda::sketch
