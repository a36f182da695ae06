"""Inverse-Hessian sweeps: round or zero weights column by column while later columns adapt.

A layer computes ``y = W x`` with ``W`` of shape (out, in). Its inputs ``X`` (tokens, in) enter
through ``H = X^T X / tokens`` alone. One Cholesky factor of ``H`` serves every matrix that sees
the same inputs.

>>> import numpy as np
>>> import quadric as qd
>>> rng = np.random.default_rng(0)
>>> X = np.cumsum(rng.standard_normal((512, 64)), axis=1)  # neighbours are correlated
>>> W = rng.standard_normal((32, 64))
>>> acc = qd.sweep.HessianAccumulator(64, dtype="float64")
>>> acc.update(X)
>>> fac = qd.sweep.factorize(acc.value())
>>> q = qd.sweep.quantize(W, fac, bits=4, group_size=32)
>>> nearest = qd.sweep.round_to_nearest(W, factor=fac, bits=4, group_size=32)
>>> bool(q.loss.sum() < 0.1 * nearest.loss.sum())
True
"""

from quadric.sweep.baselines import magnitude_prune, round_to_nearest
from quadric.sweep.batch import quantize_batch
from quadric.sweep.compress import compress
from quadric.sweep.factorize import Factor, FactorAttempt, FactorReport, factorize
from quadric.sweep.hessian import HessianAccumulator
from quadric.sweep.packing import unpack
from quadric.sweep.prune import prune
from quadric.sweep.quantize import quantize
from quadric.sweep.results import PrunedMatrix, QuantizedMatrix

__all__ = [
    "Factor",
    "FactorAttempt",
    "FactorReport",
    "HessianAccumulator",
    "PrunedMatrix",
    "QuantizedMatrix",
    "compress",
    "factorize",
    "magnitude_prune",
    "prune",
    "quantize",
    "quantize_batch",
    "round_to_nearest",
    "unpack",
]
