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

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_HOME = {
    "Design": "design",
    "LpResult": "lp_regression",
    "LstsqResult": "lstsq_results",
    "NewtonKktResult": "kkt",
    "ProjectionDPP": "dpp",
    "ProjectResult": "sketch_and_project",
    "RandomizedSvd": "singular",
    "ResidualGradient": "products",
    "RowSample": "row_sample",
    "SketchedQr": "singular",
    "SketchingOperator": "operator",
    "SparseRegressionResult": "sparse_regression",
    "StreamingSketch": "streaming",
    "StreamingTopVector": "top_vector",
    "circulant": "circulant",
    "clarkson_woodruff_transform": "scipy_words",
    "compose": "compose",
    "count_sketch": "sparse",
    "fwht": "fwht",
    "gaussian": "dense",
    "leverage_scores": "leverage",
    "lewis_weights": "lewis",
    "lp_regression": "lp_regression",
    "lp_sensitivities": "sensitivities",
    "lstsq": "lstsq",
    "lstsq_backward_error": "backward_error",
    "polynomial_basis": "polynomials",
    "polynomial_degrees": "polynomials",
    "projection_dpp": "dpp",
    "rademacher": "dense",
    "randomized_svd": "singular",
    "residual_gradient": "products",
    "row_sampling": "row_sampling",
    "sample_rows": "row_sample",
    "sketch_and_project": "sketch_and_project",
    "sketched_newton_kkt": "kkt",
    "sketched_qr": "singular",
    "sparse_regression": "sparse_regression",
    "sparse_sign": "sparse",
    "srht": "hadamard",
    "top_singular_vector": "top_vector",
    "volume_sample": "volume",
    "weighted_least_squares_design": "design",
}
"""Public name to the module that has it."""

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'quadric.sketch' has no attribute {name!r}")
    value = getattr(import_module(f"quadric.sketch.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_HOME)


class _Package(ModuleType):
    """A package whose functions are not hidden by the modules of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
