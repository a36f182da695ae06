// The inner loops of a pass, compiled once per instruction set; see pass_kernels.hpp. No header here may bring inline
// functions that the rest of the library uses too.
#include "transport/pass_kernels.hpp"

#include <cstdint>

#include "vectors.hpp"

namespace quadric::transport::detail::QUADRIC_LEVEL {
namespace {

using namespace quadric::QUADRIC_LEVEL;

// Sums in T over this many columns, in double beyond.
constexpr std::int64_t kRun = 1024;

// Bytes of a stored cost to ask for ahead of its use.
constexpr std::int64_t kAhead = 4096;

// The distance of kLanes columns from j on.
template <class T, Form form>
inline V<T> distance(const Row<T>& row, std::int64_t j) {
  V<T> sum{};
  const T* other = row.others + j;
  for (std::int64_t k = 0; k < row.d; ++k, other += row.stride) {
    const V<T> difference = row.point[k] - vec(other);
    if constexpr (form == Form::taxicab)
      sum += magnitude<T>(difference);
    else
      sum += difference * difference;
  }
  if constexpr (form == Form::euclidean) sum = square_root<T>(sum);
  return sum;
}

// t of kLanes columns from j on. D: coordinates known at compile time, or 0.
template <class T, Form form, int D>
inline V<T> exponent(const Row<T>& row, const T* point, T factor, const T* G, std::int64_t j) {
  V<T> t = vec(G + j);
  if constexpr (form == Form::product) {
    const std::int64_t d = D > 0 ? D : row.d;
    const T* other = row.others + j;
    for (std::int64_t k = 0; k < d; ++k, other += row.stride) t += vec(other) * point[k];
  } else {
    t += distance<T, form>(row, j) * factor;
  }
  return t;
}

// The costs from j on, zero from m on.
template <class T>
inline V<T> last(const T* cost, std::int64_t j, std::int64_t m) {
  V<T> result{};
  for (std::int64_t i = j; i < m && i < j + kLanes<T>; ++i) result[i - j] = cost[i];
  return result;
}

// body(j, t) for every vector of a row of m columns and its padding.
template <class T, Form form, int D, class Body>
inline void for_exponents(const Row<T>& row, T factor, const T* G, std::int64_t m, const Body& body) {
  if constexpr (form == Form::stored) {
    std::int64_t j = 0;
    for (; j + kLanes<T> <= m; j += kLanes<T>) {
      __builtin_prefetch(row.cost + j + kAhead / sizeof(T));
      body(j, loose(row.cost + j) * factor + vec(G + j));
    }
    for (const std::int64_t width = padded(m); j < width; j += kLanes<T>)
      body(j, last<T>(row.cost, j, m) * factor + vec(G + j));
  } else {
    T near[D > 0 ? D : 1];  // a copy that stores cannot change, so that it stays in registers
    for (int k = 0; k < D; ++k) near[k] = row.point[k];
    const T* const point = D > 0 ? near : row.point;
    for (std::int64_t j = 0, width = padded(m); j < width; j += kLanes<T>)
      body(j, exponent<T, form, D>(row, point, factor, G, j));
  }
}

template <class T, Form form, int D>
void exponentials_of(const Row<T>* row, std::int64_t rows, T factor, const T* shift, const T* G, const T* weight,
                     std::int64_t m, T* e, std::int64_t stride, double* sums) {
  constexpr int kRows = 4;  // at once: they share G, weights and the other points, and keep the vector units busy
  // What rows of points share stays in the first-level cache; a stored cost is read in long runs.
  constexpr std::int64_t kColumns = form == Form::stored ? 4 * kRun : kRun;
  for (std::int64_t r = 0; r < rows; ++r) sums[r] = 0;
  for (std::int64_t begin = 0; begin < m; begin += kColumns) {
    const std::int64_t end = smaller(begin + kColumns, m);
    for (std::int64_t r0 = 0; r0 < rows; r0 += kRows) {
      Row<T> part[kRows];  // copies that stores cannot change, so that they stay in registers
      T near[kRows][D > 0 ? D : 1], shifts[kRows];
      T* to[kRows];
      V<T> sum[kRows] = {};
      for (int r = 0; r < kRows; ++r) {  // rows beyond the last repeat it
        const std::int64_t i = smaller(r0 + r, rows - 1);
        part[r] = row[i];
        for (int k = 0; k < D; ++k) near[r][k] = row[i].point[k];
        shifts[r] = shift[i];
        to[r] = e + i * stride;
      }
      const auto raise = [&](std::int64_t j, const V<T>* t) {
        const V<T> weights = vec(weight + j);
        for (int r = 0; r < kRows; ++r) {
          const V<T> x = power_of_two<T>(t[r], shifts[r]);
          sum[r] += x * weights;
          vec(to[r] + j) = x;
        }
      };
      V<T> t[kRows];
      if constexpr (form == Form::stored) {
        const std::int64_t whole = end - (end - begin) % kLanes<T>;
        for (std::int64_t j = begin; j < whole; j += kLanes<T>) {
          for (int r = 0; r < kRows; ++r) {
            __builtin_prefetch(part[r].cost + j + kAhead / sizeof(T));
            t[r] = loose(part[r].cost + j) * factor + vec(G + j);
          }
          raise(j, t);
        }
        if (whole < end) {
          for (int r = 0; r < kRows; ++r) t[r] = last<T>(part[r].cost, whole, m) * factor + vec(G + whole);
          raise(whole, t);
        }
      } else if constexpr (D > 0) {
        const T* others[D];
        for (int k = 0; k < D; ++k) others[k] = part[0].others + k * part[0].stride;
        for (std::int64_t j = begin; j < padded(end); j += kLanes<T>) {
          for (int r = 0; r < kRows; ++r) t[r] = vec(G + j);
          for (int k = 0; k < D; ++k) {
            const V<T> other = vec(others[k] + j);
            for (int r = 0; r < kRows; ++r) t[r] += other * near[r][k];
          }
          raise(j, t);
        }
      } else {
        for (std::int64_t j = begin; j < padded(end); j += kLanes<T>) {
          for (int r = 0; r < kRows; ++r) t[r] = exponent<T, form, 0>(part[r], part[r].point, factor, G, j);
          raise(j, t);
        }
      }
      for (int r = 0; r < kRows && r0 + r < rows; ++r) sums[r0 + r] += total<T>(sum[r]);
    }
  }
}

template <class T, Form form, int D>
T exponents_of(const Row<T>& row, T factor, const T* G, std::int64_t m, T* out) {
  V<T> largest = splat<T>(-__builtin_inff());
  for_exponents<T, form, D>(row, factor, G, m, [&](std::int64_t j, V<T> t) {
    largest = higher<T>(largest, t);
    vec(out + j) = t;
  });
  T result = largest[0];
  for (int lane = 1; lane < kLanes<T>; ++lane) result = largest[lane] > result ? largest[lane] : result;
  return result;
}

// Calls with the form and the number of coordinates as template arguments.
template <class Call>
inline auto with_form(Form form, std::int64_t d, const Call& call) {
  switch (form) {
    case Form::product:
      switch (d) {
        case 1:
          return call.template operator()<Form::product, 1>();
        case 2:
          return call.template operator()<Form::product, 2>();
        case 3:
          return call.template operator()<Form::product, 3>();
        default:
          return call.template operator()<Form::product, 0>();
      }
    case Form::taxicab:
      return call.template operator()<Form::taxicab, 0>();
    case Form::euclidean:
      return call.template operator()<Form::euclidean, 0>();
    default:
      return call.template operator()<Form::stored, 0>();
  }
}

template <class T>
struct Exponentials {
  const Row<T>* row;
  std::int64_t rows;
  T factor;
  const T *shift, *G, *weight;
  std::int64_t m;
  T* e;
  std::int64_t stride;
  double* sums;
  template <Form form, int D>
  void operator()() const {
    exponentials_of<T, form, D>(row, rows, factor, shift, G, weight, m, e, stride, sums);
  }
};

template <class T>
struct Exponents {
  const Row<T>& row;
  T factor;
  const T* G;
  std::int64_t m;
  T* t;
  template <Form form, int D>
  T operator()() const {
    return exponents_of<T, form, D>(row, factor, G, m, t);
  }
};

template <class T>
void exponentials(Form form, const Row<T>* row, std::int64_t rows, T factor, const T* shift, const T* G,
                  const T* weight, std::int64_t m, T* e, std::int64_t stride, double* sums) {
  with_form(form, row[0].d, Exponentials<T>{row, rows, factor, shift, G, weight, m, e, stride, sums});
}

template <class T>
T exponents(Form form, const Row<T>& row, T factor, const T* G, std::int64_t m, T* t) {
  return with_form(form, row.d, Exponents<T>{row, factor, G, m, t});
}

template <class T>
double powers(const T* t, T shift, const T* weight, std::int64_t width, T* e) {
  double result = 0;
  for (std::int64_t j = 0; j < width;) {
    V<T> sum{};
    for (const std::int64_t end = smaller(j + kRun, width); j < end; j += kLanes<T>) {
      const V<T> x = power_of_two<T>(vec(t + j), shift);
      sum += x * vec(weight + j);
      vec(e + j) = x;
    }
    result += total<T>(sum);
  }
  return result;
}

template <class T>
double powers_and_entropy(const T* t, T shift, const T* weight, std::int64_t width, T* e, double* entropy) {
  double result = 0;
  *entropy = 0;
  for (std::int64_t j = 0; j < width;) {
    V<T> sum{}, weighted{};
    for (const std::int64_t end = smaller(j + kRun, width); j < end; j += kLanes<T>) {
      const V<T> exponent = vec(t + j);
      const V<T> x = power_of_two<T>(exponent, shift);
      vec(e + j) = x;
      const V<T> mass = x * vec(weight + j);
      sum += mass;
      weighted += mass > V<T>{} ? mass * exponent : V<T>{};  // the exponent may be -infinity
    }
    result += total<T>(sum);
    *entropy += total<T>(weighted);
  }
  return result;
}

template <class T>
void products(const T* e, std::int64_t stride, std::int64_t rows, const T* values, std::int64_t k, std::int64_t width,
              double* out) {
  constexpr int kRows = 8;
  for (std::int64_t i = 0; i < rows * k; ++i) out[i] = 0;
  for (std::int64_t begin = 0; begin < width; begin += kRun) {
    const std::int64_t end = smaller(begin + kRun, width);
    for (std::int64_t r0 = 0; r0 < rows; r0 += kRows)
      for (std::int64_t c = 0; c < k; ++c) {
        const T* row[kRows];
        V<T> sum[kRows] = {};
        for (int r = 0; r < kRows; ++r) row[r] = e + smaller(r0 + r, rows - 1) * stride;
        for (std::int64_t j = begin; j < end; j += kLanes<T>) {
          const V<T> value = vec(values + c * width + j);
          for (int r = 0; r < kRows; ++r) sum[r] += vec(row[r] + j) * value;
        }
        for (int r = 0; r < kRows && r0 + r < rows; ++r) out[(r0 + r) * k + c] += total<T>(sum[r]);
      }
  }
}

template <class T, Form form>
void directions_of(const Row<T>& row, const T* e, const T* weight, std::int64_t width, double* out) {
  for (std::int64_t k = 0; k < row.d; ++k) out[k] = 0;
  for (std::int64_t j = 0; j < width; j += kLanes<T>) {
    V<T> x = vec(e + j) * vec(weight + j);
    if constexpr (form == Form::euclidean) {
      const V<T> length = distance<T, form>(row, j);
      x = length > V<T>{} ? x / length : V<T>{};
    }
    const T* other = row.others + j;
    for (std::int64_t k = 0; k < row.d; ++k, other += row.stride) {
      const V<T> difference = row.point[k] - vec(other);
      if constexpr (form == Form::euclidean)
        out[k] += total<T>(x * difference);
      else
        out[k] += total<T>(difference > V<T>{} ? x : (difference < V<T>{} ? -x : V<T>{}));
    }
  }
}

template <class T>
void directions(Form form, const Row<T>& row, const T* e, const T* weight, std::int64_t width, double* out) {
  if (form == Form::euclidean)
    directions_of<T, Form::euclidean>(row, e, weight, width, out);
  else
    directions_of<T, Form::taxicab>(row, e, weight, width, out);
}

template <class T>
void add_rows(const T* e, std::int64_t stride, std::int64_t rows, const T* weight, std::int64_t width, T* sums) {
  constexpr int kRows = 8;
  for (std::int64_t r0 = 0; r0 < rows; r0 += kRows) {
    const T* row[kRows];
    T w[kRows];  // rows beyond the last repeat it with weight zero
    for (int r = 0; r < kRows; ++r) {
      row[r] = e + smaller(r0 + r, rows - 1) * stride;
      w[r] = r0 + r < rows ? weight[r0 + r] : T(0);
    }
    if (rows - r0 == 1) {
      for (std::int64_t j = 0; j < width; j += kLanes<T>) vec(sums + j) += vec(row[0] + j) * w[0];
      continue;
    }
    for (std::int64_t j = 0; j < width; j += kLanes<T>) {
      V<T> sum = vec(sums + j);
      for (int r = 0; r < kRows; ++r) sum += vec(row[r] + j) * w[r];
      vec(sums + j) = sum;
    }
  }
}

template <class T>
std::int64_t select(const T* t, T shift, T row_floor, const T* floor, std::int64_t width, std::int32_t* columns) {
  std::int64_t count = 0;
  for (std::int64_t j = 0; j < width; j += kLanes<T>) {
    const V<T> least = lower<T>(splat<T>(row_floor), vec(floor + j));
    const I<T> kept = vec(t + j) + shift >= least;
    typename Simd<T>::Int any = 0;
    for (int lane = 0; lane < kLanes<T>; ++lane) any |= kept[lane];
    if (any == 0) continue;
    for (int lane = 0; lane < kLanes<T>; ++lane) {  // written in any case: a branch could not be foretold
      columns[count] = static_cast<std::int32_t>(j + lane);
      count += kept[lane] & 1;
    }
  }
  return count;
}

void relax(const Side& side, double omega, double theta, Moved& moved) {
  using D = V<double>;
  const double pull = (1 - theta) / theta;  // reg / rho: the target of an unbalanced side is mass 2^(-F pull)
  D before{}, after{}, lowest = splat<double>(moved.lowest), highest = splat<double>(moved.highest),
                       bound = splat<double>(moved.bound);
  for (std::int64_t i = 0; i < side.n; i += kLanes<double>) {
    const D mass = vec(side.mass + i), sums = vec(side.sums + i), base = vec(side.base + i), F = vec(side.F + i);
    D target = mass;
    const D log_sums = logarithm<double>(sums);
    const D marginal = log_sums + (F - base);
    if (theta != 1) target = mass * power_of_two<double>(lower<double>(F * -pull, splat<double>(1000)));
    before += magnitude<double>(sums * vec(side.scaling + i) - target);
    const D new_F = F + omega * (theta * (F + (vec(side.log_mass + i) - marginal)) - F);
    const D rest = new_F - base;
    const D scaling = power_of_two<double>(lower<double>(rest, splat<double>(1000)));
    if (theta != 1) target = mass * power_of_two<double>(lower<double>(new_F * -pull, splat<double>(1000)));
    after += magnitude<double>(sums * scaling - target) + new_F * 0.0;  // not finite if new_F is not
    vec(side.new_F + i) = new_F;
    vec(side.scaling + i) = scaling;
    lowest = lower<double>(lowest, rest);
    highest = higher<double>(highest, rest);
    bound = higher<double>(bound, marginal + (new_F - F));
  }
  moved.before += total<double>(before);
  moved.after += total<double>(after);
  for (int lane = 0; lane < kLanes<double>; ++lane) {
    moved.lowest = lowest[lane] < moved.lowest ? lowest[lane] : moved.lowest;
    moved.highest = highest[lane] > moved.highest ? highest[lane] : moved.highest;
    moved.bound = bound[lane] > moved.bound ? bound[lane] : moved.bound;
  }
}

void exp2(const double* x, std::int64_t n, double* y) {
  std::int64_t i = 0;
  for (; i + kLanes<double> <= n; i += kLanes<double>) loose(y + i) = power_of_two<double>(loose(x + i));
  for (; i < n; ++i) y[i] = power_of_two<double>(splat<double>(x[i]))[0];
}

}  // namespace

template <class T>
const PassKernels<T>& pass_kernels() {
  static constexpr PassKernels<T> kernels = {exponentials<T>, exponents<T>,  powers<T>,   powers_and_entropy<T>,
                                             products<T>,     directions<T>, add_rows<T>, select<T>,
                                             relax,           exp2};
  return kernels;
}
template const PassKernels<float>& pass_kernels<float>();
template const PassKernels<double>& pass_kernels<double>();

}  // namespace quadric::transport::detail::QUADRIC_LEVEL
