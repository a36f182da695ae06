// Rows of numbers in any of the types that gradients are stored in. Kernels convert them as they read.
#pragma once

#include <cstdint>

namespace quadric {

enum class Storage { float16, bfloat16, float32, float64 };

struct StoredRows {
  const void* data = nullptr;
  Storage storage = Storage::float32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;  // elements between (i, j) and (i + 1, j); entries of a row are contiguous
};

}  // namespace quadric
