// The table of blas.hpp from the usual Fortran symbols (ssyrk_, ...): for programs that link a BLAS and a LAPACK.
#pragma once

#include "quadric/blas.hpp"

extern "C" {
void sgemm_(char*, char*, int*, int*, int*, float*, float*, int*, float*, int*, float*, float*, int*);
void ssyrk_(char*, char*, int*, int*, float*, float*, int*, float*, float*, int*);
void strsm_(char*, char*, char*, char*, int*, int*, float*, float*, int*, float*, int*);
void strmm_(char*, char*, char*, char*, int*, int*, float*, float*, int*, float*, int*);
void spotrf_(char*, int*, float*, int*, int*);
void dgemm_(char*, char*, int*, int*, int*, double*, double*, int*, double*, int*, double*, double*, int*);
void dsyrk_(char*, char*, int*, int*, double*, double*, int*, double*, double*, int*);
void dtrsm_(char*, char*, char*, char*, int*, int*, double*, double*, int*, double*, int*);
void dtrmm_(char*, char*, char*, char*, int*, int*, double*, double*, int*, double*, int*);
void dpotrf_(char*, int*, double*, int*, int*);
}

namespace quadric {

inline BlasTable fortran_blas() {
  BlasTable table;
  table.s = {sgemm_, ssyrk_, strsm_, strmm_, spotrf_};
  table.d = {dgemm_, dsyrk_, dtrsm_, dtrmm_, dpotrf_};
  return table;
}

}  // namespace quadric
