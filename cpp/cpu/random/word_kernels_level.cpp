#include "random/word_kernels.hpp"

namespace quadric::random::detail {

const WordKernels& word_kernels() {
  switch (simd_level()) {
#ifdef QUADRIC_X86
    case SimdLevel::v4:
      return v4::word_kernels();
    case SimdLevel::v3:
      return v3::word_kernels();
#endif
    default:
      return baseline::word_kernels();
  }
}

}  // namespace quadric::random::detail
