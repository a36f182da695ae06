#include "sweep/panel.hpp"

namespace quadric::sweep::detail {

template <class T>
const PanelKernels<T>& panel_kernels() {
  switch (simd_level()) {
#ifdef QUADRIC_X86
    case SimdLevel::v4:
      return v4::panel_kernels<T>();
    case SimdLevel::v3:
      return v3::panel_kernels<T>();
#endif
    default:
      return baseline::panel_kernels<T>();
  }
}
template const PanelKernels<float>& panel_kernels<float>();
template const PanelKernels<double>& panel_kernels<double>();

}  // namespace quadric::sweep::detail
