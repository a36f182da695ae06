"""The sweep without a compiler: Numba for the recurrences, SciPy's BLAS for the products."""

from quadric.sweep.numba.factorize import cholesky, gather
from quadric.sweep.numba.grid import grid
from quadric.sweep.numba.hessian import gram, symmetry_defect
from quadric.sweep.numba.sweep import sweep

__all__ = ["cholesky", "gather", "gram", "grid", "sweep", "symmetry_defect"]
