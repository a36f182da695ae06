#include "transport/pass_kernels.hpp"

namespace quadric::transport::detail {

template <class T>
const PassKernels<T>& pass_kernels() {
  switch (simd_level()) {
#ifdef QUADRIC_X86
    case SimdLevel::v4:
      return v4::pass_kernels<T>();
    case SimdLevel::v3:
      return v3::pass_kernels<T>();
#endif
    default:
      return baseline::pass_kernels<T>();
  }
}
template const PassKernels<float>& pass_kernels<float>();
template const PassKernels<double>& pass_kernels<double>();

}  // namespace quadric::transport::detail
