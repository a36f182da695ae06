// The inner loops of sketches, compiled once per instruction set; see sketch_kernels.hpp. No header here may bring
// inline functions that the rest of the library uses too.
#include "sketch/sketch_kernels.hpp"

#include <cstdint>

#include "random/philox_vectors.hpp"
#include "vectors.hpp"

namespace quadric::sketch::detail::QUADRIC_LEVEL {
namespace {

using namespace quadric::QUADRIC_LEVEL;

constexpr std::uint32_t kSparseStream = 0, kDenseStream = 4;
constexpr std::int64_t kAhead = 64, kNear = 16;  // rows that are fetched before they are needed
constexpr int kLineVectors = 64 / QUADRIC_VECTOR_BYTES;

template <class T>
constexpr typename Simd<T>::Int kSignBit = typename Simd<T>::Int(1) << (8 * sizeof(T) - 1);

// x, or -x where the sign bit of `sign` is set.
template <class T>
inline V<T> flip(V<T> x, I<T> sign) {
  return from_bits<T>(bits<T>(x) ^ sign);
}
// The sign bit in all lanes if the last bit of k is set.
template <class T>
inline I<T> sign_of(std::int64_t k) {
  return I<T>{} + static_cast<typename Simd<T>::Int>(-(k & 1) & kSignBit<T>);
}

// Calls with the number of lines as a template argument.
template <class Call>
inline void with_lines(std::int64_t lines, const Call& call) {
  switch (lines) {
    case 1:
      return call.template operator()<1>();
    case 2:
      return call.template operator()<2>();
    case 3:
      return call.template operator()<3>();
    case 4:
      return call.template operator()<4>();
    case 5:
      return call.template operator()<5>();
    case 6:
      return call.template operator()<6>();
    case 7:
      return call.template operator()<7>();
    default:
      return call.template operator()<8>();
  }
}

// ---- sparse signs --------------------------------------------------------------------------------------------------

void places(std::uint64_t seed, std::uint64_t first, std::int64_t rows, std::int64_t nnz, std::int64_t block,
            std::int32_t* out) {
  constexpr std::int64_t kPiece = 512;
  std::uint32_t memory[kPiece + 8];
  std::int32_t codes[kPiece];
  const std::int64_t count = rows * nnz;
  std::int64_t i = 0, k = 0;
  for (std::int64_t begin = 0; begin < count; begin += kPiece) {
    const std::int64_t size = smaller(kPiece, count - begin);
    const std::uint32_t* const words =
        write_words(seed, kSparseStream, first + static_cast<std::uint64_t>(begin), size, memory);
    for (std::int64_t e = 0; e < size; ++e) {
      const std::uint64_t row = (static_cast<std::uint64_t>(words[e] >> 1) * static_cast<std::uint64_t>(block)) >> 31;
      codes[e] = static_cast<std::int32_t>(row << 1 | (words[e] & 1));
    }
    if (nnz == 1) {
      copy(out + begin, codes, size);
      continue;
    }
    for (std::int64_t e = 0; e < size; ++e) {
      out[k * rows + i] = codes[e];
      if (++k == nnz) {
        k = 0;
        ++i;
      }
    }
  }
}

template <class T>
struct Pack {
  const Packing<T>& packing;
  std::int64_t rows;
  template <int lines>
  void operator()() const {
    constexpr std::int64_t kWidth = lines * kLineEntries<T>;
    for (std::int64_t i = 0; i < rows; ++i) {
      const T* const a = packing.from + i * packing.stride;
      T* const to = packing.to + i * kWidth;
      const std::int64_t at = packing.bit + i;
      const I<T> sign = sign_of<T>(packing.signs[at >> 5] >> (at & 31));
      for (int line = 0; line < lines; ++line)
        __builtin_prefetch(a + kAhead * packing.stride + line * kLineEntries<T>, 0, 2);
      for (std::int64_t j = 0; j < kWidth; j += kLanes<T>) vec(to + j) = flip<T>(loose(a + j), sign);
    }
  }
};

template <class T>
void pack(const Packing<T>& packing, std::int64_t rows, std::int64_t lines) {
  with_lines(lines, Pack<T>{packing, rows});
}

template <class T>
struct Scatter {
  const T* A;
  std::int64_t stride, rows;
  const std::int32_t* places;
  std::int64_t nnz, block;
  T* sums;
  template <int lines>
  void operator()() const {
    constexpr int kVectors = lines * kLineVectors;
    constexpr std::int64_t kWidth = lines * kLineEntries<T>;
    const I<T> signs[2] = {sign_of<T>(0), sign_of<T>(1)};
    for (std::int64_t i = 0; i < rows; ++i) {
      const T* const a = A + i * stride;
      for (int line = 0; line < lines; ++line) __builtin_prefetch(a + kNear * stride + line * kLineEntries<T>, 0, 2);
      V<T> x[kVectors];
      for (int v = 0; v < kVectors; ++v) x[v] = loose(a + v * kLanes<T>);
      for (std::int64_t k = 0; k < nnz; ++k) {
        const std::int32_t where = places[k * rows + i];
        T* const to = sums + (k * block + (where >> 1)) * kWidth;
        const I<T> sign = signs[where & 1];
        for (int v = 0; v < kVectors; ++v) vec(to + v * kLanes<T>) += flip<T>(x[v], sign);
      }
    }
  }
};

template <class T>
void scatter(const T* A, std::int64_t stride, std::int64_t rows, const std::int32_t* places, std::int64_t nnz,
             std::int64_t block, std::int64_t lines, T* sums) {
  with_lines(lines, Scatter<T>{A, stride, rows, places, nnz, block, sums});
}

// Adds R rows of A, the first of which is order[e], to a row of sums, and fetches those after them.
template <int R, class T>
inline void add_listed(const T* A, std::int64_t stride, const std::int32_t* order, std::int64_t e, std::int64_t end,
                       std::int64_t d, T* sums) {
  constexpr std::int64_t kSoon = 4, kLater = 16;  // rows ahead: fetched as a whole; one line, so that its page is known
  const auto row = [&](std::int64_t k) { return A + (order[smaller(k, end - 1)] >> 1) * stride; };
  const T *a[R], *next[R];
  I<T> sign[R];
  for (int r = 0; r < R; ++r) {
    a[r] = row(e + r);
    next[r] = row(e + r + kSoon);
    sign[r] = sign_of<T>(order[e + r]);
    __builtin_prefetch(row(e + r + kLater), 0, 2);
  }
  std::int64_t j = 0;
  for (; j + kLanes<T> <= d; j += kLanes<T>) {
    V<T> sum = loose(sums + j);
    for (int r = 0; r < R; ++r) {
      __builtin_prefetch(next[r] + j, 0, 2);
      sum += flip<T>(loose(a[r] + j), sign[r]);
    }
    loose(sums + j) = sum;
  }
  for (; j < d; ++j)
    for (int r = 0; r < R; ++r) sums[j] += (order[e + r] & 1) != 0 ? -a[r][j] : a[r][j];
}

template <class T>
void gather(const T* A, std::int64_t stride, const std::int32_t* order, const std::int32_t* starts, std::int64_t rows,
            std::int64_t d, T* out, std::int64_t out_stride) {
  const std::int64_t end = starts[rows];
  for (std::int64_t r = 0; r < rows; ++r) {
    std::int64_t e = starts[r];
    for (; e + 4 <= starts[r + 1]; e += 4) add_listed<4>(A, stride, order, e, end, d, out + r * out_stride);
    for (; e + 2 <= starts[r + 1]; e += 2) add_listed<2>(A, stride, order, e, end, d, out + r * out_stride);
    if (e < starts[r + 1]) add_listed<1>(A, stride, order, e, end, d, out + r * out_stride);
  }
}

template <class T>
void adjoint(const T* B, std::int64_t d, const std::int32_t* places, std::int64_t nnz, std::int64_t block,
             std::int64_t rows, T* out) {
  for (std::int64_t i = 0; i < rows; ++i, out += d) {
    const auto from = [&](std::int64_t k) { return B + (k * block + (places[k * rows + i] >> 1)) * d; };
    std::int64_t j = 0;
    for (; j + kLanes<T> <= d; j += kLanes<T>) {
      V<T> sum{};
      for (std::int64_t k = 0; k < nnz; ++k) sum += flip<T>(loose(from(k) + j), sign_of<T>(places[k * rows + i]));
      loose(out + j) = sum;
    }
    for (; j < d; ++j) {
      T sum = 0;
      for (std::int64_t k = 0; k < nnz; ++k) sum += (places[k * rows + i] & 1) != 0 ? -from(k)[j] : from(k)[j];
      out[j] = sum;
    }
  }
}

// ---- Hadamard transforms -------------------------------------------------------------------------------------------

// The transform of R numbers that are `step` apart, for every vector of a row.
template <int R, class T>
inline void butterflies(T* x, std::int64_t step, std::int64_t width) {
  for (std::int64_t j = 0; j < width; j += kLanes<T>) {
    V<T> y[R];
    for (int r = 0; r < R; ++r) y[r] = vec(x + r * step + j);
    for (int h = 1; h < R; h *= 2)
      for (int r = 0; r < R; ++r)
        if ((r & h) == 0) {
          const V<T> a = y[r], b = y[r + h];
          y[r] = a + b;
          y[r + h] = a - b;
        }
    for (int r = 0; r < R; ++r) vec(x + r * step + j) = y[r];
  }
}

template <int R, class T>
inline void transform_pass(T* tile, std::int64_t rows, std::int64_t h, std::int64_t width) {
  for (std::int64_t i = 0; i < rows; i += R * h)
    for (std::int64_t q = i; q < i + h; ++q) butterflies<R>(tile + q * width, h * width, width);
}

template <class T>
void transform(T* tile, std::int64_t rows, std::int64_t h, std::int64_t lines) {
  const std::int64_t width = lines * kLineEntries<T>;
  for (; 8 * h <= rows; h *= 8) transform_pass<8>(tile, rows, h, width);
  if (4 * h <= rows) {
    transform_pass<4>(tile, rows, h, width);
    h *= 4;
  }
  if (2 * h <= rows) transform_pass<2>(tile, rows, h, width);
}

template <class T>
void transform_groups(T* x, std::int64_t count, std::int64_t group) {
  for (std::int64_t h = 1; h < group; h *= 2) {
    if (h >= kLanes<T>) {
      for (std::int64_t i = 0; i < count; i += 2 * h)
        for (std::int64_t j = i; j < i + h; j += kLanes<T>) {
          const V<T> a = loose(x + j), b = loose(x + j + h);
          loose(x + j) = a + b;
          loose(x + j + h) = a - b;
        }
      continue;
    }
    I<T> partner, sign;
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      partner[lane] = static_cast<typename Simd<T>::Int>(lane ^ h);
      sign[lane] = (lane & h) != 0 ? kSignBit<T> : 0;
    }
    std::int64_t i = 0;
    for (; i + kLanes<T> <= count; i += kLanes<T>) {
      const V<T> a = loose(x + i);
      loose(x + i) = __builtin_shuffle(a, partner) + flip<T>(a, sign);
    }
    for (; i < count; i += 2 * h)
      for (std::int64_t j = i; j < i + h; ++j) {
        const T a = x[j], b = x[j + h];
        x[j] = a + b;
        x[j + h] = a - b;
      }
  }
}

template <class T>
struct AddSamples {
  const T* tile;
  const std::int64_t *lower, *upper;
  std::int64_t b, m;
  T* sums;
  template <int lines>
  void operator()() const {
    constexpr std::int64_t kWidth = lines * kLineEntries<T>;
    for (std::int64_t s = 0; s < m; ++s) {
      const I<T> sign = sign_of<T>(__builtin_popcountll(static_cast<unsigned long long>(upper[s] & b)));
      const T* const from = tile + lower[s] * kWidth;
      T* const to = sums + s * kWidth;
      for (std::int64_t j = 0; j < kWidth; j += kLanes<T>) vec(to + j) += flip<T>(vec(from + j), sign);
    }
  }
};

template <class T>
void add_samples(const T* tile, const std::int64_t* lower, const std::int64_t* upper, std::int64_t b, std::int64_t m,
                 std::int64_t lines, T* sums) {
  with_lines(lines, AddSamples<T>{tile, lower, upper, b, m, sums});
}

// ---- dense matrices ------------------------------------------------------------------------------------------------

// Whole numbers below 2^52 as double.
inline V<double> as_double(Wide x) {
  constexpr std::uint64_t kTwo52 = 0x4330000000000000;
  const Wide y = x | kTwo52;
  return reinterpret_cast<const V<double>&>(y) - 0x1p52;
}

// (w + 1/2) / 2^32.
inline V<double> uniform(Wide w) { return (as_double(w) + 0.5) * 0x1p-32; }

// Two normals of Box and Muller: the radius from u, the angle from v.
inline void normals(V<double> u, V<double> v, V<double>& x, V<double>& y) {
  using D = V<double>;
  const D radius = square_root<double>(logarithm<double>(u) * -1.3862943611198906188);
  const D quarter = nearest<double>(v * 4.0);
  const D angle = (v - quarter * 0.25) * 6.2831853071795864769, square = angle * angle;  // |angle| <= pi / 4
  D sine = splat<double>(1), cosine = splat<double>(1);
  for (int k = 9; k >= 1; --k) {
    sine = 1.0 - sine * square * (1.0 / ((2 * k) * (2 * k + 1)));
    cosine = 1.0 - cosine * square * (1.0 / ((2 * k - 1) * (2 * k)));
  }
  sine *= angle;
  const I<double> turns = __builtin_convertvector(quarter, I<double>);
  const I<double> odd = -(turns & 1);
  const D c = odd != 0 ? sine : cosine, s = odd != 0 ? cosine : sine;
  x = radius * flip<double>(c, ((turns + 1) & 2) << 62);
  y = radius * flip<double>(s, (turns & 2) << 62);
}

template <class T>
inline void write(V<double> x, std::int64_t count, T* to) {
  if (count >= kBlocks) {
    for (int lane = 0; lane < kBlocks; ++lane) to[lane] = static_cast<T>(x[lane]);
  } else {
    for (int lane = 0; lane < count; ++lane) to[lane] = static_cast<T>(x[lane]);
  }
}

template <class T>
void gaussian(std::uint64_t seed, std::uint64_t blocks, std::int64_t begin, std::int64_t end, std::uint64_t first,
              std::int64_t columns, std::int64_t stride, T* out) {
  for (std::int64_t q = begin; q < end; ++q)
    for (std::int64_t j = 0; j < columns; j += kBlocks) {
      const Words words =
          philox(seed, kDenseStream,
                 count_up((first + static_cast<std::uint64_t>(j)) * blocks + static_cast<std::uint64_t>(q), blocks));
      T* const to = out + 4 * (q - begin) * stride + j;
      for (int pair = 0; pair < 2; ++pair) {
        V<double> x, y;
        normals(uniform(words.w[2 * pair]), uniform(words.w[2 * pair + 1]), x, y);
        write(x, columns - j, to + 2 * pair * stride);
        write(y, columns - j, to + (2 * pair + 1) * stride);
      }
    }
}

template <class T>
void rademacher(std::uint64_t seed, std::uint64_t blocks, std::int64_t begin, std::int64_t end, std::uint64_t first,
                std::int64_t columns, std::int64_t stride, T* out) {
  for (std::int64_t q = begin; q < end; ++q)
    for (std::int64_t j = 0; j < columns; j += kBlocks) {
      const Words words =
          philox(seed, kDenseStream,
                 count_up((first + static_cast<std::uint64_t>(j)) * blocks + static_cast<std::uint64_t>(q), blocks));
      for (int row = 0; row < 128; ++row) {
        const Wide sign = (words.w[row / 32] >> (row % 32) & 1) << 63;
        write(flip<double>(splat<double>(1), reinterpret_cast<const I<double>&>(sign)), columns - j,
              out + (128 * (q - begin) + row) * stride + j);
      }
    }
}

// ---- passes over A -------------------------------------------------------------------------------------------------

inline V<double> read(const double* p) { return loose(p); }
inline V<double> read(const float* p) { return from_singles(*reinterpret_cast<const Simd<double>::Singles*>(p), 0.0); }

constexpr int kRows = 2;     // whose products are taken together, while the next ones are fetched
constexpr int kColumns = 4;  // likewise

template <int R, class T>
inline double residuals_of_rows(const T* A, std::int64_t stride, std::int64_t ahead, std::int64_t d, const double* x,
                                const T* b, std::int64_t b_stride, T* r, std::int64_t r_stride, double* g) {
  constexpr int L = kLanes<double>;
  // One half of the rows to come is fetched in this loop, the other in that of g.
  V<double> sum[R] = {};
  std::int64_t j = 0;
  for (; j + L <= d; j += L) {
    const V<double> xs = loose(x + j);
    for (int i = 0; i < R; ++i) {
      if (i < (R + 1) / 2) __builtin_prefetch(A + i * stride + ahead + j);
      sum[i] += read(A + i * stride + j) * xs;
    }
  }
  double y[R], norm = 0;
  for (int i = 0; i < R; ++i) {
    y[i] = total<double>(sum[i]);
    for (std::int64_t k = j; k < d; ++k) y[i] += static_cast<double>(A[i * stride + k]) * x[k];
    if (b != nullptr) y[i] = static_cast<double>(b[i * b_stride]) - y[i];
    if (r != nullptr) r[i * r_stride] = static_cast<T>(y[i]);
    norm += y[i] * y[i];
  }
  if (g == nullptr) return norm;
  for (j = 0; j + L <= d; j += L) {
    V<double> s = loose(g + j);
    for (int i = 0; i < R; ++i) {
      if (i >= (R + 1) / 2) __builtin_prefetch(A + i * stride + ahead + j);
      s += read(A + i * stride + j) * y[i];
    }
    loose(g + j) = s;
  }
  for (; j < d; ++j)
    for (int i = 0; i < R; ++i) g[j] += static_cast<double>(A[i * stride + j]) * y[i];
  return norm;
}

template <class T>
double row_residuals(const T* A, std::int64_t stride, std::int64_t rows, std::int64_t d, const double* x, const T* b,
                     std::int64_t b_stride, T* r, std::int64_t r_stride, double* g) {
  constexpr std::int64_t kDistance = 2048;  // bytes between what is fetched and what is used, at least
  const std::int64_t pair = kRows * d * static_cast<std::int64_t>(sizeof(T));
  const std::int64_t ahead = (kDistance + pair - 1) / pair * kRows * stride;
  double norm = 0;
  std::int64_t i = 0;
  const auto b_at = [&] { return b == nullptr ? nullptr : b + i * b_stride; };
  const auto r_at = [&] { return r == nullptr ? nullptr : r + i * r_stride; };
  for (; i + kRows <= rows; i += kRows) {
    // The stores to g would wait for a line of r that is not there.
    if (r != nullptr) __builtin_prefetch(r + (i + kAhead) * r_stride, 1);
    norm += residuals_of_rows<kRows>(A + i * stride, stride, ahead, d, x, b_at(), b_stride, r_at(), r_stride, g);
  }
  for (; i < rows; ++i)
    norm += residuals_of_rows<1>(A + i * stride, stride, ahead, d, x, b_at(), b_stride, r_at(), r_stride, g);
  return norm;
}

template <class T>
double column_residuals(const T* A, std::int64_t stride, std::int64_t rows, std::int64_t d, const double* x, const T* b,
                        std::int64_t b_stride, T* r, std::int64_t r_stride, double* g, double* y) {
  constexpr int L = kLanes<double>;
  for (std::int64_t i = 0; i < rows; ++i) y[i] = 0;
  for (std::int64_t j = 0; j < d; j += kColumns) {
    const int count = static_cast<int>(smaller(kColumns, d - j));
    const T* a[kColumns];
    double c[kColumns];
    for (int k = 0; k < kColumns; ++k) {  // columns beyond the last repeat it with weight zero
      a[k] = A + (j + (k < count ? k : count - 1)) * stride;
      c[k] = k < count ? x[j + k] : 0;
    }
    std::int64_t i = 0;
    for (; i + L <= rows; i += L) {
      V<double> s = loose(y + i);
      for (int k = 0; k < kColumns; ++k) s += read(a[k] + i) * c[k];
      loose(y + i) = s;
    }
    for (; i < rows; ++i)
      for (int k = 0; k < count; ++k) y[i] += static_cast<double>(a[k][i]) * c[k];
  }
  double norm = 0;
  for (std::int64_t i = 0; i < rows; ++i) {
    if (b != nullptr) y[i] = static_cast<double>(b[i * b_stride]) - y[i];
    if (r != nullptr) r[i * r_stride] = static_cast<T>(y[i]);
    norm += y[i] * y[i];
  }
  for (std::int64_t j = 0; g != nullptr && j < d; ++j) {
    const T* const a = A + j * stride;
    V<double> sum{};
    std::int64_t i = 0;
    for (; i + L <= rows; i += L) sum += read(a + i) * loose(y + i);
    double s = total<double>(sum);
    for (; i < rows; ++i) s += static_cast<double>(a[i]) * y[i];
    g[j] += s;
  }
  return norm;
}

template <class T>
void project(const T* a, std::int64_t d, double y, double factor, double* x) {
  constexpr int L = kLanes<double>;
  V<double> sum{};
  std::int64_t j = 0;
  for (; j + L <= d; j += L) sum += read(a + j) * loose(x + j);
  double product = total<double>(sum);
  for (; j < d; ++j) product += static_cast<double>(a[j]) * x[j];
  const double step = factor * (y - product);
  for (j = 0; j + L <= d; j += L) loose(x + j) += read(a + j) * step;
  for (; j < d; ++j) x[j] += static_cast<double>(a[j]) * step;
}

}  // namespace

const DrawKernels& draw_kernels() {
  static constexpr DrawKernels kernels = {places, write_words};
  return kernels;
}

template <class T>
const SketchKernels<T>& sketch_kernels() {
  static constexpr SketchKernels<T> kernels = {pack<T>,       scatter<T>,          gather<T>,           adjoint<T>,
                                               transform<T>,  transform_groups<T>, add_samples<T>,      gaussian<T>,
                                               rademacher<T>, row_residuals<T>,    column_residuals<T>, project<T>};
  return kernels;
}
template const SketchKernels<float>& sketch_kernels<float>();
template const SketchKernels<double>& sketch_kernels<double>();

}  // namespace quadric::sketch::detail::QUADRIC_LEVEL
