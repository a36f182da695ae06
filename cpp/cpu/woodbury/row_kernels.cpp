// The row kernels, compiled once per instruction set; see row_kernels.hpp. No header here may bring inline functions
// that the rest of the library uses too.
#include "woodbury/row_kernels.hpp"

#include <cstdint>

#include "vectors.hpp"

namespace quadric::woodbury::detail::QUADRIC_LEVEL {
namespace {

using namespace quadric::QUADRIC_LEVEL;

// ---- storage types -------------------------------------------------------------------------------------------------

struct Float16 {
  std::uint16_t bits;
};
struct Bfloat16 {
  std::uint16_t bits;
};

constexpr int kHalves = QUADRIC_VECTOR_BYTES / 4;  // 16-bit numbers that make a vector of float32
using HalfBits = std::uint16_t __attribute__((vector_size(2 * kHalves), aligned(2), may_alias));
using HalfVector = Simd<double>::Singles;
using Words = Simd<float>::I;

// bfloat16 is the upper half of a float32.
inline V<float> decode(Words half, const Bfloat16*) { return from_bits<float>(half << 16); }
// float16 has a shorter exponent, whose bias differs by 112; the product is exact, for subnormal numbers too.
inline V<float> decode(Words half, const Float16*) {
  const Words value = (half & 0x7fff) << 13, sign = (half & 0x8000) << 16;
  const Words scaled = bits<float>(from_bits<float>(value) * 0x1p112f);
  const Words special = (half & 0x7c00) == 0x7c00;  // infinity and NaN
  return from_bits<float>(scaled | (special & 0x7f800000) | sign);
}

inline V<float> read_vector(const float* p) { return loose(p); }
inline V<double> read_vector(const double* p) { return loose(p); }
template <class Half>
inline V<float> read_vector(const Half* p) {
  return decode(__builtin_convertvector(*reinterpret_cast<const HalfBits*>(p), Words), p);
}

struct Wide {
  V<double> a, b;
};
inline Wide halves(V<float> x) {
  HalfVector half[2];
  __builtin_memcpy(half, &x, sizeof x);
  return {from_singles(half[0], 0.0), from_singles(half[1], 0.0)};
}

inline float read(const float* p) { return *p; }
inline double read(const double* p) { return *p; }
template <class Half>
inline float read(const Half* p) {
  return decode(Words{} + static_cast<std::int32_t>(p->bits), p)[0];
}

// Body(pointer of the storage type) for rows that are computed with in T.
template <class T, class Body>
inline void with_type(const void* data, Storage storage, const Body& body) {
  if constexpr (sizeof(T) == 8) {
    body(static_cast<const double*>(data));
  } else {
    switch (storage) {
      case Storage::float16:
        return body(static_cast<const Float16*>(data));
      case Storage::bfloat16:
        return body(static_cast<const Bfloat16*>(data));
      default:
        return body(static_cast<const float*>(data));
    }
  }
}

void widen_float(const void* src, Storage storage, std::int64_t n, float* out) {
  with_type<float>(src, storage, [=](auto* from) {
    std::int64_t i = 0;
    for (; i + kLanes<float> <= n; i += kLanes<float>) loose(out + i) = read_vector(from + i);
    for (; i < n; ++i) out[i] = read(from + i);
  });
}

void widen_double(const void* src, Storage storage, std::int64_t n, double* out) {
  if (storage == Storage::float64) {
    copy(out, static_cast<const double*>(src), n);
    return;
  }
  with_type<float>(src, storage, [=](auto* from) {
    std::int64_t i = 0;
    for (; i + kLanes<float> <= n; i += kLanes<float>) {
      const Wide x = halves(read_vector(from + i));
      loose(out + i) = x.a;
      loose(out + i + kLanes<double>) = x.b;
    }
    for (; i < n; ++i) out[i] = static_cast<double>(read(from + i));
  });
}

template <class T>
void narrow(const T* x, Storage storage, std::int64_t n, void* row) {
  if constexpr (sizeof(T) == 4) {
    if (storage == Storage::float16) {
      auto* to = static_cast<_Float16*>(row);
      for (std::int64_t i = 0; i < n; ++i) to[i] = static_cast<_Float16>(x[i]);
      return;
    }
    if (storage == Storage::bfloat16) {
      auto* to = static_cast<std::uint16_t*>(row);
      for (std::int64_t i = 0; i < n; ++i) {
        std::uint32_t word;
        __builtin_memcpy(&word, x + i, sizeof word);
        to[i] = static_cast<std::uint16_t>((word + 0x7fff + ((word >> 16) & 1)) >> 16);
      }
      return;
    }
  }
  copy(static_cast<T*>(row), x, n);
}

template <class T>
std::int64_t first_beyond(const T* x, std::int64_t n, T limit) {
  constexpr std::int64_t kStep = 16 * kLanes<T>;
  for (std::int64_t begin = 0; begin < n; begin += kStep) {
    const std::int64_t end = smaller(begin + kStep, n);
    bool good = true;
    for (std::int64_t i = begin; i < end; ++i) good &= (x[i] <= limit) & (x[i] >= -limit);
    for (std::int64_t i = begin; !good; ++i)
      if (!(x[i] <= limit && x[i] >= -limit)) return i;
  }
  return -1;
}

// ---- passes --------------------------------------------------------------------------------------------------------

template <class T>
void dots(const T* j, std::int64_t rows, std::int64_t n, const T* x, double* sums) {
  constexpr int kRows = 4;  // rows that share a read of x
  constexpr int kWays = 2;  // sums of a row, against the latency of an addition
  for (std::int64_t r0 = 0; r0 < rows; r0 += kRows) {
    const T* row[kRows];  // rows beyond the last repeat it
    for (int r = 0; r < kRows; ++r) row[r] = j + smaller(r0 + r, rows - 1) * n;
    V<T> sum[kRows][kWays] = {};
    std::int64_t c = 0;
    for (; c + kWays * kLanes<T> <= n; c += kWays * kLanes<T>) {
      for (int way = 0; way < kWays; ++way) {
        const V<T> xc = loose(x + c + way * kLanes<T>);
        for (int r = 0; r < kRows; ++r) sum[r][way] += loose(row[r] + c + way * kLanes<T>) * xc;
      }
    }
    for (int r = 0; r < kRows && r0 + r < rows; ++r) {
      double rest = 0;
      for (std::int64_t i = c; i < n; ++i) rest += static_cast<double>(row[r][i]) * static_cast<double>(x[i]);
      sums[r0 + r] = total<T>(sum[r][0] + sum[r][1]) + rest;
    }
  }
}

// The next kStep<T> numbers as double, in two vectors. Of bfloat16 one has the even and the other the odd ones, which
// takes a shift and a mask; `place` says where they are, for what they are multiplied by.
template <class T>
constexpr int kStep = sizeof(T) == 8 ? 2 * kLanes<double> : kLanes<float>;
using HalfWords = std::uint32_t __attribute__((vector_size(QUADRIC_VECTOR_BYTES / 2), aligned(2), may_alias));

inline Wide widened(const double* p) { return {loose(p), loose(p + kLanes<double>)}; }
inline Wide widened(const float* p) {
  return {from_singles(*reinterpret_cast<const HalfVector*>(p), 0.0),
          from_singles(*reinterpret_cast<const HalfVector*>(p + kLanes<double>), 0.0)};
}
inline Wide widened(const Float16* p) { return halves(read_vector(p)); }
inline Wide widened(const Bfloat16* p) {
  const HalfWords words = *reinterpret_cast<const HalfWords*>(p);
  const HalfWords even = words << 16, odd = words & 0xffff0000u;
  return {from_singles(reinterpret_cast<const HalfVector&>(even), 0.0),
          from_singles(reinterpret_cast<const HalfVector&>(odd), 0.0)};
}

// Where number i of a step of rows of this type is in the two vectors.
inline int place(const void*, int i) { return i; }
inline int place(const Bfloat16*, int i) { return i % 2 * kLanes<double> + i / 2; }

constexpr std::int64_t kChunk = 8192;  // columns whose sums or factors are kept in double, in cache

template <class T, class S>
void exact_dots_of(const S* g, std::int64_t rows, std::int64_t stride, std::int64_t n, const T* x, double* sums) {
  constexpr int kRows = 8;  // rows that share a read of x
  alignas(64) double wide[kChunk];
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t count = smaller(kChunk, n - begin), whole = count / kStep<T> * kStep<T>;
    for (std::int64_t j = 0; j < whole; j += kStep<T>)
      for (int i = 0; i < kStep<T>; ++i) wide[j + place(g, i)] = static_cast<double>(x[begin + j + i]);
    for (std::int64_t r0 = 0; r0 < rows; r0 += kRows) {
      const S* row[kRows];  // rows beyond the last repeat it
      for (int r = 0; r < kRows; ++r) row[r] = g + smaller(r0 + r, rows - 1) * stride + begin;
      V<double> sum[kRows][2] = {};
      for (std::int64_t j = 0; j < whole; j += kStep<T>) {
        const V<double> xa = vec(wide + j), xb = vec(wide + j + kLanes<double>);
        for (int r = 0; r < kRows; ++r) {
          const Wide y = widened(row[r] + j);
          sum[r][0] += y.a * xa;
          sum[r][1] += y.b * xb;
        }
      }
      for (int r = 0; r < kRows && r0 + r < rows; ++r) {
        double rest = 0;
        for (std::int64_t j = whole; j < count; ++j)
          rest += static_cast<double>(read(row[r] + j)) * static_cast<double>(x[begin + j]);
        sums[r0 + r] += total<double>(sum[r][0] + sum[r][1]) + rest;
      }
    }
  }
}

template <class T>
void exact_dots(const StoredRows& G, const T* x, double* sums) {
  with_type<T>(G.data, G.storage, [&](auto* g) { exact_dots_of(g, G.rows, G.row_stride, G.cols, x, sums); });
}

template <class T, class S>
void combine_of(const S* g, std::int64_t rows, std::int64_t stride, std::int64_t n, const double* c, const T* x,
                double scale, T* y) {
  constexpr int kRows = 8;  // rows that share a read and a write of the sums
  alignas(64) double wide[kChunk];
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t count = smaller(kChunk, n - begin), whole = count / kStep<T> * kStep<T>;
    const auto start = [=](std::int64_t j) { return x == nullptr ? 0.0 : scale * static_cast<double>(x[begin + j]); };
    for (std::int64_t j = 0; j < whole; j += kStep<T>)
      for (int i = 0; i < kStep<T>; ++i) wide[j + place(g, i)] = start(j + i);
    for (std::int64_t j = whole; j < count; ++j) wide[j] = start(j);
    for (std::int64_t r0 = 0; r0 < rows; r0 += kRows) {
      const S* row[kRows];
      double weight[kRows];  // rows beyond the last repeat it with weight zero
      for (int r = 0; r < kRows; ++r) {
        row[r] = g + smaller(r0 + r, rows - 1) * stride + begin;
        weight[r] = r0 + r < rows ? c[r0 + r] : 0.0;
      }
      for (std::int64_t j = 0; j < whole; j += kStep<T>) {
        V<double> a = vec(wide + j), b = vec(wide + j + kLanes<double>);
        for (int r = 0; r < kRows; ++r) {
          const Wide z = widened(row[r] + j);
          a += z.a * weight[r];
          b += z.b * weight[r];
        }
        vec(wide + j) = a;
        vec(wide + j + kLanes<double>) = b;
      }
      for (std::int64_t j = whole; j < count; ++j)
        for (int r = 0; r < kRows; ++r) wide[j] += static_cast<double>(read(row[r] + j)) * weight[r];
    }
    for (std::int64_t j = 0; j < whole; j += kStep<T>)
      for (int i = 0; i < kStep<T>; ++i) y[begin + j + i] = static_cast<T>(wide[j + place(g, i)]);
    for (std::int64_t j = whole; j < count; ++j) y[begin + j] = static_cast<T>(wide[j]);
  }
}

template <class T>
void combine(const StoredRows& G, const double* c, const T* x, double scale, T* y) {
  with_type<T>(G.data, G.storage, [&](auto* g) { combine_of(g, G.rows, G.row_stride, G.cols, c, x, scale, y); });
}

template <class T, int R>
inline void update_rows(const T* j, T alpha, std::int64_t n, std::int64_t columns, const T* y, std::int64_t y_rows,
                        std::int64_t y_stride, const T* coefficient, T* out, V<T> (&norms)[R]) {
  for (std::int64_t c = 0; c < columns; c += kLanes<T>) {
    V<T> sum[R];
    for (int r = 0; r < R; ++r) sum[r] = rounded<T>(loose(j + r * n + c) * alpha);
    for (std::int64_t k = 0; k < y_rows; ++k) {
      const V<T> yk = loose(y + k * y_stride + c);
      for (int r = 0; r < R; ++r) sum[r] += rounded<T>(yk * coefficient[k * kUpdateRows + r]);
    }
    for (int r = 0; r < R; ++r) {
      loose(out + r * n + c) = sum[r];
      norms[r] += magnitude<T>(sum[r]);
    }
  }
}

template <class T, int R>
void update_all(const T* j, T alpha, std::int64_t n, const T* y, std::int64_t y_rows, std::int64_t y_stride,
                const T* coefficient, T* out, double* norms) {
  const std::int64_t whole = n / kLanes<T> * kLanes<T>, rest = n - whole;
  V<T> sum[R] = {};
  update_rows<T, R>(j, alpha, n, whole, y, y_rows, y_stride, coefficient, out, sum);
  for (int r = 0; r < R; ++r) norms[r] = total<T>(sum[r]);
  // The last columns in scalars, with the additions and roundings of the vectors: the result is to stay symmetric.
  for (std::int64_t c = n - rest; c < n; ++c) {
    for (int r = 0; r < R; ++r) {
      V<T> entry = rounded<T>(splat<T>(j[r * n + c]) * alpha);
      for (std::int64_t k = 0; k < y_rows; ++k)
        entry += rounded<T>(splat<T>(y[k * y_stride + c]) * coefficient[k * kUpdateRows + r]);
      out[r * n + c] = entry[0];
      norms[r] += static_cast<double>(magnitude<T>(entry)[0]);
    }
  }
}

template <class T>
void update(const T* j, T alpha, std::int64_t rows, std::int64_t n, const T* y, std::int64_t y_rows,
            std::int64_t y_stride, const T* coefficient, T* out, double* norms) {
  if (rows == kUpdateRows)
    update_all<T, kUpdateRows>(j, alpha, n, y, y_rows, y_stride, coefficient, out, norms);
  else
    update_all<T, 1>(j, alpha, n, y, y_rows, y_stride, coefficient, out, norms);
}

template <class T>
constexpr auto widen() {
  if constexpr (sizeof(T) == 4)
    return widen_float;
  else
    return widen_double;
}

}  // namespace

template <class T>
const RowKernels<T>& row_kernels() {
  static constexpr RowKernels<T> kernels = {
      widen<T>(), narrow<T>, first_beyond<T>, dots<T>, exact_dots<T>, combine<T>, update<T>,
  };
  return kernels;
}
template const RowKernels<float>& row_kernels<float>();
template const RowKernels<double>& row_kernels<double>();

}  // namespace quadric::woodbury::detail::QUADRIC_LEVEL
