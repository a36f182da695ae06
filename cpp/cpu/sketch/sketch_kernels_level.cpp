#include "sketch/sketch_kernels.hpp"

namespace quadric::sketch::detail {

const DrawKernels& draw_kernels() {
  switch (simd_level()) {
#ifdef QUADRIC_X86
    case SimdLevel::v4:
      return v4::draw_kernels();
    case SimdLevel::v3:
      return v3::draw_kernels();
#endif
    default:
      return baseline::draw_kernels();
  }
}

template <class T>
const SketchKernels<T>& sketch_kernels() {
  switch (simd_level()) {
#ifdef QUADRIC_X86
    case SimdLevel::v4:
      return v4::sketch_kernels<T>();
    case SimdLevel::v3:
      return v3::sketch_kernels<T>();
#endif
    default:
      return baseline::sketch_kernels<T>();
  }
}
template const SketchKernels<float>& sketch_kernels<float>();
template const SketchKernels<double>& sketch_kernels<double>();

}  // namespace quadric::sketch::detail
