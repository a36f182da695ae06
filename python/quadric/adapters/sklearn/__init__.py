"""Regression, random projection and optimal transport in scikit-learn; needs the extra ``sklearn``.

>>> import numpy as np
>>> from quadric.adapters.sklearn import SketchedRegressor, TransportMap
>>> X = np.random.default_rng(0).standard_normal((2000, 2))
>>> round(SketchedRegressor().fit(X, X @ [1.0, 2.0]).score(X, X @ [1.0, 2.0]), 12)
1.0
>>> source = np.random.default_rng(0).normal(0.0, 1.0, (300, 2))
>>> target = np.random.default_rng(1).normal(5.0, 2.0, (400, 2))
>>> moved = TransportMap(reg=0.5).fit(source, target=target).transform(source)
>>> bool(np.abs(moved.mean(axis=0) - target.mean(axis=0)).max() < 1e-6)
True
"""

from quadric.adapters.sklearn.lp_regressor import LpRegressor
from quadric.adapters.sklearn.sketch_transformers import (
    CirculantSketch,
    CountSketch,
    GaussianSketch,
    RademacherSketch,
    SparseSignSketch,
    SRHTSketch,
)
from quadric.adapters.sklearn.sketched_regressor import SketchedRegressor
from quadric.adapters.sklearn.sketched_ridge import SketchedRidge
from quadric.adapters.sklearn.transport_map import TransportMap

__all__ = [
    "CirculantSketch",
    "CountSketch",
    "GaussianSketch",
    "LpRegressor",
    "RademacherSketch",
    "SRHTSketch",
    "SketchedRegressor",
    "SketchedRidge",
    "SparseSignSketch",
    "TransportMap",
]
