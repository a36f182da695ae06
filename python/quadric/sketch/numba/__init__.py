"""Sketching without a compiler: Numba for the passes over A, SciPy's BLAS for the products."""

from quadric.sketch.numba.dense import dense, dense_entries
from quadric.sketch.numba.fwht import fwht
from quadric.sketch.numba.gram import preconditioned_gram, row_norms, weighted_gram
from quadric.sketch.numba.kaczmarz import kaczmarz, kaczmarz_csr
from quadric.sketch.numba.residual import residual_gradient
from quadric.sketch.numba.sparse_sign import sparse_sign, sparse_sign_csr, sparse_sign_rows
from quadric.sketch.numba.srht import srht

__all__ = [
    "dense",
    "dense_entries",
    "fwht",
    "kaczmarz",
    "kaczmarz_csr",
    "preconditioned_gram",
    "residual_gradient",
    "row_norms",
    "sparse_sign",
    "sparse_sign_csr",
    "sparse_sign_rows",
    "srht",
    "weighted_gram",
]
