// Random words, compiled once per instruction set; see word_kernels.hpp.
#include "random/word_kernels.hpp"

#include "random/philox_vectors.hpp"

namespace quadric::random::detail::QUADRIC_LEVEL {

const WordKernels& word_kernels() {
  static constexpr WordKernels kernels = {quadric::QUADRIC_LEVEL::write_blocks};
  return kernels;
}

}  // namespace quadric::random::detail::QUADRIC_LEVEL
