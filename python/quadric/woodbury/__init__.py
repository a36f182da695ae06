"""Inverse curvature that stays current while gradients come in.

The curvature of a loss is estimated from gradients, the rows of G: ``F = damping I + G^T G / m``.
It is never formed. By Woodbury's identity its inverse needs only matrices of the size of a block of
weights, or of the number of gradients, and new gradients update those.

==============================  ====================================================================
`BlockFisher`                   any number of gradients, small blocks of weights: pruning (oBERT)
`EmpiricalFisher`               a set of gradients, all weights (M-FAC static)
`GradientWindow`                the latest gradients, one out for each one in (M-FAC dynamic)
`natural_gradient`              one preconditioned gradient (Natural GaLore)
`rank_one_inverse_update`,      inverses of Kronecker factors, updated in place (MKOR), and the
`rank_k_inverse_update`,        gradient between two of them
`kronecker_precondition`
`woodbury_solve`,               the identities, for matrices of any kind, with determinants
`sherman_morrison`
==============================  ====================================================================

Half of the weights of a least-squares model go, and the others make up for them:

>>> import numpy as np
>>> import quadric as qd
>>> rng = np.random.default_rng(0)
>>> X = np.cumsum(rng.standard_normal((500, 32)), axis=1)  # neighbours are correlated
>>> w = rng.standard_normal(32)
>>> y = X @ w + rng.standard_normal(500)
>>> bf = qd.woodbury.BlockFisher(32, block_size=16)
>>> bf.update((X @ w - y)[:, None] * X)  # the gradient of each example
>>> mask = bf.scores(w) > np.median(bf.scores(w))
>>> pruned = bf.prune(w, mask)
>>> def loss(w):
...     return np.square(X @ w - y).mean()
>>> bool(loss(pruned.weights) < 0.2 * loss(w * mask))
True
"""

from quadric.woodbury.block_fisher import BlockFisher
from quadric.woodbury.empirical_fisher import EmpiricalFisher
from quadric.woodbury.gradient_window import GradientWindow
from quadric.woodbury.identities import sherman_morrison, woodbury_solve
from quadric.woodbury.inverse_update import rank_k_inverse_update, rank_one_inverse_update
from quadric.woodbury.kronecker import kronecker_precondition
from quadric.woodbury.natural_gradient import natural_gradient
from quadric.woodbury.results import PrunedVector, UpdatedInverse, WoodburySolution

__all__ = [
    "BlockFisher",
    "EmpiricalFisher",
    "GradientWindow",
    "PrunedVector",
    "UpdatedInverse",
    "WoodburySolution",
    "kronecker_precondition",
    "natural_gradient",
    "rank_k_inverse_update",
    "rank_one_inverse_update",
    "sherman_morrison",
    "woodbury_solve",
]
