#include "quadric/blas.hpp"

#include <stdexcept>

#ifdef QUADRIC_LINK_BLAS
#include "quadric/blas_fortran.hpp"
#endif

namespace quadric {
namespace {

#ifdef QUADRIC_LINK_BLAS
BlasTable active = fortran_blas();
#else
BlasTable active;
#endif

}  // namespace

void set_blas(const BlasTable& table) { active = table; }

const BlasTable& blas() {
  if (active.s.potrf == nullptr) {
    throw std::runtime_error(
        "quadric: the BLAS table is empty: call quadric::set_blas(quadric::fortran_blas()) from "
        "quadric/blas_fortran.hpp, or build quadric with QUADRIC_PYTHON=OFF");
  }
  return active;
}

}  // namespace quadric
