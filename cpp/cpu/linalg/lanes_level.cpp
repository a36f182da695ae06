#include "linalg/lanes.hpp"

namespace quadric::linalg::detail {

template <class T>
const LaneKernels<T>& lane_kernels() {
  switch (simd_level()) {
#ifdef QUADRIC_X86
    case SimdLevel::v4:
      return v4::lane_kernels<T>();
    case SimdLevel::v3:
      return v3::lane_kernels<T>();
#endif
    default:
      return baseline::lane_kernels<T>();
  }
}
template const LaneKernels<float>& lane_kernels<float>();
template const LaneKernels<double>& lane_kernels<double>();

}  // namespace quadric::linalg::detail
