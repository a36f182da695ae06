// The table of blas.hpp from the usual Fortran symbols (ssyrk_, ...): for programs that link a BLAS and a LAPACK.
#pragma once

#include "quadric/blas.hpp"

extern "C" {
void ssyrk_(char*, char*, int*, int*, float*, float*, int*, float*, float*, int*);
void dsyrk_(char*, char*, int*, int*, double*, double*, int*, double*, double*, int*);
void spotrf_(char*, int*, float*, int*, int*);
void dpotrf_(char*, int*, double*, int*, int*);
}

namespace quadric {

inline BlasTable fortran_blas() {
  BlasTable table;
  table.s = {ssyrk_, spotrf_};
  table.d = {dsyrk_, dpotrf_};
  return table;
}

}  // namespace quadric
