"""Regression on tall matrices, from a compressed matrix or from a few of its rows.

A is n x d with n far above d. A random matrix S with few rows keeps all lengths: ``|S A x|`` is
near ``|A x|`` for every x. So S A tells which rows of A matter, and preconditions a solver.

=================================  =================================================================
`sparse_sign`, `count_sketch`      sketching operators: ``S @ A``, ``S.T @ B``, by chunks, in parts
`gaussian`, `rademacher`
`srht`, `circulant`
`row_sampling`, `compose`
`StreamingSketch`                  what ``S.stream(d)`` makes: a sketch of rows that come in chunks
`fwht`                             the fast Walsh-Hadamard transform
`clarkson_woodruff_transform`      the words of SciPy
`lstsq`                            least squares; `lstsq_backward_error`, `residual_gradient`
`lp_regression`                    the p-norm of the residual instead, 1 <= p <= 8
`leverage_scores`                  how much a row of A matters; `lp_sensitivities`, `lewis_weights`
`sample_rows`                      rows drawn by such scores
`projection_dpp`                   rows drawn together, by their volume; `volume_sample`
`weighted_least_squares_design`    points to fit a function at; `polynomial_basis`
`sketch_and_project`               Kaczmarz and its relatives
`sketched_newton_kkt`              problems with equality constraints
`sparse_regression`                few nonzero coefficients
`top_singular_vector`              of rows that are seen once; `StreamingTopVector`
`randomized_svd`                   the largest singular values; `sketched_qr`
=================================  =================================================================
"""

from quadric.sketch.backward_error import lstsq_backward_error
from quadric.sketch.circulant import circulant
from quadric.sketch.compose import compose
from quadric.sketch.dense import gaussian, rademacher
from quadric.sketch.design import Design, weighted_least_squares_design
from quadric.sketch.dpp import ProjectionDPP, projection_dpp
from quadric.sketch.fwht import fwht
from quadric.sketch.hadamard import srht
from quadric.sketch.kkt import NewtonKktResult, sketched_newton_kkt
from quadric.sketch.leverage import leverage_scores
from quadric.sketch.lewis import lewis_weights
from quadric.sketch.lp_regression import LpResult, lp_regression
from quadric.sketch.lstsq import lstsq
from quadric.sketch.lstsq_results import LstsqResult
from quadric.sketch.operator import SketchingOperator
from quadric.sketch.polynomials import polynomial_basis, polynomial_degrees
from quadric.sketch.products import ResidualGradient, residual_gradient
from quadric.sketch.row_sample import RowSample, sample_rows
from quadric.sketch.row_sampling import row_sampling
from quadric.sketch.scipy_words import clarkson_woodruff_transform
from quadric.sketch.sensitivities import lp_sensitivities
from quadric.sketch.singular import RandomizedSvd, SketchedQr, randomized_svd, sketched_qr
from quadric.sketch.sketch_and_project import ProjectResult, sketch_and_project
from quadric.sketch.sparse import count_sketch, sparse_sign
from quadric.sketch.sparse_regression import SparseRegressionResult, sparse_regression
from quadric.sketch.streaming import StreamingSketch
from quadric.sketch.top_vector import StreamingTopVector, top_singular_vector
from quadric.sketch.volume import volume_sample

__all__ = [
    "Design",
    "LpResult",
    "LstsqResult",
    "NewtonKktResult",
    "ProjectResult",
    "ProjectionDPP",
    "RandomizedSvd",
    "ResidualGradient",
    "RowSample",
    "SketchedQr",
    "SketchingOperator",
    "SparseRegressionResult",
    "StreamingSketch",
    "StreamingTopVector",
    "circulant",
    "clarkson_woodruff_transform",
    "compose",
    "count_sketch",
    "fwht",
    "gaussian",
    "leverage_scores",
    "lewis_weights",
    "lp_regression",
    "lp_sensitivities",
    "lstsq",
    "lstsq_backward_error",
    "polynomial_basis",
    "polynomial_degrees",
    "projection_dpp",
    "rademacher",
    "randomized_svd",
    "residual_gradient",
    "row_sampling",
    "sample_rows",
    "sketch_and_project",
    "sketched_newton_kkt",
    "sketched_qr",
    "sparse_regression",
    "sparse_sign",
    "srht",
    "top_singular_vector",
    "volume_sample",
    "weighted_least_squares_design",
]
