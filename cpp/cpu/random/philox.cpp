#include "quadric/random.hpp"
#include "random/word_kernels.hpp"
#include "require.hpp"
#include "threads.hpp"

#include <algorithm>

namespace quadric::random {

void philox(const Execution& exec, Stream stream, std::uint64_t first, std::int64_t blocks, std::uint32_t* out) {
  QUADRIC_REQUIRE(blocks >= 0, "blocks must not be negative");
  constexpr std::int64_t kPiece = 1 << 14;
  const std::int64_t pieces = (blocks + kPiece - 1) / kPiece;
  const auto& kernels = detail::word_kernels();
  parallel_for(thread_count(exec, pieces), pieces, [&](std::int64_t piece, int) {
    const std::int64_t begin = piece * kPiece;
    kernels.blocks(stream.seed, stream.number, first + static_cast<std::uint64_t>(begin),
                   std::min(kPiece, blocks - begin), out + 4 * begin);
  });
}

}  // namespace quadric::random
