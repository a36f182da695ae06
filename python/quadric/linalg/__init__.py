"""Many small symmetric positive definite matrices at once.

LAPACK takes one matrix at a time and is slow where they are small. Here the matrices of a batch
share the vector units, each keeps a status of its own, and no failure is hidden.

>>> import numpy as np
>>> import quadric as qd
>>> X = np.random.default_rng(0).standard_normal((1000, 8, 20))
>>> A = X @ X.swapaxes(1, 2)
>>> result = qd.linalg.inverse(A)
>>> np.allclose(result.value @ A, np.eye(8))
True
>>> np.allclose(result.logdet, np.linalg.slogdet(A)[1])
True
>>> A[7] = -A[7]
>>> qd.linalg.inverse(A, on_failure="nan").status[6:9]
array([-1,  0, -1], dtype=int32)
"""

from quadric.linalg.spd import SpdResult, cholesky, inverse, logdet, solve

__all__ = ["SpdResult", "cholesky", "inverse", "logdet", "solve"]
