// The schedule of sparse signs in turns; see turns.cuh.
//
// n = 1e6, 8 signs, m = 2048. Floor: 8e6 entries of 2 bytes written and read, 10 MB of counts, and 20 MB of codes
// written, from and to the second-level cache: 15 us; 2e6 blocks of words, 5 us. What takes longer is some thirty
// instructions for each of 1e7 pairs of a turn and a row of S A, 20 us, and an atomic addition to shared memory and a
// step of a sort for each entry. Measured: 62, 17 and 66 us.
//
// Three kernels: entries of each segment by rows of S A, with the number of those that each tile brings; what waits
// where each segment begins, of all queues side by side; the codes.
#include "sketch/turns.cuh"

#include <new>
#include <type_traits>

#include "sketch/lists.cuh"

namespace quadric::cuda::sketch {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kMostRows = 16 * kSlots;  // of a chunk
constexpr std::uint32_t kAll = 0xffffffffu;
constexpr std::uint32_t kRow = 0x7fff;  // of a segment, in an entry
constexpr std::int64_t kAligned = 256;  // bytes

// A row of S A where a segment begins: how many of its entries have arrived before and wait, and how many of those
// that have arrived are of tiles that have not left.
struct alignas(4) Queue {
  std::uint16_t waiting, staying;
};

struct Sorted {
  std::uint16_t* entries;  // room() a segment and chunk: (row of the segment) | (sign < 0) << 15, by rows of S A
  std::uint32_t* begins;   // `padded` a segment and chunk: where those of a row of S A begin
  std::uint32_t* counts;   // `padded` a group of turns and chunk: four bytes, what each turn's tile brings
  Queue* queues;           // `padded` a segment and chunk
};

// ---- one queue -----------------------------------------------------------------------------------------------------

// What arrives in the turns of a group, and what leaves with its tiles: what arrived reach - 1 turns before. A byte
// is enough: that a row of S A gets 256 of a tile's rows, or of a segment's, has a probability below 1e-100.
class Passage {
 public:
  // From group `group` on, of a part whose first one is `first`.
  __device__ __forceinline__ Passage(const Turns& f, const Sorted& sorted, std::int64_t chunk, int row,
                                     std::int64_t first, std::int64_t group)
      : step_(f.chunks * f.padded),
        first_(first),
        late_((f.reach - 1) / kGroup),
        shift_((f.reach - 1) % kGroup * 8),
        counts_(sorted.counts + chunk * f.padded + row) {
    before_ = word(group - late_ - 1);
  }

  __device__ __forceinline__ std::uint32_t word(std::int64_t group) const {
    return group < first_ ? 0 : counts_[group * step_];
  }
  __device__ __forceinline__ std::uint32_t delayed(std::int64_t group) const { return word(group - late_); }
  // The next group, by the two words of it.
  __device__ __forceinline__ void go_on(std::uint32_t word, std::uint32_t delayed) {
    coming = word;
    leaving = __funnelshift_l(before_, delayed, static_cast<unsigned>(shift_));
    before_ = delayed;
  }
  // A turn; c is what has been served.
  __device__ __forceinline__ void turn(int e, int c) {
    arrived += static_cast<int>(coming >> (8 * e) & 0xff);
    left += static_cast<int>(leaving >> (8 * e) & 0xff);
    on_time = c + 1 < arrived ? c + 1 : arrived;
    after = on_time > left ? on_time : left;
  }

  int arrived = 0, left = 0;
  int on_time = 0, after = 0;  // served after a turn: without late ones, and in all
  std::uint32_t coming = 0, leaving = 0;

 private:
  std::int64_t step_, first_;
  int late_, shift_;
  const std::uint32_t* counts_;
  std::uint32_t before_ = 0;
};

// ---- entries by rows of S A ----------------------------------------------------------------------------------------

std::int64_t sort_bytes(const Turns& f) {
  return 4 * static_cast<std::int64_t>(f.most / kGroup + 1) * f.padded + 4 +
         2 * 2 * static_cast<std::int64_t>(f.room());
}

// A block of threads has a segment and a chunk. An entry goes behind those of its row of S A from earlier tiles, to
// any place among those of its tile, which are brought in order then: so the order does not depend on which thread
// comes first.
__global__ void __launch_bounds__(kThreads, 2) sort_kernel(const Turns f, const Sorted sorted) {
  extern __shared__ __align__(16) char shared[];
  const int thread = static_cast<int>(threadIdx.x), padded = f.padded;
  const std::int64_t q = blockIdx.x / f.chunks, chunk = blockIdx.x % f.chunks, first = f.begin(q);
  const int blocks = f.blocks(chunk), count = f.count(first, f.end(q)), groups = (f.turns(q) + kGroup - 1) / kGroup;
  std::uint16_t* const entries = reinterpret_cast<std::uint16_t*>(shared);
  std::uint16_t* const codes = entries + f.room();
  // Bytes of a word: entries from the tiles of a group; then how many are placed, with those of earlier tiles.
  std::uint32_t* const counts = reinterpret_cast<std::uint32_t*>(codes + f.room());
  std::uint32_t* const begins = counts + f.most / kGroup * padded;  // and the end of the last row
  // row / tile for row < 2^15.
  const std::uint32_t per_tile = 0xffffffffu / static_cast<std::uint32_t>(f.tile) + 1;

  for (int i = thread; i < groups * padded; i += kThreads) counts[i] = 0;
  draw<kThreads>(Drawn{f.seed, f.nnz, f.block, chunk * f.per, blocks, 0, padded},
                 static_cast<std::uint64_t>(f.first + first * f.tile), count, count, codes);
  __syncthreads();
  const auto for_entries = [&](const auto& body) {
    for (int i = thread; i < count; i += kThreads) {
      const auto tile = static_cast<int>(__umulhi(static_cast<std::uint32_t>(i), per_tile));
      std::uint32_t* const own = counts + tile / kGroup * padded;
      const int shift = tile % kGroup * 8;
      for (int k = 0; k < blocks; ++k) {
        const std::uint32_t code = codes[k * count + i];
        body(i, code, atomicAdd(own + (code & kRow), 1u << shift) >> shift & 0xff);
      }
    }
  };
  for_entries([](int, std::uint32_t, std::uint32_t) {});
  __syncthreads();

  constexpr int kEach = kMostRows / kThreads;
  std::uint32_t total[kEach] = {}, own = 0;
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int r = thread * kEach + e;
    if (r < padded) {
      std::uint32_t* const out = sorted.counts + (f.group(q) * f.chunks + chunk) * padded + r;
      for (int g = 0; g < groups; ++g) {
        const std::uint32_t word = counts[g * padded + r];
        out[g * f.chunks * padded] = word;
        counts[g * padded + r] = total[e] * 0x01010101u + word * 0x01010100u;
        const std::uint32_t pairs = (word & 0x00ff00ffu) + (word >> 8 & 0x00ff00ffu);
        total[e] += (pairs & 0xffff) + (pairs >> 16);
      }
    }
    own += total[e];
  }
  std::uint32_t before = sum_before<kWarps>(own);
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int r = thread * kEach + e;
    if (r < padded) {
      begins[r] = before;
      sorted.begins[static_cast<std::int64_t>(blockIdx.x) * padded + r] = before;
    }
    before += total[e];
  }
  if (thread == 0) begins[padded] = static_cast<std::uint32_t>(count * blocks);
  __syncthreads();

  for_entries([&](int i, std::uint32_t code, std::uint32_t place) {
    entries[begins[code & kRow] + place] = static_cast<std::uint16_t>(static_cast<std::uint32_t>(i) | (code & 0x8000u));
  });
  __syncthreads();
  for (int r = thread; r < padded; r += kThreads) {
    const int begin = static_cast<int>(begins[r]), end = static_cast<int>(begins[r + 1]);
    if (begin == end) continue;
    std::uint32_t largest = entries[begin] & kRow, next = begin + 1 < end ? entries[begin + 1] : 0;
    for (int i = begin + 1; i < end; ++i) {
      const std::uint32_t now = next, number = now & kRow;
      if (i + 1 < end) next = entries[i + 1];
      if (number > largest) {
        largest = number;
        continue;
      }
      int to = i;
      do {
        entries[to] = entries[to - 1];
        --to;
      } while (to > begin && static_cast<std::uint32_t>(entries[to - 1] & kRow) > number);
      entries[to] = static_cast<std::uint16_t>(now);
    }
  }
  __syncthreads();

  std::uint16_t* const out = sorted.entries + static_cast<std::int64_t>(blockIdx.x) * f.room();
  for (int i = 8 * thread; i < count * blocks; i += 8 * kThreads)  // what is behind the last entry is never used
    *reinterpret_cast<uint4*>(out + i) = *reinterpret_cast<const uint4*>(entries + i);
}

// ---- what waits where a segment begins -----------------------------------------------------------------------------

constexpr int kQueueThreads = 64;  // a divisor of any number of padded rows
constexpr int kAtOnce = 8;         // groups whose words are read at a time

// A thread has a row of S A in a part.
__global__ void __launch_bounds__(kQueueThreads) queues_kernel(const Turns f, const Sorted sorted) {
  const int pieces = f.padded / kQueueThreads;
  const int row = static_cast<int>(blockIdx.x) % pieces * kQueueThreads + static_cast<int>(threadIdx.x);
  const std::int64_t chunk = blockIdx.x / pieces % f.chunks, part = blockIdx.x / pieces / f.chunks;
  const std::int64_t first = f.first_group(part), span = f.first_group(part + 1) - first;
  const int segments = static_cast<int>(f.segments);
  const auto last = static_cast<int>(span * (segments - 1) / segments);  // where the last segment begins, from `first`
  // The next one begins at next + carry / segments: Turns::group without its divisions.
  const auto step = static_cast<int>(span / segments), rest = static_cast<int>(span % segments);
  int next = 0, carry = 0;
  Queue* to = sorted.queues + (part * f.segments * f.chunks + chunk) * f.padded + row;
  Passage passage(f, sorted, chunk, row, first, first);
  int served = 0;
  const auto note = [&] {
    *to = Queue{static_cast<std::uint16_t>(passage.arrived - served),
                static_cast<std::uint16_t>(passage.arrived - passage.left)};
    to += f.chunks * f.padded;
    next += step;
    carry += rest;
    if (carry >= segments) {
      carry -= segments;
      ++next;
    }
  };
  std::uint32_t words[kAtOnce], delayed[kAtOnce], next_words[kAtOnce], next_delayed[kAtOnce];
  const auto fetch = [&](int from) {
#pragma unroll
    for (int g = 0; g < kAtOnce; ++g) {
      const bool there = from + g < last;
      next_words[g] = there ? passage.word(first + from + g) : 0;
      next_delayed[g] = there ? passage.delayed(first + from + g) : 0;
    }
  };
  fetch(0);
  for (int from = 0; from < last; from += kAtOnce) {
#pragma unroll
    for (int g = 0; g < kAtOnce; ++g) {
      words[g] = next_words[g];
      delayed[g] = next_delayed[g];
    }
    fetch(from + kAtOnce);
#pragma unroll
    for (int g = 0; g < kAtOnce; ++g) {
      if (from + g >= last) break;
      if (from + g == next) note();
      passage.go_on(words[g], delayed[g]);
#pragma unroll
      for (int e = 0; e < kGroup; ++e) {
        passage.turn(e, served);
        served = passage.after;
      }
    }
  }
  note();
}

// ---- the turns of each entry ---------------------------------------------------------------------------------------

std::int64_t turn_bytes(const Turns& f) { return 4 * static_cast<std::int64_t>(kGroupWarps + 1) * f.most; }

// What threads of a block have in common, and one of them finds with its many divisions.
struct Segment {
  std::int64_t q, chunk, first, before, group, first_group;  // turns where it and the one before it begin; groups
  int turns, count_before, ring_first, ring_before;
  bool begins_part, ends_part;

  __device__ Segment(const Turns& f, std::int64_t number)
      : q(number / f.chunks),
        chunk(number % f.chunks),
        first(f.begin(q)),
        before(q % f.segments > 0 ? f.begin(q - 1) : first),
        group(f.group(q)),
        first_group(f.first_group(q / f.segments)),
        turns(f.turns(q)),
        count_before(f.count(before, first)),
        ring_first(static_cast<int>(first % f.ring()) * f.tile),
        ring_before(static_cast<int>(before % f.ring()) * f.tile),
        begins_part(q % f.segments == 0),
        ends_part((q + 1) % f.segments == 0) {}
};

// A block of threads has a segment, a chunk and a group of warps that are to use the schedule; a thread a row of S A.
__global__ void __launch_bounds__(kMostRows / kWarpGroups, 4)
    turns_kernel(const Turns f, const Sorted sorted, const Schedule schedule) {
  extern __shared__ __align__(16) char shared[];
  std::uint32_t* const counts = reinterpret_cast<std::uint32_t*>(shared);  // of late entries
  std::uint32_t* const starts = counts + kGroupWarps * f.most;             // of a turn's, among all
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, padded = f.padded;
  const int threads = padded / kWarpGroups, warps = static_cast<int>(blockIdx.x) % kWarpGroups;  // a group of warps
  const int first_row = warps * threads, row = first_row + thread;
  const std::int64_t number = blockIdx.x / kWarpGroups;  // of the segment and chunk
  __shared__ __align__(8) char common[sizeof(Segment)];
  const Segment& segment = *reinterpret_cast<const Segment*>(common);
  if (thread == 0) new (common) Segment(f, number);
  __syncthreads();
  const std::int64_t chunk = segment.chunk, first = segment.first, group = segment.group;
  const int turns = segment.turns;
  const bool ends_part = segment.ends_part;
  for (int i = thread; i < turns * kGroupWarps; i += threads) counts[i] = 0;

  const Queue queue = sorted.queues[number * padded + row];
  const std::uint32_t* const begins = sorted.begins + number * padded;
  const std::uint16_t* const own = sorted.entries + number * f.room() + begins[row];
  const std::uint16_t* earlier = own;  // behind what may still wait
  const int ring_rows = f.ring() * f.tile;
  const int ring_first = segment.ring_first;
  int ring_earlier = 0;
  auto rest = static_cast<std::uint32_t>(number * f.late_room()) + begins[first_row];
  if (!segment.begins_part) {
    const std::int64_t other = number - f.chunks;
    const std::uint32_t* const others = sorted.begins + other * padded;
    const auto end =
        row + 1 < padded ? others[row + 1] : static_cast<std::uint32_t>(segment.count_before * f.blocks(chunk));
    earlier = sorted.entries + other * f.room() + end;
    ring_earlier = segment.ring_before;
    rest += others[first_row];
  }
  const float per_ring = 1.0f / static_cast<float>(ring_rows);
  const auto code_of = [&](int place) {
    const std::uint32_t entry = (place < 0 ? earlier : own)[place];
    const int at = static_cast<int>(entry & kRow) + (place < 0 ? ring_earlier : ring_first);
    const int rounds = static_cast<int>((static_cast<float>(at) + 0.5f) * per_ring);
    return static_cast<std::uint32_t>(at - rounds * ring_rows) << kLineShift | (entry & 0x8000u) << 16;
  };
  const int each = padded / kSlots, warp = thread / (4 * each);
  const std::uint32_t target =
      static_cast<std::uint32_t>(row % each) << kLateRow | static_cast<std::uint32_t>(row / each % 4) << kLateSlot;
  const auto for_turns = [&](const auto& body) {
    Passage passage(f, sorted, chunk, row, segment.first_group, group);
    passage.left = -static_cast<int>(queue.staying);
    int served = -static_cast<int>(queue.waiting);
    for (int begin = 0; begin < turns; begin += kGroup) {
      const std::int64_t now = group + begin / kGroup;
      passage.go_on(passage.word(now), passage.delayed(now));
#pragma unroll
      for (int e = 0; e < kGroup; ++e) {
        const int turn = begin + e;
        if (turn >= turns) break;
        passage.turn(e, served);
        const int after = ends_part && turn + 1 == turns ? passage.arrived : passage.after;
        body(turn, served, passage.on_time, after);
        served = after;
      }
    }
  };
  __syncthreads();
  for_turns([&](int turn, int, int on_time, int after) {
    if (after > on_time) atomicAdd(counts + turn * kGroupWarps + warp, static_cast<unsigned>(after - on_time));
  });
  __syncthreads();
  const std::int64_t step = f.chunks * record_words(padded);
  std::uint32_t* const record = schedule.records + (first * f.chunks + chunk) * record_words(padded);
  const int heads = padded / 2 + warps * kGroupWarps, places = padded / 2 + kTurnWarps + warps,
            lates = padded / 2 + kHeads + warps * kMostLate;
  // counts become what is before each in its turn.
  for (int i = thread; i - lane < turns * kGroupWarps; i += threads) {
    const bool there = i < turns * kGroupWarps;
    const std::uint32_t late = there ? counts[i] : 0;
    std::uint32_t sum = late;
#pragma unroll
    for (int distance = 1; distance < kGroupWarps; distance *= 2) {
      const std::uint32_t other = __shfl_up_sync(kAll, sum, distance);
      if (lane % kGroupWarps >= distance) sum += other;
    }
    if (!there) continue;
    counts[i] = sum - late;
    record[i / kGroupWarps * step + heads + i % kGroupWarps] = (sum - late) | late << 16;
    if (i % kGroupWarps == kGroupWarps - 1) starts[i / kGroupWarps] = sum;
  }
  __syncthreads();
  if (thread == 0)
    for (int turn = 0; turn < turns; ++turn) {
      const std::uint32_t total = starts[turn];
      starts[turn] = rest;
      rest += total;
    }
  __syncthreads();
  for (int turn = thread; turn < turns; turn += threads) record[turn * step + places] = starts[turn];
  // The threads of a warp take places in any order: their rows of S A are different sums.
  for_turns([&](int turn, int before, int on_time, int after) {
    const std::uint32_t code = on_time > before ? code_of(before) : static_cast<std::uint32_t>(ring_rows) << kLineShift;
    const std::uint32_t second = __shfl_xor_sync(kAll, code, 1);
    if (row % 2 == 0)
      record[turn * step + row / 2] = (code & kPlaces) | code >> 31 | (second & kPlaces) << kSecond | (second & kSign);
    if (after > on_time) {
      std::uint32_t at = atomicAdd(counts + turn * kGroupWarps + warp, static_cast<unsigned>(after - on_time));
      for (int place = on_time; place < after; ++place, ++at)
        (at < kMostLate ? record[turn * step + lates + at] : schedule.rest[starts[turn] + at]) =
            code_of(place) | target;
    }
  });
}

// ---- memory --------------------------------------------------------------------------------------------------------

struct Memory {
  Sorted sorted;
  Schedule schedule;
  std::int64_t bytes;
};

Memory lay_out(const Turns& f, char* begin) {
  const std::int64_t records = f.all_segments() * f.chunks;
  std::int64_t used = 0;
  const auto take = [&](auto*& part, std::int64_t count) {
    part = begin == nullptr ? nullptr : reinterpret_cast<std::remove_reference_t<decltype(part)>>(begin + used);
    used += ceil_div(count * static_cast<std::int64_t>(sizeof(*part)), kAligned) * kAligned;
  };
  Memory parts{};
  take(parts.sorted.entries, records * f.room());
  take(parts.sorted.begins, records * f.padded);
  take(parts.sorted.counts, f.groups() * f.chunks * f.padded);
  take(parts.sorted.queues, records * f.padded);
  take(parts.schedule.records, f.tiles * f.chunks * record_words(f.padded));
  take(parts.schedule.rest, records * f.late_room());
  parts.bytes = used;
  return parts;
}

}  // namespace

std::int64_t schedule_bytes(const Turns& f) { return lay_out(f, nullptr).bytes; }

Schedule make_schedule(const Execution& exec, char* memory, const Turns& f) {
  const std::int64_t records = f.all_segments() * f.chunks;
  const Memory parts = lay_out(f, memory);
  const Sorted& sorted = parts.sorted;
  allow_shared(sort_kernel, sort_bytes(f));
  sort_kernel<<<grid_of(records), kThreads, static_cast<std::size_t>(sort_bytes(f)), stream(exec)>>>(f, sorted);
  QUADRIC_CUDA_LAUNCHED();
  queues_kernel<<<grid_of(f.parts * f.chunks * f.padded / kQueueThreads), kQueueThreads, 0, stream(exec)>>>(f, sorted);
  QUADRIC_CUDA_LAUNCHED();
  turns_kernel<<<grid_of(records * kWarpGroups), static_cast<unsigned>(f.padded / kWarpGroups),
                 static_cast<std::size_t>(turn_bytes(f)), stream(exec)>>>(f, sorted, parts.schedule);
  QUADRIC_CUDA_LAUNCHED();
  return parts.schedule;
}

}  // namespace quadric::cuda::sketch
