"""The woodbury family without a compiler: Numba for the loops, SciPy's BLAS for the products."""

from quadric.woodbury.numba.block_gram import block_gram
from quadric.woodbury.numba.block_inverse import block_inverse, block_scores
from quadric.woodbury.numba.block_solve import block_prune, block_solve
from quadric.woodbury.numba.factors import symmetric_product, symmetric_update
from quadric.woodbury.numba.rows import column_norms, combine, dots, gram, store

__all__ = [
    "block_gram",
    "block_inverse",
    "block_prune",
    "block_scores",
    "block_solve",
    "column_norms",
    "combine",
    "dots",
    "gram",
    "store",
    "symmetric_product",
    "symmetric_update",
]
