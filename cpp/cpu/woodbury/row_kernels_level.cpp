#include "woodbury/row_kernels.hpp"

namespace quadric::woodbury::detail {

template <class T>
const RowKernels<T>& row_kernels() {
  switch (simd_level()) {
#ifdef QUADRIC_X86
    case SimdLevel::v4:
      return v4::row_kernels<T>();
    case SimdLevel::v3:
      return v3::row_kernels<T>();
#endif
    default:
      return baseline::row_kernels<T>();
  }
}
template const RowKernels<float>& row_kernels<float>();
template const RowKernels<double>& row_kernels<double>();

}  // namespace quadric::woodbury::detail
