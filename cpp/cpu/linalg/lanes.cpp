// The lane kernels, compiled once per instruction set: QUADRIC_LEVEL names the namespace, QUADRIC_VECTOR_BYTES the
// register width. A pack is one AVX-512 register; narrower levels go through its parts one after another, which are
// independent problems. No header here may bring inline functions that the rest of the library uses too.
#include "linalg/lanes.hpp"

#include <cstdint>

#include "vectors.hpp"

namespace quadric::linalg::detail::QUADRIC_LEVEL {
namespace {

using namespace quadric::QUADRIC_LEVEL;

// Columns of a tile that are summed at once: with four rows, 16 accumulators of 32 registers or 8 of 16.
constexpr int kColumns = QUADRIC_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int kRows = kTile;

template <class T>
using Tile = V<T>[kTile][kTile];

// tile(t, u) += sum_k a[t][k] b[u][k]; the entries of a[t] and b[u] lie side by side. Sign: +1 or -1.
template <class T, int Sign>
inline void add_products(const T* const (&a)[kTile], const T* const (&b)[kTile], std::int64_t depth, Tile<T>& tile) {
  for (int u0 = 0; u0 < kTile; u0 += kColumns) {
    V<T> sum[kRows][kColumns];
    for (int t = 0; t < kRows; ++t)
      for (int u = 0; u < kColumns; ++u) sum[t][u] = tile[t][u0 + u];
    for (std::int64_t k = 0; k < depth * kPack<T>; k += kPack<T>) {
      V<T> bk[kColumns];
      for (int u = 0; u < kColumns; ++u) bk[u] = vec(b[u0 + u] + k);
      for (int t = 0; t < kRows; ++t) {
        const V<T> at = vec(a[t] + k);
        for (int u = 0; u < kColumns; ++u) {
          if constexpr (Sign > 0)
            sum[t][u] += at * bk[u];
          else
            sum[t][u] -= at * bk[u];
        }
      }
    }
    for (int t = 0; t < kRows; ++t)
      for (int u = 0; u < kColumns; ++u) tile[t][u0 + u] = sum[t][u];
  }
}

// The same with entries (k, t) and (k, u) of packed lower matrices: row k begins at packed(k).
template <class T>
inline void add_column_products(const T* m, std::int64_t i0, std::int64_t j0, std::int64_t from, std::int64_t to,
                                Tile<T>& tile) {
  for (int u0 = 0; u0 < kTile; u0 += kColumns) {
    V<T> sum[kRows][kColumns];
    for (int t = 0; t < kRows; ++t)
      for (int u = 0; u < kColumns; ++u) sum[t][u] = tile[t][u0 + u];
    const T* row = m + packed(from) * kPack<T>;
    for (std::int64_t k = from; k < to; ++k) {
      V<T> bk[kColumns];
      for (int u = 0; u < kColumns; ++u) bk[u] = vec(row + (j0 + u0 + u) * kPack<T>);
      for (int t = 0; t < kRows; ++t) {
        const V<T> at = vec(row + (i0 + t) * kPack<T>);
        for (int u = 0; u < kColumns; ++u) sum[t][u] += at * bk[u];
      }
      row += (k + 1) * kPack<T>;
    }
    for (int t = 0; t < kRows; ++t)
      for (int u = 0; u < kColumns; ++u) tile[t][u0 + u] = sum[t][u];
  }
}

// tile(t, u) += sum_{from <= k < to} a[t][k] m(k, j0 + u): rows of a, rows k of the packed matrix m.
template <class T>
inline void add_mixed_products(const T* const (&a)[kTile], const T* m, std::int64_t j0, std::int64_t from,
                               std::int64_t to, Tile<T>& tile) {
  for (int u0 = 0; u0 < kTile; u0 += kColumns) {
    V<T> sum[kRows][kColumns];
    for (int t = 0; t < kRows; ++t)
      for (int u = 0; u < kColumns; ++u) sum[t][u] = tile[t][u0 + u];
    const T* row = m + (packed(from) + j0 + u0) * kPack<T>;
    for (std::int64_t k = from; k < to; ++k) {
      V<T> bk[kColumns];
      for (int u = 0; u < kColumns; ++u) bk[u] = vec(row + u * kPack<T>);
      for (int t = 0; t < kRows; ++t) {
        const V<T> at = vec(a[t] + k * kPack<T>);
        for (int u = 0; u < kColumns; ++u) sum[t][u] += at * bk[u];
      }
      row += (k + 1) * kPack<T>;
    }
    for (int t = 0; t < kRows; ++t)
      for (int u = 0; u < kColumns; ++u) tile[t][u0 + u] = sum[t][u];
  }
}

template <class T>
inline void clear(Tile<T>& tile) {
  for (int t = 0; t < kTile; ++t)
    for (int u = 0; u < kTile; ++u) tile[t][u] = V<T>{};
}

// ---- kernels on one part of a pack ---------------------------------------------------------------------------------

template <class T>
void gram(const T* x, std::int64_t n, std::int64_t depth, std::int64_t depth_stride, T* sums) {
  const std::int64_t stride = depth_stride * kPack<T>;
  for (std::int64_t i0 = 0; i0 < n; i0 += kTile) {
    // Rows beyond the last repeat it, and their sums are dropped.
    const T* a[kTile];
    for (int t = 0; t < kTile; ++t) a[t] = x + smaller(i0 + t, n - 1) * stride;
    for (std::int64_t j0 = 0; j0 <= i0; j0 += kTile) {
      const T* b[kTile];
      for (int u = 0; u < kTile; ++u) b[u] = x + smaller(j0 + u, n - 1) * stride;
      Tile<T> tile;
      clear<T>(tile);
      add_products<T, 1>(a, b, depth, tile);
      for (int t = 0; t < kTile && i0 + t < n; ++t)
        for (int u = 0; u < kTile && j0 + u <= i0 + t; ++u)
          loose(sums + (packed(i0 + t) + j0 + u) * kPack<T>) += tile[t][u];
    }
  }
}

template <class T>
void cholesky(T* a, std::int64_t n, T* reciprocal, std::int32_t* status) {
  using S = Simd<T>;
  const auto at = [a](std::int64_t i, std::int64_t j) { return a + (packed(i) + j) * kPack<T>; };
  I<T> failed;
  for (int lane = 0; lane < kLanes<T>; ++lane) failed[lane] = status[lane];
  for (std::int64_t j0 = 0; j0 < n; j0 += kTile) {
    const T* b[kTile];
    for (int u = 0; u < kTile; ++u) b[u] = at(j0 + u, 0);
    Tile<T> tile, diagonal;
    V<T> scale[kTile];
    for (int t = 0; t < kTile; ++t)
      for (int u = 0; u < kTile; ++u) diagonal[t][u] = u <= t ? vec(at(j0 + t, j0 + u)) : V<T>{};
    add_products<T, -1>(b, b, j0, diagonal);
    for (int u = 0; u < kTile; ++u) {
      V<T> pivot = diagonal[u][u];
      for (int v = 0; v < u; ++v) pivot -= diagonal[u][v] * diagonal[u][v];
      const I<T> good = (pivot > V<T>{}) & (pivot <= S::kMax);
      failed = failed < 0 && ~good ? I<T>{} + static_cast<typename S::Int>(j0 + u) : failed;
      pivot = good ? pivot : splat<T>(T(1));
      const V<T> root = square_root<T>(pivot);
      scale[u] = T(1) / root;
      diagonal[u][u] = root;
      vec(reciprocal + (j0 + u) * kPack<T>) = scale[u];
      for (int t = u + 1; t < kTile; ++t) {
        for (int v = 0; v < u; ++v) diagonal[t][u] -= diagonal[t][v] * diagonal[u][v];
        diagonal[t][u] *= scale[u];
      }
    }
    for (int t = 0; t < kTile; ++t)
      for (int u = 0; u <= t; ++u) vec(at(j0 + t, j0 + u)) = diagonal[t][u];
    for (std::int64_t i0 = j0 + kTile; i0 < n; i0 += kTile) {
      const T* rows[kTile];
      for (int t = 0; t < kTile; ++t) {
        rows[t] = at(i0 + t, 0);
        for (int u = 0; u < kTile; ++u) tile[t][u] = vec(at(i0 + t, j0 + u));
      }
      add_products<T, -1>(rows, b, j0, tile);
      for (int t = 0; t < kTile; ++t) {
        for (int u = 0; u < kTile; ++u) {
          for (int v = 0; v < u; ++v) tile[t][u] -= tile[t][v] * diagonal[u][v];
          tile[t][u] *= scale[u];
          vec(at(i0 + t, j0 + u)) = tile[t][u];
        }
      }
    }
  }
  for (int lane = 0; lane < kLanes<T>; ++lane) status[lane] = static_cast<std::int32_t>(failed[lane]);
}

// work: the inverted diagonal tiles as full tiles with their zeros (n x kTile), then a copy of a row of tiles.
template <class T>
void invert(T* l, std::int64_t n, const T* reciprocal, T* work) {
  const auto at = [l](std::int64_t i, std::int64_t j) { return l + (packed(i) + j) * kPack<T>; };
  T* const copy = work + n * kTile * kPack<T>;
  for (std::int64_t i0 = 0; i0 < n; i0 += kTile) {
    const T* rows[kTile];
    for (int t = 0; t < kTile; ++t) {
      T* to = copy + t * n * kPack<T>;
      const T* from = at(i0 + t, 0);
      for (std::int64_t k = 0; k < i0 * kPack<T>; k += kPack<T>) vec(to + k) = vec(from + k);
      rows[t] = to;
    }
    Tile<T> inverse;
    clear<T>(inverse);
    for (int t = 0; t < kTile; ++t) {
      const V<T> scale = vec(reciprocal + (i0 + t) * kPack<T>);
      inverse[t][t] = scale;
      for (int u = 0; u < t; ++u) {
        V<T> sum{};
        for (int v = u; v < t; ++v) sum += vec(at(i0 + t, i0 + v)) * inverse[v][u];
        inverse[t][u] = -sum * scale;
      }
    }
    for (int t = 0; t < kTile; ++t) {
      for (int u = 0; u < kTile; ++u) {
        vec(work + ((i0 + t) * kTile + u) * kPack<T>) = inverse[t][u];
        if (u <= t) vec(at(i0 + t, i0 + u)) = inverse[t][u];
      }
    }
    for (std::int64_t j0 = 0; j0 < i0; j0 += kTile) {
      Tile<T> tile;
      clear<T>(tile);
      for (int v = 0; v < kTile; ++v) {
        const T* full = work + (j0 + v) * kTile * kPack<T>;
        for (int t = 0; t < kTile; ++t)
          for (int u = 0; u <= v; ++u) tile[t][u] += vec(rows[t] + (j0 + v) * kPack<T>) * vec(full + u * kPack<T>);
      }
      add_mixed_products<T>(rows, l, j0, j0 + kTile, i0, tile);
      for (int t = 0; t < kTile; ++t) {
        for (int u = 0; u < kTile; ++u) {
          V<T> sum{};
          for (int v = 0; v <= t; ++v) sum += inverse[t][v] * tile[v][u];
          vec(at(i0 + t, j0 + u)) = -sum;
        }
      }
    }
  }
}

template <class T>
void product(T* m, std::int64_t n, const T* work) {
  const auto at = [m](std::int64_t i, std::int64_t j) { return m + (packed(i) + j) * kPack<T>; };
  // Row of tiles i0 of the result needs rows i0 and below of M, so it may take the place of row i0.
  for (std::int64_t i0 = 0; i0 < n; i0 += kTile) {
    const T* full = work + i0 * kTile * kPack<T>;
    for (std::int64_t j0 = 0; j0 <= i0; j0 += kTile) {
      Tile<T> tile;
      clear<T>(tile);
      for (int v = 0; v < kTile; ++v) {
        const T* row = j0 == i0 ? full + v * kTile * kPack<T> : at(i0 + v, j0);
        for (int u = 0; u < kTile; ++u) {
          const V<T> mu = vec(row + u * kPack<T>);
          for (int t = 0; t <= v; ++t) tile[t][u] += vec(full + (v * kTile + t) * kPack<T>) * mu;
        }
      }
      add_column_products<T>(m, i0, j0, i0 + kTile, n, tile);
      for (int t = 0; t < kTile; ++t)
        for (int u = 0; u < kTile; ++u)
          if (j0 + u <= i0 + t) vec(at(i0 + t, j0 + u)) = tile[t][u];
    }
  }
}

template <class T>
void group(const T* m, std::int64_t n, std::int64_t first, std::int64_t g, T* out) {
  for (std::int64_t i = first; i < first + g; ++i) {
    for (std::int64_t j = first; j <= i; ++j) {
      V<T> sum{};
      const T* row = m + packed(i) * kPack<T>;
      for (std::int64_t k = i; k < n; ++k) {
        sum += vec(row + i * kPack<T>) * vec(row + j * kPack<T>);
        row += (k + 1) * kPack<T>;
      }
      vec(out) = sum;
      out += kPack<T>;
    }
  }
}

template <class T>
void forward(const T* l, std::int64_t n, const T* reciprocal, T* y) {
  const T* row = l;
  for (std::int64_t i = 0; i < n; ++i) {
    V<T> sum[2] = {vec(y + i * kPack<T>), V<T>{}};
    for (std::int64_t k = 0; k < i; ++k) sum[k % 2] -= vec(row + k * kPack<T>) * vec(y + k * kPack<T>);
    vec(y + i * kPack<T>) = (sum[0] + sum[1]) * vec(reciprocal + i * kPack<T>);
    row += (i + 1) * kPack<T>;
  }
}

template <class T>
void backward(const T* l, std::int64_t n, const T* reciprocal, T* y) {
  for (std::int64_t i = n - 1; i >= 0; --i) {
    const T* row = l + packed(i) * kPack<T>;
    const V<T> x = vec(y + i * kPack<T>) * vec(reciprocal + i * kPack<T>);
    vec(y + i * kPack<T>) = x;
    for (std::int64_t k = 0; k < i; ++k) vec(y + k * kPack<T>) -= vec(row + k * kPack<T>) * x;
  }
}

template <class T>
void forward_many(const T* l, std::int64_t n, const T* reciprocal, T* x, std::int64_t columns) {
  constexpr int kWidth = 8;  // columns that are solved together: accumulators of one row
  for (std::int64_t c0 = 0; c0 < columns; c0 += kWidth) {
    const int width = static_cast<int>(smaller(kWidth, columns - c0));
    for (std::int64_t i = 0; i < n; ++i) {
      const T* row = l + packed(i) * kPack<T>;
      T* const xi = x + (i * columns + c0) * kPack<T>;
      V<T> sum[kWidth];
      for (int c = 0; c < kWidth; ++c) sum[c] = c < width ? vec(xi + c * kPack<T>) : V<T>{};
      for (std::int64_t k = 0; k < i; ++k) {
        const V<T> lk = vec(row + k * kPack<T>);
        const T* const xk = x + (k * columns + c0) * kPack<T>;
        if (width == kWidth) {
          for (int c = 0; c < kWidth; ++c) sum[c] -= lk * vec(xk + c * kPack<T>);
        } else {
          for (int c = 0; c < width; ++c) sum[c] -= lk * vec(xk + c * kPack<T>);
        }
      }
      for (int c = 0; c < width; ++c) vec(xi + c * kPack<T>) = sum[c] * vec(reciprocal + i * kPack<T>);
    }
  }
}

template <class T>
void damp(const T* sums, std::int64_t n, T scale, T shift, T* a) {
  for (std::int64_t i = 0; i < padded(n); ++i) {
    for (std::int64_t j = 0; j < i; ++j, sums += kPack<T>, a += kPack<T>) {
      if (i < n)
        vec(a) = loose(sums) * scale;
      else
        vec(a) = V<T>{};
    }
    vec(a) = i < n ? loose(sums) * scale + shift : splat<T>(T(1));
    sums += kPack<T>;
    a += kPack<T>;
  }
}

template <class T>
void mask(T* a, std::int64_t n, const T* keep) {
  for (std::int64_t i = 0; i < n; ++i) {
    const V<T> ki = vec(keep + i * kPack<T>);
    for (std::int64_t j = 0; j < i; ++j, a += kPack<T>) vec(a) *= ki * vec(keep + j * kPack<T>);
    vec(a) = vec(a) * ki + (T(1) - ki);
    a += kPack<T>;
  }
}

template <class T>
void symmetric_multiply(const T* a, std::int64_t n, const T* v, T* out) {
  for (std::int64_t i = 0; i < n; ++i) {
    const V<T> vi = vec(v + i * kPack<T>);
    V<T> sum{};
    for (std::int64_t j = 0; j < i; ++j, a += kPack<T>) {
      sum += vec(a) * vec(v + j * kPack<T>);
      vec(out + j * kPack<T>) += vec(a) * vi;
    }
    vec(out + i * kPack<T>) = sum + vec(a) * vi;
    a += kPack<T>;
  }
}

template <class T>
void multiply(const T* x, std::int64_t rows, std::int64_t columns, const T* v, T* out) {
  for (std::int64_t r = 0; r < rows; ++r, x += columns * kPack<T>) {
    V<T> sum[2] = {};
    for (std::int64_t i = 0; i < columns; ++i) sum[i % 2] += vec(x + i * kPack<T>) * vec(v + i * kPack<T>);
    vec(out + r * kPack<T>) = sum[0] + sum[1];
  }
}

template <class T>
void multiply_transposed(const T* x, std::int64_t rows, std::int64_t columns, const T* c, T* out) {
  for (std::int64_t i = 0; i < columns * kPack<T>; i += kPack<T>) vec(out + i) = V<T>{};
  for (std::int64_t r = 0; r < rows; ++r, x += columns * kPack<T>) {
    const V<T> cr = vec(c + r * kPack<T>);
    for (std::int64_t i = 0; i < columns * kPack<T>; i += kPack<T>) vec(out + i) += vec(x + i) * cr;
  }
}

template <class T>
void scale_columns(T* x, std::int64_t rows, std::int64_t columns, const T* keep) {
  for (std::int64_t r = 0; r < rows; ++r, x += columns * kPack<T>)
    for (std::int64_t i = 0; i < columns * kPack<T>; i += kPack<T>) vec(x + i) *= vec(keep + i);
}

template <class T>
void cross(const T* x, std::int64_t rows, std::int64_t columns, std::int64_t first, std::int64_t g, T* out) {
  for (std::int64_t i = first; i < first + g; ++i) {
    for (std::int64_t j = first; j <= i; ++j, out += kPack<T>) {
      V<T> sum{};
      for (std::int64_t r = 0; r < rows; ++r)
        sum += vec(x + (r * columns + i) * kPack<T>) * vec(x + (r * columns + j) * kPack<T>);
      vec(out) = sum;
    }
  }
}

// ---- transposition -------------------------------------------------------------------------------------------------

template <class T>
inline V<T> zip_low(V<T> a, V<T> b) {
  if constexpr (kLanes<T> == 16)
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  else if constexpr (kLanes<T> == 8)
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  else if constexpr (kLanes<T> == 4)
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
  else
    return __builtin_shufflevector(a, b, 0, 2);
}

template <class T>
inline V<T> zip_high(V<T> a, V<T> b) {
  if constexpr (kLanes<T> == 16)
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  else if constexpr (kLanes<T> == 8)
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  else if constexpr (kLanes<T> == 4)
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
  else
    return __builtin_shufflevector(a, b, 1, 3);
}

// kLanes vectors become their transpose: zipping the halves log2(kLanes) times is a perfect shuffle.
template <class T>
inline void transpose(V<T> (&x)[kLanes<T>]) {
  constexpr int kHalf = kLanes<T> / 2;
  for (int stage = 1; stage < kLanes<T>; stage *= 2) {
    V<T> y[kLanes<T>];
    for (int i = 0; i < kHalf; ++i) {
      y[2 * i] = zip_low<T>(x[i], x[i + kHalf]);
      y[2 * i + 1] = zip_high<T>(x[i], x[i + kHalf]);
    }
    for (int i = 0; i < kLanes<T>; ++i) x[i] = y[i];
  }
}

template <class T>
void load(const T* src, std::int64_t lane_stride, std::int64_t count, std::int64_t lanes, T* out, std::int64_t stride) {
  std::int64_t i = 0;
  if (lanes == kPack<T>) {
    for (; i + kLanes<T> <= count; i += kLanes<T>) {
      for (std::int64_t part = 0; part < kPack<T>; part += kLanes<T>) {
        V<T> x[kLanes<T>];
        for (int r = 0; r < kLanes<T>; ++r) x[r] = loose(src + (part + r) * lane_stride + i);
        transpose<T>(x);
        for (int r = 0; r < kLanes<T>; ++r) vec(out + (i + r) * stride * kPack<T> + part) = x[r];
      }
    }
  }
  for (; i < count; ++i) {
    T* const to = out + i * stride * kPack<T>;
    for (std::int64_t lane = 0; lane < kPack<T>; ++lane) to[lane] = lane < lanes ? src[lane * lane_stride + i] : T(0);
  }
}

template <class T>
void load_float(const float* src, std::int64_t lane_stride, std::int64_t count, std::int64_t available, T* out,
                std::int64_t stride) {
  using Singles = typename Simd<T>::Singles;
  // Vectors may read beyond the last entry of a lane, as long as it is the caller's.
  const std::int64_t limit = available - (kPack<T> - 1) * lane_stride - kLanes<T>;
  std::int64_t i = 0;
  for (; i < count && i <= limit; i += kLanes<T>) {
    for (std::int64_t part = 0; part < kPack<T>; part += kLanes<T>) {
      V<T> x[kLanes<T>];
      for (int r = 0; r < kLanes<T>; ++r)
        x[r] = from_singles(*reinterpret_cast<const Singles*>(src + (part + r) * lane_stride + i), T());
      transpose<T>(x);
      T* const to = out + i * stride * kPack<T> + part;
      const int rows = static_cast<int>(smaller(kLanes<T>, count - i));
      if (rows == kLanes<T>) {
        for (int r = 0; r < kLanes<T>; ++r) vec(to + r * stride * kPack<T>) = x[r];
      } else {
        for (int r = 0; r < rows; ++r) vec(to + r * stride * kPack<T>) = x[r];
      }
    }
  }
  for (; i < count; ++i)
    for (std::int64_t lane = 0; lane < kPack<T>; ++lane)
      out[i * stride * kPack<T> + lane] = static_cast<T>(src[lane * lane_stride + i]);
}

template <class T>
void store(const T* in, std::int64_t stride, std::int64_t count, std::int64_t lanes, T* dst, std::int64_t lane_stride) {
  std::int64_t i = 0;
  if (lanes == kPack<T>) {
    for (; i + kLanes<T> <= count; i += kLanes<T>) {
      for (std::int64_t part = 0; part < kPack<T>; part += kLanes<T>) {
        V<T> x[kLanes<T>];
        for (int r = 0; r < kLanes<T>; ++r) x[r] = vec(in + (i + r) * stride * kPack<T> + part);
        transpose<T>(x);
        for (int r = 0; r < kLanes<T>; ++r) loose(dst + (part + r) * lane_stride + i) = x[r];
      }
    }
  }
  for (; i < count; ++i)
    for (std::int64_t lane = 0; lane < lanes; ++lane) dst[lane * lane_stride + i] = in[i * stride * kPack<T> + lane];
}

// ---- all parts of a pack -------------------------------------------------------------------------------------------

template <class T, class Body>
inline void for_parts(const Body& body) {
  for (std::int64_t part = 0; part < kPack<T>; part += kLanes<T>) body(part);
}

}  // namespace

template <class T>
const LaneKernels<T>& lane_kernels() {
  static constexpr LaneKernels<T> kernels = {
      [](const T* x, std::int64_t n, std::int64_t depth, std::int64_t depth_stride, T* sums) {
        for_parts<T>([=](std::int64_t p) { gram<T>(x + p, n, depth, depth_stride, sums + p); });
      },
      [](T* a, std::int64_t n, T* reciprocal, std::int32_t* status) {
        for_parts<T>([=](std::int64_t p) { cholesky<T>(a + p, n, reciprocal + p, status + p); });
      },
      [](T* l, std::int64_t n, const T* reciprocal, T* work) {
        for_parts<T>([=](std::int64_t p) { invert<T>(l + p, n, reciprocal + p, work + p); });
      },
      [](T* m, std::int64_t n, const T* work) {
        for_parts<T>([=](std::int64_t p) { product<T>(m + p, n, work + p); });
      },
      [](const T* m, std::int64_t n, std::int64_t first, std::int64_t g, T* out) {
        for_parts<T>([=](std::int64_t p) { group<T>(m + p, n, first, g, out + p); });
      },
      [](const T* l, std::int64_t n, const T* reciprocal, T* y) {
        for_parts<T>([=](std::int64_t p) { forward<T>(l + p, n, reciprocal + p, y + p); });
      },
      [](const T* l, std::int64_t n, const T* reciprocal, T* y) {
        for_parts<T>([=](std::int64_t p) { backward<T>(l + p, n, reciprocal + p, y + p); });
      },
      [](const T* l, std::int64_t n, const T* reciprocal, T* x, std::int64_t columns) {
        for_parts<T>([=](std::int64_t p) { forward_many<T>(l + p, n, reciprocal + p, x + p, columns); });
      },
      [](const T* sums, std::int64_t n, T scale, T shift, T* a) {
        for_parts<T>([=](std::int64_t p) { damp<T>(sums + p, n, scale, shift, a + p); });
      },
      [](T* a, std::int64_t n, const T* keep) { for_parts<T>([=](std::int64_t p) { mask<T>(a + p, n, keep + p); }); },
      [](const T* a, std::int64_t n, const T* v, T* out) {
        for_parts<T>([=](std::int64_t p) { symmetric_multiply<T>(a + p, n, v + p, out + p); });
      },
      [](const T* x, std::int64_t rows, std::int64_t columns, const T* v, T* out) {
        for_parts<T>([=](std::int64_t p) { multiply<T>(x + p, rows, columns, v + p, out + p); });
      },
      [](const T* x, std::int64_t rows, std::int64_t columns, const T* c, T* out) {
        for_parts<T>([=](std::int64_t p) { multiply_transposed<T>(x + p, rows, columns, c + p, out + p); });
      },
      [](T* x, std::int64_t rows, std::int64_t columns, const T* keep) {
        for_parts<T>([=](std::int64_t p) { scale_columns<T>(x + p, rows, columns, keep + p); });
      },
      [](const T* x, std::int64_t rows, std::int64_t columns, std::int64_t first, std::int64_t g, T* out) {
        for_parts<T>([=](std::int64_t p) { cross<T>(x + p, rows, columns, first, g, out + p); });
      },
      load<T>,
      load_float<T>,
      store<T>,
  };
  return kernels;
}
template const LaneKernels<float>& lane_kernels<float>();
template const LaneKernels<double>& lane_kernels<double>();

}  // namespace quadric::linalg::detail::QUADRIC_LEVEL
