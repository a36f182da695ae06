// Long rows are handled in slabs of columns, so that what belongs to a slab stays in cache while the rows pass by.
#pragma once

#include <algorithm>
#include <cstdint>

#include "quadric/storage.hpp"

namespace quadric::woodbury {

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline std::int64_t element_size(Storage storage) {
  return storage == Storage::float64 ? 8 : storage == Storage::float32 ? 4 : 2;
}

inline const char* element(const StoredRows& G, std::int64_t i, std::int64_t j) {
  return static_cast<const char*>(G.data) + (i * G.row_stride + j) * element_size(G.storage);
}

// Columns [begin, begin + count) of all rows.
inline StoredRows columns(const StoredRows& G, std::int64_t begin, std::int64_t count) {
  StoredRows part = G;
  part.data = element(G, 0, begin);
  part.cols = count;
  return part;
}

// How d columns in blocks are cut: the slabs of block b make `parts` equal shares at most, one for a task.
struct Slabs {
  std::int64_t d, block_size, width;
  std::int64_t blocks, parts;

  Slabs(std::int64_t d_, std::int64_t block_size_, std::int64_t width_, std::int64_t most_parts)
      : d(d_),
        block_size(std::max<std::int64_t>(1, std::min(block_size_, d_))),
        width(std::min(width_, block_size)),
        blocks(ceil_div(d, block_size)),
        parts(std::min(most_parts, ceil_div(block_size, width))) {}

  std::int64_t tasks() const { return blocks * parts; }

  // body(first column, columns) for each slab of share `part` of block `block`.
  template <class Body>
  void for_share(std::int64_t block, std::int64_t part, const Body& body) const {
    const std::int64_t begin = block * block_size, end = std::min(d, begin + block_size);
    const std::int64_t slabs = ceil_div(end - begin, width);
    for (std::int64_t s = slabs * part / parts; s < slabs * (part + 1) / parts; ++s) {
      const std::int64_t first = begin + s * width;
      body(first, std::min(width, end - first));
    }
  }
};

}  // namespace quadric::woodbury
