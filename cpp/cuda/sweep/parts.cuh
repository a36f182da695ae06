// A number of float32 as the sum of two of float16; see split.hpp.
#pragma once

#include <cuda_fp16.h>

namespace quadric::cuda::sweep {

struct Parts {
  __half high, low;

  __device__ explicit Parts(float x) : high(__float2half_rn(x)), low(__float2half_rn(x - __half2float(high))) {}
};

}  // namespace quadric::cuda::sweep
