#include <cuda_runtime_api.h>

#include "device.hpp"
#include "require.hpp"
#include "sketch/bulk_copies.cuh"

namespace quadric::cuda::sketch {
namespace {

// Of the driver, which is not linked.
auto encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  QUADRIC_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
#else
  QUADRIC_CUDA(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found));
#endif
  QUADRIC_REQUIRE(found == cudaDriverEntryPointSuccess, "the driver is too old: cuTensorMapEncodeTiled is missing");
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

}  // namespace

CUtensorMap tile_map(const void* data, int bytes, std::int64_t rows, std::int64_t cols, std::int64_t row_stride,
                     int box_rows, int box_cols) {
  static const auto encode = encoder();
  CUtensorMap map;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_stride * bytes)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_cols), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result =
      encode(&map, bytes == 8 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT64 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 2,
             const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  QUADRIC_REQUIRE(result == CUDA_SUCCESS, "a matrix of this shape and strides cannot be copied by tiles");
  return map;
}

}  // namespace quadric::cuda::sketch
