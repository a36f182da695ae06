// The float64 tensor cores: the widest of their instructions, which alone reaches their full rate on sm_90.
#pragma once

namespace quadric::cuda::rows {

// c += a b for a 16 x 16, b 16 x 8, c 16 x 8, spread over a warp. With g = lane / 4 and t = lane % 4 a lane holds
//
//   a[2 i + h] = a(g + 8 h, t + 4 i),   b[i] = b(t + 4 i, g),   c[2 h + j] = c(g + 8 h, 2 t + j).
__device__ __forceinline__ void dmma(double (&c)[4], const double (&a)[8], const double (&b)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7, %8, %9, %10, %11}, "
      "{%12, %13, %14, %15}, {%0, %1, %2, %3};"
      : "+d"(c[0]), "+d"(c[1]), "+d"(c[2]), "+d"(c[3])
      : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(a[4]), "d"(a[5]), "d"(a[6]), "d"(a[7]), "d"(b[0]), "d"(b[1]),
        "d"(b[2]), "d"(b[3]));
}

}  // namespace quadric::cuda::rows
