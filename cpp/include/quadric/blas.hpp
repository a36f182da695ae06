// The few BLAS and LAPACK routines that the kernels call, as one table of Fortran-style pointers with 32-bit
// integers. A standalone build links a BLAS and fills the table itself. The Python package fills it with SciPy's own
// pointers, so that a process holds one BLAS. Whoever links the library of the Python package from C++ fills it with
// `set_blas(fortran_blas())` from quadric/blas_fortran.hpp.
//
// Kernels call these routines on small pieces from several OpenMP threads at once. That is fastest when BLAS runs on
// one thread itself (OPENBLAS_NUM_THREADS=1 or the like); the Python package sees to it during such calls.
#pragma once

#include "quadric/export.hpp"

namespace quadric {

template <class T>
struct BlasRoutines {
  // C = alpha op(A) op(B) + beta C
  void (*gemm)(char* transa, char* transb, int* m, int* n, int* k, T* alpha, T* a, int* lda, T* b, int* ldb, T* beta,
               T* c, int* ldc) = nullptr;
  // C = alpha op(A) op(A)^T + beta C on one triangle
  void (*syrk)(char* uplo, char* trans, int* n, int* k, T* alpha, T* a, int* lda, T* beta, T* c, int* ldc) = nullptr;
  // B = alpha op(A)^-1 B or alpha B op(A)^-1 with a triangular A
  void (*trsm)(char* side, char* uplo, char* transa, char* diag, int* m, int* n, T* alpha, T* a, int* lda, T* b,
               int* ldb) = nullptr;
  // B = alpha op(A) B or alpha B op(A) with a triangular A
  void (*trmm)(char* side, char* uplo, char* transa, char* diag, int* m, int* n, T* alpha, T* a, int* lda, T* b,
               int* ldb) = nullptr;
  // Cholesky factorization in place on one triangle
  void (*potrf)(char* uplo, int* n, T* a, int* lda, int* info) = nullptr;
};

struct BlasTable {
  BlasRoutines<float> s;
  BlasRoutines<double> d;
};

// Replaces the table of this process. Call it before the first kernel, from one thread.
QUADRIC_API void set_blas(const BlasTable& table);

// The table in force; throws std::runtime_error if nobody filled it.
QUADRIC_API const BlasTable& blas();

template <class T>
const BlasRoutines<T>& blas_routines();
template <>
inline const BlasRoutines<float>& blas_routines<float>() {
  return blas().s;
}
template <>
inline const BlasRoutines<double>& blas_routines<double>() {
  return blas().d;
}

}  // namespace quadric
