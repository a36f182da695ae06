"""Sketches and regression of Dask arrays, computed where their chunks are; needs extra ``dask``.

An array is cut along its rows into chunks, as ``da.from_array(A, chunks=(100_000, -1))`` does.
Every function reads each chunk on the worker that has it and sends back no more than a matrix of
the size of the result. Sums over chunks follow a fixed tree, so the same chunks give the same bits
whatever the scheduler, the number of workers and the order in which they finish.

>>> import dask.array as da
>>> import numpy as np
>>> import quadric as qd
>>> import quadric.adapters.dask as qdask
>>> A = da.from_array(np.random.default_rng(0).standard_normal((10_000, 5)), chunks=(1000, 5))
>>> b = A @ np.arange(1.0, 6.0)
>>> qdask.lstsq(A, b).x.round(12)
array([1., 2., 3., 4., 5.])
>>> S = qd.sketch.sparse_sign(64, 10_000)
>>> np.allclose(qdask.sketch(S, A).compute(), S @ A.compute())
True
"""

try:
    import dask.array  # noqa: F401
except ImportError as error:
    raise ImportError(
        f'quadric.adapters.dask needs {error.name}: pip install "quadric[dask]"'
    ) from error

from quadric.adapters.dask.lstsq import lstsq
from quadric.adapters.dask.passes import gram, leverage_scores, residual_gradient, sketch

__all__ = ["gram", "leverage_scores", "lstsq", "residual_gradient", "sketch"]
